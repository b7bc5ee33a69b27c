"""Spans of OpenTelemetry for each request, where `tracing.endpoint` is set.

A span holds times, sizes, counts, the name of a model of this endpoint and codes of errors: nothing
that a client has written, but for the trace id that its `traceparent` names. Without an endpoint
nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from medv_ray import __version__
from medv_ray.engine.request import Answer
from medv_ray.errors import SettingsError
from medv_ray.serving.options import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from medv_ray.serving.guard import Scope

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
CLOSE_S = 3.0
_CURRENT: ContextVar[Trace | None] = ContextVar("medv_trace", default=None)


class Tracing:
    """Makes the traces of an endpoint."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("medv_ray", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def tracing(self, scope: Scope) -> Iterator[Trace]:
        """A request's trace, which is `current()` inside; it goes on with the client's, if the
        client sent one. Of its headers `tracestate` and `baggage` are left out: they hold text."""
        given = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        carrier = {"traceparent": given.decode("latin-1")}
        trace = Trace(self._tracer, self._propagator.extract(carrier), scope["method"])
        token = _CURRENT.set(trace)
        try:
            yield trace
        finally:
            _CURRENT.reset(token)

    def close(self) -> None:
        """Send what waits, and end the exporter's thread; a collector that does not answer is not
        waited for, whatever time-outs the exporter has."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_S)


class Trace:
    """The spans of one request. Times are monotonic ones, so that a clock that is set meanwhile
    makes no negative span."""

    def __init__(self, tracer: Any, parent: Any, method: str) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._started_s, self._started_ns = time.monotonic(), time.time_ns()
        self._tracer = tracer
        self._method = method if method in METHODS else "_OTHER"
        self._span = tracer.start_span(
            "request", context=parent, kind=SpanKind.SERVER, start_time=self._started_ns
        )
        self._inside = set_span_in_context(self._span)
        self._answered_s: float | None = None
        self._ended = False

    def note(self, **attributes: Any) -> None:
        """Of the whole request: sizes, counts, codes, names of this endpoint's own."""
        if not self._ended:
            self._span.set_attributes(_named(attributes))

    def add(self, name: str, start_s: float, end_s: float, **attributes: Any) -> None:
        """A part of the request that is over. What comes after its end is left out."""
        if self._ended:
            return
        start_ns = self._ns(start_s)
        span = self._tracer.start_span(
            name, context=self._inside, start_time=start_ns, attributes=_named(attributes)
        )
        span.end(max(start_ns, self._ns(end_s)))

    def answered(self, number: int, answer: Answer) -> None:
        """The parts of an answer that has just come; `number`: which of the request's."""
        now_s = self._answered_s = time.monotonic()
        began_s = now_s - answer.seconds
        seen_s = began_s + answer.vision_s
        self.add("queue", began_s - answer.waited_s, began_s, answer=number)
        self.add("vision", began_s, seen_s, answer=number)
        counts = {
            "forward_passes": answer.forward_passes,
            "prompt_tokens": answer.prompt_tokens,
            "tokens": len(answer.token_ids),
        }
        self.add("denoise", seen_s, now_s, answer=number, **counts)

    def end(self, route: str, status: str) -> None:
        """The request is over. `route`: one of a closed list; `status`: `none` where the client
        left before."""
        from opentelemetry.trace import StatusCode

        now_s = time.monotonic()
        if self._answered_s is not None:
            self.add("answer", self._answered_s, now_s)
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.request.method": self._method, "http.route": route})
        if status.isdigit():
            self._span.set_attribute("http.response.status_code", int(status))
            if int(status) >= 500:
                self._span.set_status(StatusCode.ERROR)
        self._ended = True
        self._span.end(self._ns(now_s))

    def _ns(self, monotonic_s: float) -> int:
        return self._started_ns + int((monotonic_s - self._started_s) * 1e9)


class Part:
    """What is to be known of a part that goes on."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


def current() -> Trace | None:
    """The trace of the request that is being answered here; None without tracing."""
    return _CURRENT.get()


@contextmanager
def part(name: str) -> Iterator[Part]:
    """A part of the current request, if that is traced."""
    made, trace, start_s = Part(), _CURRENT.get(), time.monotonic()
    try:
        yield made
    finally:
        if trace is not None:
            trace.add(name, start_s, time.monotonic(), **made.attributes)


def _named(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"medv.{name}": value for name, value in attributes.items()}


def check_tracing(settings: TracingSettings) -> None:
    """Raises SettingsError E1003 where the exporter's package is missing."""
    if settings.endpoint is None:
        return
    try:
        found = find_spec(EXPORTER)
    except ModuleNotFoundError:  # of a parent
        found = None
    if found is None:
        raise SettingsError("E1003", "tracing.endpoint: pip install 'medv-ray[otel]'.")


def open_tracing(settings: TracingSettings) -> Tracing | None:
    """None where no endpoint is named. Raises SettingsError E1003."""
    if settings.endpoint is None:
        return None
    check_tracing(settings)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": "medv_ray"}),
        sampler=ParentBased(TraceIdRatioBased(settings.share)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
