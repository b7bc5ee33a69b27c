"""What an endpoint writes about requests full of canaries, and what it says when it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from medv_ray.serving.app import make_app
from medv_ray.serving.audit import AuditLog, verify
from medv_ray.serving.service import Service
from medv_ray.serving.traces import Tracing
from tests.canary import planting, search
from tests.canary.planting import ANSWER, FILE, NUMBER, QUESTION, WORD
from tests.unit.serving.client import (
    CHAT,
    KEY,
    MODEL,
    Connection,
    ask,
    body_of,
    encoded,
    get,
    message,
    url_of,
)
from tests.unit.serving.conftest import KEYS, service

__all__ = ["service"]  # the fixture
HEADERS = {
    "authorization": f"Bearer {KEY}",
    "x-request-id": f"{WORD}-{NUMBER}",
    "user-agent": WORD,
    "referer": f"https://{WORD}.example.org/{NUMBER}",
    "x-forwarded-for": WORD,
    "cookie": f"patient={WORD}",
    "traceparent": f"00-{NUMBER}{NUMBER}00000000-{NUMBER}0000-01",
}
PICTURE = "/v1/picture"
PATH = f"{CHAT}?patient={WORD}&mrn={NUMBER}"


def asked(image: bytes | None = None, **fields: Any) -> dict[str, Any]:
    history = [
        {"role": "system", "content": f"You help {WORD}."},
        message(QUESTION, planting.png() if image is None else image),
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": f"And {WORD}?"},
    ]
    body = {"messages": history, "user": WORD, "metadata": {WORD: NUMBER}}
    return body_of(**{**body, **fields})


def refused() -> dict[str, Any]:
    """Bodies that are refused, by what is wrong."""
    picture = planting.png()
    return {
        "no JSON": f'{{"messages": "{WORD}',
        "not UTF-8": b'{"messages": "\xff' + WORD.encode(),
        "unknown field": asked(patient=WORD),  # who asks is told its name, not its value
        "unknown setting": asked(diffusion={"patient": WORD}),
        "wrong type": asked(temperature=WORD),
        "wrong number": asked(seed=-int(NUMBER)),
        "unknown model": asked(model=WORD),
        "unknown role": asked(messages=[{"role": WORD, "content": QUESTION}]),
        "unknown part": asked(messages=[{"role": "user", "content": [{"type": WORD, WORD: 1}]}]),
        "text as picture": asked(planting.everything().encode()),
        "damaged": asked(picture[: len(picture) // 2]),
        "a DICOM cut short": asked(planting.dicom()[:600]),
        "URL": asked(messages=[picture_at(f"https://{WORD}.example.org/{FILE}.png?a={NUMBER}")]),
        "file": asked(messages=[picture_at(f"file:///data/{FILE}.png")]),
        "no base64": asked(messages=[picture_at(f"data:image/png;base64,{WORD}^^")]),
        "kind": asked(messages=[picture_at(url_of(picture, WORD) + "!")]),
        "long": asked(messages=[message(QUESTION * 5000, picture)]),
        "NUL": asked(messages=[message(f"{WORD}\0", picture)]),
        "stop": asked(stop=[WORD] * 99),
        "format": asked(response_format={"type": WORD}),
    }


def look(data: bytes, **fields: Any) -> dict[str, Any]:
    """The page's question for a picture."""
    return {"model": MODEL, "image_url": {"url": url_of(data)}, **fields}


