"""Spans of requests: what they hold, how they hang together, and that none is made unasked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from medv_ray.errors import SettingsError
from medv_ray.serving import traces
from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.options import TracingSettings
from medv_ray.serving.service import Service
from medv_ray.serving.traces import Trace, Tracing, check_tracing, current, open_tracing, part
from tests.unit.serving.client import CHAT, ask, ask_all, body_of, get, message
from tests.unit.serving.conftest import NO_KEYS, settings_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def app(
    service: Service, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[App]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(service, "settings", settings_of(ongoing=200))
    monkeypatch.setattr(service, "beside", [])
    yield make_app(service, NO_KEYS, tracing=Tracing(provider))
    assert len(service.beside) == 1
    service.beside[0]()


def spans(exporter: InMemorySpanExporter) -> tuple[Any, dict[str, list[Any]]]:
    """The request's own span, and its parts by name."""
    root, *others = sorted(exporter.get_finished_spans(), key=lambda one: one.kind.name != "SERVER")
    exporter.clear()
    parts: dict[str, list[Any]] = {}
    for one in others:
        assert one.parent.span_id == root.context.span_id
        assert one.context.trace_id == root.context.trace_id
        assert root.start_time <= one.start_time <= one.end_time <= root.end_time
        parts.setdefault(one.name, []).append(one)
    return root, parts


@pytest.mark.parametrize("stream", [False, True])
def test_the_parts_of_an_answer(app: App, exporter: InMemorySpanExporter, stream: bool) -> None:
    reply = ask(
        app, body_of(stream=stream, stream_options={"include_usage": True} if stream else None)
    )
    assert reply.status == 200
    root, parts = spans(exporter)
    assert root.name == f"POST {CHAT}"
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "medv.model": "medv-tiny",
        "medv.answers": 1,
        "medv.stream": stream,
        "medv.outcome": "answered",
    }
    assert {name: len(found) for name, found in parts.items()} == {
        "decode pictures": 1, "queue": 1, "vision": 1, "denoise": 1, "answer": 1,
    }  # fmt: skip
    assert parts["decode pictures"][0].attributes == {"medv.pictures": 1}
    usage = reply.events[-1]["usage"] if stream else reply.json()["usage"]
    denoise = parts["denoise"][0].attributes
    assert denoise["medv.tokens"] == usage["completion_tokens"]
    assert denoise["medv.prompt_tokens"] == usage["prompt_tokens"]
    assert 1 <= denoise["medv.forward_passes"] <= 8
    # one after the other
    order = [parts[name][0] for name in ("decode pictures", "queue", "vision", "denoise", "answer")]
    for before, after in zip(order, order[1:], strict=False):
        assert before.start_time <= after.start_time


def test_several_answers_and_several_requests(app: App, exporter: InMemorySpanExporter) -> None:
    assert ask(app, body_of(n=3)).status == 200
    root, parts = spans(exporter)
    assert root.attributes["medv.answers"] == 3
    assert {one.attributes["medv.answer"] for one in parts["denoise"]} == {0, 1, 2}
    ask_all(app, [body_of(seed=i) for i in range(4)])
    found = exporter.get_finished_spans()
    assert len({one.context.trace_id for one in found}) == 4
    assert len(found) == 4 * 6


@pytest.mark.parametrize(
    ("sent", "goes_on"),
    [(PARENT, True), (PARENT[:-1], False), ("00-" + "0" * 32 + PARENT[35:], False), ("", False)],
)
def test_a_clients_trace_goes_on(
    app: App, exporter: InMemorySpanExporter, sent: str, goes_on: bool
) -> None:
    headers = {"traceparent": sent, "tracestate": "a=Erika", "baggage": "name=Erika"}
    get(app, "/version", headers=headers)
    root, _ = spans(exporter)
    assert (f"{root.context.trace_id:032x}" == PARENT[3:35]) is goes_on
    assert (root.parent is not None) is goes_on
    assert "Erika" not in root.to_json()


