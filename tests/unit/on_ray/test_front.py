"""What a client sees of lost replicas, and of what Serve says itself: one answer, or E17xx."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from medv_ray.on_ray import front as front_module
from medv_ray.on_ray.front import LIMITS, Front, middlewares
from medv_ray.serving import guard
from medv_ray.serving.app import make_app
from medv_ray.serving.auth import KEYS_FILE
from medv_ray.serving.guard import Message, Policy, Receive, Scope, Send
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.service import Service
from tests.unit.serving.client import Connection, Reply, ask, body_of, encoded, get, tiles
from tests.unit.serving.conftest import NO_KEYS, service  # noqa: F401

STACK = "Traceback: Erika-Mustermann-4711 in /home/x/replica.py"
OURS = [(b"x-medv", b"1"), (b"content-type", b"text/event-stream")]
Attempt = Callable[[Send], Awaitable[None]]


def begin(status: int = 200, headers: list[tuple[bytes, bytes]] = OURS) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def piece(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sends(*messages: Message, error: Exception | None = None) -> Attempt:
    """A replica that sends these, and is lost unless the last one ends the response."""

    async def attempt(send: Send) -> None:
        for message in messages:
            await send(message)
            await asyncio.sleep(0)
        if error is not None:
            raise error

    return attempt


LOST = sends()
"""Serve sends nothing at all then; uvicorn would answer 500."""
EVENTS = [b"data: {1}\n\n", b"data: {2}\n\n", b"data: {3}\n\ndata: [DONE]\n\n"]
STREAM = sends(begin(), *map(piece, EVENTS), piece(b"", False))


class Serve:
    """Serve's proxy: passes a request on to a replica, and gives up when the client leaves."""

    def __init__(self, *attempts: Attempt) -> None:
        self._attempts = list(attempts)
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        replica = asyncio.ensure_future(self._attempts.pop(0)(send))
        gone = asyncio.ensure_future(receive())
        done, _ = await asyncio.wait((replica, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (replica, gone):
            task.cancel()
        await asyncio.gather(replica, gone, return_exceptions=True)
        if replica in done:
            replica.result()

    def headers(self, attempt: int = 0) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.scopes[attempt]["headers"]}


REFUSED: list[str] = []
"""Codes that the last front has noted."""


def fronted(*attempts: Attempt) -> tuple[Front, Serve]:
    serve = Serve(*attempts)
    REFUSED.clear()
    return Front(serve, Policy(LimitSettings(retry_after_s=3), NO_KEYS, REFUSED.append)), serve


def unavailable(reply: Reply, code: str = "E1708") -> None:
    assert reply.status == {"E1708": 503, "E1707": 429}[code]
    assert reply.error["code"] == code
    assert reply.headers["retry-after"] == "3"
    assert "Mustermann" not in str(reply)
    assert reply.ended
    assert [code] == REFUSED


def broken_off(reply: Reply, sent: bytes) -> None:
    """What was sent already, then an error event."""
    assert reply.status == 200
    assert reply.body.startswith(sent)
    head, event, rest = reply.body[len(sent) :].rpartition(b"data: ")[0:3]
    assert (head.strip(), event) == (b"", b"data: ")
    assert json.loads(rest)["error"]["code"] == "E1708"
    assert reply.ended
    assert REFUSED == ["E1708"]


def test_an_answer_passes_as_it_is() -> None:
    front, serve = fronted(STREAM)
    reply = ask(front, b"question")
    assert (reply.status, reply.body, reply.ended) == (200, b"".join(EVENTS), True)
    assert reply.pieces[:3] == EVENTS, "event by event"
    assert not REFUSED
    assert serve.bodies == [b"question"]


@pytest.mark.parametrize(
    "lost",
    [
        LOST,
        sends(error=RuntimeError(STACK)),
        sends(begin(500, []), piece(STACK.encode(), False)),
        sends(begin()),
        sends(begin(), error=OSError(STACK)),
    ],
)
def test_lost_before_anything_was_sent(lost: Attempt, caplog: pytest.LogCaptureFixture) -> None:
    front, serve = fronted(lost, STREAM)
    with caplog.at_level(logging.DEBUG):
        reply = ask(front, b"question")
    assert (reply.status, reply.body) == (200, b"".join(EVENTS))
    assert serve.bodies == [b"question", b"question"]
    first, second = serve.headers(0), serve.headers(1)
    assert first == second
    assert len(first["x-request-id"]) == 32
    assert first["x-medv-created"].isdecimal()
    assert "Mustermann" not in caplog.text
    assert "replica was lost in attempt 1" in caplog.text


@pytest.mark.parametrize("cut", range(1, len(b"".join(EVENTS))))
def test_lost_in_the_middle_of_a_stream(cut: int) -> None:
    """Whatever the borders of both replicas' messages, the client gets each byte once."""
    whole = b"".join(EVENTS)
    front, serve = fronted(sends(begin(), piece(whole[:7][:cut]), piece(whole[7:cut])), STREAM)
    reply = ask(front, b"q")
    assert (reply.status, reply.body, reply.ended) == (200, whole, True)
    assert len(serve.bodies) == 2


@pytest.mark.parametrize(
    "second",
    [
        sends(begin(), piece(b"data: {1}\n\n"), piece(b"data: {X}\n\n"), piece(b"", False)),
        sends(begin(), piece(b"data: {1}\n\ndata: {X}\n\n" + EVENTS[2], False)),
        sends(begin(), piece(EVENTS[0], False)),  # shorter
        sends(begin(), piece(EVENTS[0]), piece(b"", False)),
        sends(begin(503), piece(b"{}", False)),
        sends(begin(500, []), piece(STACK.encode(), False)),
        sends(begin(429, []), piece(STACK.encode(), False)),
        sends(begin(503, []), piece(STACK.encode(), False)),
        sends(begin(), piece(EVENTS[0])),
        sends(begin(), piece(EVENTS[0] + EVENTS[1])),
        LOST,
        sends(error=RuntimeError(STACK)),
    ],
)
def test_a_second_stream_that_is_another_ends_with_an_error_event(second: Attempt) -> None:
    sent = EVENTS[0] + EVENTS[1]
    front, serve = fronted(sends(begin(), *map(piece, EVENTS[:2])), second)
    reply = ask(front, b"q")
    broken_off(reply, sent)
    assert "Mustermann" not in str(reply)
    assert len(serve.bodies) == 2


def test_both_lost() -> None:
    for first in (LOST, sends(begin(500, []), piece(STACK.encode(), False)), sends(begin())):
        front, serve = fronted(first, LOST)
        unavailable(ask(front, b"q"))
        assert len(serve.bodies) == 2


def test_a_whole_answer_that_was_cut_is_not_patched() -> None:
    """Its length was told: an error event would be read as a part of it."""
    whole = [*OURS[:1], (b"content-length", b"10")]
    front, _ = fronted(sends(begin(200, whole), piece(b"01234")), LOST)
    reply = ask(front, b"q")
    assert (reply.body, reply.ended) == (b"01234", False)
    front, _ = fronted(
        sends(begin(200, whole), piece(b"01234")),
        sends(begin(200, whole), piece(b"0123456789", False)),
    )
    reply = ask(front, b"q")
    assert (reply.body, reply.ended) == (b"0123456789", True)
    front, _ = fronted(
        sends(begin(200, whole)), sends(begin(200, whole), piece(b"abcdefghij", False))
    )
    assert ask(front, b"q").body == b"abcdefghij"


@pytest.mark.parametrize("status", [404, 408, 429, 499, 500, 503, 301, 200])
def test_serves_own_words_never_reach_a_client(status: int) -> None:
    own = sends(
        begin(status, [(b"content-type", b"text/plain"), (b"x-stack", STACK.encode())]),
        piece(STACK.encode()),
        piece(STACK.encode(), False),
    )
    front, serve = fronted(own, own)
    unavailable(ask(front, b"q"), "E1707" if status == 429 else "E1708")
    assert len(serve.bodies) == (2 if status == 500 else 1)


def test_a_replicas_own_errors_pass() -> None:
    body = b'{"error": {"message": "m.", "type": "t", "param": null, "code": "E1509"}}'
    for status in (400, 404, 429, 500, 503):
        headers = [(b"X-Medv", b"1"), (b"retry-after", b"9")]
        front, serve = fronted(sends(begin(status, headers), piece(body, False)))
        reply = ask(front, b"q")
        assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, body, "9")
        assert len(serve.bodies) == 1


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_nobody_asks_again_for_a_client_that_left(sent: int) -> None:
    async def run() -> None:
        connection = Connection(b"q")

        async def attempt(send: Send) -> None:
            await sends(*[begin(), piece(EVENTS[0])][:sent])(send)
            connection.left.set()
            await asyncio.sleep(5)

        front, serve = fronted(attempt, STREAM)
        await asyncio.wait_for(connection.run(front), 2)
        assert len(serve.bodies) == 1
        assert not connection.reply.ended

    asyncio.run(run())