def refused_beside() -> dict[str, tuple[str, Any]]:
    """Path and body, of what the page asks beside answers."""
    picture = planting.png()
    inspected = asked(tokens=[None] * 8, position=1)
    for field in ("user", "metadata"):
        del inspected[field]
    given = {
        "field": look(picture, patient=WORD),
        "frame": look(picture, frame=WORD),
        "no such frame": look(picture, frame=7),
        "model": {**look(picture), "model": WORD},
        "text": look(planting.everything().encode()),
        "cut": look(picture[: len(picture) // 2]),
        "cut DICOM": look(planting.dicom()[:600]),
        "address": {**look(b""), "image_url": {"url": f"https://{WORD}.example.org/{FILE}"}},
        "no JSON": f'{{"image_url": "{WORD}',
    }
    states = {
        "tokens": {**inspected, "tokens": [WORD] * 8},
        "position": {**inspected, "position": int(NUMBER)},
        "a word": {**inspected, "position": WORD},
        "more": {**inspected, "patient": WORD},
    }
    return {f"picture, {what}": (PICTURE, body) for what, body in given.items()} | {
        f"state, {what}": ("/v1/inspect", body) for what, body in states.items()
    }


def picture_at(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"role": "user", "content": parts}


def test_requests(
    service: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    audit = AuditLog(str(tmp_path / "audit"))
    app = make_app(service, KEYS, audit)
    for body in (asked(), asked(stream=True), asked(planting.dicom()), asked(planting.jpeg())):
        assert ask(app, body, path=PATH, headers=HEADERS).status == 200
    inspected = asked(tokens=[None] * 8, position=1)
    for field in ("user", "metadata"):
        del inspected[field]
    assert ask(app, inspected, path="/v1/inspect?p=" + WORD, headers=HEADERS).status == 200
    for data in (planting.png(), planting.dicom(), planting.tiff()):
        for frame in ({}, {"frame": 1}):
            shown = ask(app, look(data, **frame), path=f"{PICTURE}?p={WORD}", headers=HEADERS)
            assert shown.status == 200
            assert search.hits(shown.body + repr(shown.headers).encode()) == []
    for what, (path, body) in refused_beside().items():
        reply = ask(app, body, path=path, headers=HEADERS)
        assert 400 <= reply.status < 500, what
        assert search.hits(reply.body + repr(reply.headers).encode()) == [], what
    for what, body in refused().items():
        reply = ask(app, body, path=PATH, headers=HEADERS)
        assert 400 <= reply.status < 500, what
        said = reply.body + repr(reply.headers).encode()
        assert search.hits(said) == [], what
    strange = {**HEADERS, "authorization": f"Bearer {WORD}{NUMBER}"}
    for reply in (
        ask(app, asked(), path=PATH, headers=strange),
        ask(app, asked(), path=PATH, headers={**HEADERS, "content-type": f"text/{WORD}"}),
        ask(app, asked(), path=f"/v1/{WORD}?{NUMBER}", headers=HEADERS),
        get(app, f"/v1/models/{WORD}", headers=HEADERS),
        get(app, f"/assets/{WORD}.js", headers=HEADERS),
        ask(app, asked(), path=CHAT, method="PUT", headers=HEADERS),
    ):
        assert 400 <= reply.status < 500
        assert search.hits(reply.body + repr(reply.headers).encode()) == []
    _leave(app)
    with monkeypatch.context() as patch:  # a defect whose text holds the question

        def defect(*given: object, **named: object) -> None:
            raise ValueError(f"{QUESTION} {planting.everything()}")

        patch.setattr(service, "decode", defect)
        for stream in (False, True):
            reply = ask(app, asked(stream=stream), path=PATH, headers=HEADERS)
            assert search.hits(reply.body) == []
            assert reply.error["code"] == "E1509"
    metrics = get(app, "/metrics", headers=HEADERS)
    assert b"medv_requests" in metrics.body
    openapi = get(app, "/openapi.json", headers=HEADERS)
    assert search.hits(metrics.body + openapi.body) == []
    audit.close()
    found = verify(str(tmp_path / "audit"))
    assert found.broken is None
    assert found.lines >= 8
    assert search.in_folder(tmp_path) == []
    said = capfd.readouterr()
    logs = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert search.in_text(said.out, said.err, *logs) == []
    assert logs  # the defects


def _leave(app: Any) -> None:
    """A client that goes in the middle."""

    async def run() -> None:
        for stream in (False, True):
            body = encoded(asked(stream=stream))
            connection = Connection(body, path=PATH, headers=HEADERS)
            connection.left.set()
            await asyncio.wait_for(connection.run(app), 30)

    asyncio.run(run())


def test_bodies_are_canaries() -> None:
    for what, body in refused().items():
        with search.planted():
            assert search.hits(encoded(body)), what
    with search.planted():
        assert search.in_text(json.dumps(HEADERS))


def test_spans_hold_nothing_of_a_request(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the trace id of a `traceparent`, which is whatever its client made it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(service, "beside", [])
    app = make_app(service, KEYS, tracing=Tracing(provider))
    headers = {**HEADERS, "traceparent": f"00-{WORD}", "tracestate": f"a={WORD}"}
    for stream in (False, True):
        assert ask(app, asked(stream=stream), headers=headers, path=PATH).status == 200
    for body in refused().values():
        ask(app, body, headers=headers, path=PATH)
    for path, body in refused_beside().values():
        ask(app, body, headers=headers, path=path)
    get(app, f"/v1/models/{WORD}", headers=headers)
    ask(app, asked(), headers=headers, method=WORD, path=f"/{WORD}")
    said = "\n".join(span.to_json() for span in exporter.get_finished_spans())
    assert said.count('"name": "denoise"') == 2
    assert search.hits(said.encode()) == []