def test_a_refusal_has_its_code_and_no_parts(app: App, exporter: InMemorySpanExporter) -> None:
    refused = {
        "E1706": body_of(model="nobody"),
        "E1701": body_of(patient="Erika"),
        "E1301": body_of(messages=[message(" ")]),
    }
    for code, body in refused.items():
        reply = ask(app, body)
        root, parts = spans(exporter)
        assert reply.error["code"] == code
        assert root.attributes["medv.outcome"] == code
        assert root.attributes["http.response.status_code"] == reply.status
        assert root.status.status_code.name == "UNSET"  # the client's own
        assert not root.status.description
        assert "queue" not in parts


def test_names_of_spans_are_a_closed_list(app: App, exporter: InMemorySpanExporter) -> None:
    get(app, "/v1/models/Erika")
    get(app, "/Erika?patient=Erika")
    ask(app, b"", method="ERIKA", path="/v1/models")
    names = []
    for one in exporter.get_finished_spans():
        names.append(one.name)
        assert "rika" not in one.to_json().lower().replace("america", "")
    assert names == ["GET /v1/models", "GET other", "_OTHER /v1/models"]


def test_a_clock_that_is_set_back_makes_no_negative_span(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with Tracing(provider).tracing({"headers": [], "method": "GET"}) as trace:
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        with part("work") as made:
            made.attributes["rows"] = 2
        trace.add("backwards", 2.0, 1.0)
        trace.end("/", "none")
        trace.add("late", 0.0, 1.0)  # its request is over
        trace.note(late=1)
    assert current() is None
    finished = {one.name: one for one in exporter.get_finished_spans()}
    assert set(finished) == {"GET /", "work", "backwards"}
    assert all(one.start_time <= one.end_time for one in finished.values())
    root = finished["GET /"]
    assert root.start_time > 10**18
    assert root.attributes == {"http.request.method": "GET", "http.route": "/"}
    assert current() is None


def test_an_answer_5xx_is_an_error(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for status in ("200", "499", "503"):
        with Tracing(provider).tracing({"headers": [], "method": "GET"}) as trace:
            trace.end("/", status)
    states = [one.status.status_code.name for one in exporter.get_finished_spans()]
    assert states == ["UNSET", "UNSET", "ERROR"]


def test_without_an_endpoint_nothing_is_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a trace was begun")

    monkeypatch.setattr(Trace, "__init__", never)
    monkeypatch.setattr(service, "settings", settings_of(ongoing=200))
    before = list(service.beside)
    assert ask(make_app(service, NO_KEYS), body_of()).status == 200
    assert service.beside == before
    assert open_tracing(TracingSettings()) is None


def test_the_exporters_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TracingSettings(endpoint="http://127.0.0.1:4318")
    monkeypatch.setattr(traces, "find_spec", lambda name: None)
    for ask_for in (check_tracing, open_tracing):
        with pytest.raises(SettingsError, match=r"E1003.*medv-ray\[otel\]"):
            ask_for(settings)
    check_tracing(TracingSettings())
    for wrong in ("127.0.0.1:4318", "http://user:key@host", "file:///a"):
        with pytest.raises(ValidationError):
            TracingSettings(endpoint=wrong)


def test_a_collector_gets_them(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(traces.EXPORTER)
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    got: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/otlp/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response_only(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    settings = settings_of(ongoing=200).model_copy(
        update={"tracing": TracingSettings(endpoint=f"{address}/otlp/")}
    )
    monkeypatch.setattr(service, "settings", settings)
    monkeypatch.setattr(service, "beside", [])
    assert ask(make_app(service, NO_KEYS), body_of()).status == 200
    service.beside[0]()
    server.shutdown()
    server.server_close()
    [resource] = got[0].resource_spans
    assert "medv_ray" in {one.value.string_value for one in resource.resource.attributes}
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == sorted(
        ["decode pictures", "queue", "vision", "denoise", "answer", f"POST {CHAT}"]
    )


def test_a_collector_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(traces.EXPORTER)
    monkeypatch.setattr(traces, "CLOSE_S", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        tracing = open_tracing(TracingSettings(endpoint=address))
        assert tracing is not None
        with tracing.tracing({"headers": [], "method": "GET"}) as trace:
            trace.end("/", "200")
        began_s = time.monotonic()
        tracing.close()
        assert time.monotonic() - began_s < 3