def test_serves_paths_of_its_own() -> None:
    front, serve = fronted(STREAM)
    for path in ("/-/routes", "/-/", "/-/x", "/-/healthz/", "/-/healthz/x"):
        reply = get(front, path)
        assert (reply.status, reply.error["code"]) == (404, "E1706")
    assert not serve.scopes
    own = sends(begin(200, []), piece(b"success", False))
    front, serve = fronted(own)
    # a load balancer asks from elsewhere, without a key
    assert get(front, "/-/healthz", client=("10.0.0.1", 1)).body == b"success"


def test_a_client_cannot_tell_serve_what_to_do() -> None:
    front, serve = fronted(STREAM)
    names = (
        *("serve_multiplexed_model_id", "serve-multiplexed-model-id"),
        *("serve_multiplexed-model_id", "Serve-Multiplexed_Model-Id", "x-session-id"),
        *("x-request-timeout-seconds", "x-request-disconnect-disabled"),
        *("X-Request-Timeout-Seconds", "x_request_disconnect_disabled"),
    )
    steering = dict.fromkeys(names, "?1")
    ask(front, b"q", headers={**steering, "x-medv-created": "1", "x-other": "kept"})
    found = serve.headers()
    assert not set(found) & {name.lower() for name in steering}
    assert found["x-other"] == "kept"
    assert int(found["x-medv-created"]) > 1.6e9


@pytest.mark.parametrize("given", ["mine-1", "a" * 64])
def test_a_plain_request_id_is_kept(given: str) -> None:
    front, serve = fronted(LOST, STREAM)
    ask(front, b"q", headers={"x-request-id": given})
    seen = [serve.headers(i) for i in (0, 1)]
    assert [headers["x-medv-request-id"] for headers in seen] == [given, given]
    # Serve logs the one that it knows
    assert all(len(headers["x-request-id"]) == 32 for headers in seen)


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "\xff\xfe", "x\ny", "é"])
def test_an_odd_request_id_is_replaced_once_for_both_attempts(given: str) -> None:
    """Each replica would make up its own, and their bytes would differ."""
    front, serve = fronted(LOST, STREAM)
    ask(front, b"q", headers={"x-request-id": given})
    first, second = (serve.headers(i)["x-medv-request-id"] for i in (0, 1))
    assert first == second
    assert len(first) == 32


def test_a_client_cannot_hand_on_an_id_past_the_front() -> None:
    front, serve = fronted(STREAM)
    ask(front, b"q", headers={"x-request-id": "mine", "x-medv-request-id": "other"})
    assert serve.headers(0)["x-medv-request-id"] == "mine"


def test_the_guard_stands_in_front() -> None:
    front, serve = fronted(STREAM)
    reply = ask(front, b"x" * 2**20, client=("10.0.0.1", 1))
    assert (reply.status, reply.error["code"]) == (403, "E1705")
    assert not serve.scopes
    assert REFUSED == ["E1705"]


def test_the_environment_tells_limits_and_keys(tmp_path: Any, monkeypatch: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("alice key-of-alice-0123456789\n")
    monkeypatch.setenv(KEYS_FILE, str(file))
    monkeypatch.setattr(guard, "LINGER_S", 0.0)
    monkeypatch.setenv(LIMITS, LimitSettings(max_body_bytes=10).model_dump_json())
    (made,) = middlewares()
    serve = Serve(STREAM)
    front = made.cls(serve, *made.args, **made.kwargs)
    assert ask(front, b"q").status == 401
    key = {"authorization": "Bearer key-of-alice-0123456789"}
    assert ask(front, b"x" * 11, headers=key).status == 413
    assert ask(front, b"q", headers=key).status == 200


# with the endpoint itself in place of a replica


class Losing:
    """The endpoint, whose first replica is lost after some bytes of the response."""

    def __init__(self, app: Any, after: int) -> None:
        self._app, self._after = app, after
        self.attempts = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.attempts += 1
        if self.attempts > 1:
            await self._app(scope, receive, send)
            return
        left = [self._after]

        async def cut(message: Message) -> None:
            if message["type"] == "http.response.body":
                data = message.get("body", b"")[: left[0]]
                left[0] -= len(data)
                if left[0]:
                    await send(message)
                    return
                await send({**message, "body": data, "more_body": True})
                raise ConnectionError
            else:
                await send(message)

        await self._app(scope, receive, cut)


@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_of_two_replicas_is_that_of_one(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    monkeypatch.setattr(front_module.time, "time", lambda: 1.7e9)
    options = {"stream_options": {"include_denoise": True}} if stream else {}
    caption = {"gen_length": 24, "block_length": 24, "steps": 6, "temperature": 0.7}
    body = encoded(body_of(tiles()[1], stream=stream, n=2, seed=9, diffusion=caption, **options))
    app = make_app(service, NO_KEYS)
    headers = {"x-request-id": "one"}
    want = ask(Front(app, Policy(LimitSettings(), NO_KEYS)), body, headers=headers)
    assert want.status == 200
    assert len(want.body) > (4000 if stream else 300)
    for after in (1, 300, 1500, 4000):
        losing = Losing(app, after)
        got = ask(Front(losing, Policy(LimitSettings(), NO_KEYS)), body, headers=headers)
        assert (got.status, got.body, got.ended) == (200, want.body, True)
        assert losing.attempts == (2 if after < len(want.body) else 1)
