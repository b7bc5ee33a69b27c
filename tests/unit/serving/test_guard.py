"""What never reaches the application: too large, too slow, without a key, from elsewhere."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from medv_ray.serving import guard
from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App, Guard, Message, Policy, Receive, Scope, Send, is_open
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.service import Service
from tests.routes import BEARER, WRONG_KEYS, keyless, routes
from tests.unit.serving.client import (
    CHAT,
    KEY,
    LOCAL,
    MODEL,
    Connection,
    Reply,
    ask,
    body_of,
    encoded,
    get,
)
from tests.unit.serving.conftest import KEYS, NO_KEYS, serving

pytestmark = pytest.mark.integration


class Reached:
    """An application that takes the body and says how long it was."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.goes_on: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        if self.goes_on is not None:
            await self.goes_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(self.bodies[-1])).encode()})


def guarded(**limits: Any) -> tuple[Guard, Reached]:
    reached = Reached()
    return Guard(reached, Policy(LimitSettings(**limits), NO_KEYS)), reached


async def nothing(receive: Receive) -> None:
    """In place of reading on."""


def refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.error["code"], reply.ended) == (status, code, True)
    assert reply.headers["connection"] == "close"


def test_an_announced_length_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_throw_away", nothing)
    app, reached = guarded(max_body_bytes=100)
    connection = Connection([b"x" * 50] * 1000, headers={"content-length": "50000"})

    async def run() -> None:
        await connection.run(app)

    asyncio.run(run())
    refused(connection.reply, 413, "E1703")
    assert not reached.bodies
    assert connection.taken == 0
    for length in ("101", "9" * 19, "9" * 5000):
        big = ask(app, b"", headers={"content-length": length})
        refused(big, 413, "E1703")
        assert len(big.body) < 300
    for length in ("100", "-5", "abc", ""):  # the bytes are counted in any case
        assert ask(app, b"x" * 100, headers={"content-length": length}).body == b"100"
        refused(ask(app, b"x" * 101, headers={"content-length": length}), 413, "E1703")


def test_chunks_are_counted_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LINGER_S", 0.05)
    app, reached = guarded(max_body_bytes=100)
    assert ask_pieces(app, [b"x" * 50, b"x" * 50]).body == b"100"
    assert ask_pieces(app, [b""] * 1000 + [b"x"]).body == b"1"
    refused(ask_pieces(app, [b"x" * 50, b"x" * 50, b"x"]), 413, "E1703")
    connection = Connection(endless())

    async def run() -> None:
        await connection.run(app)

    started_s = time.monotonic()
    asyncio.run(run())
    refused(connection.reply, 413, "E1703")
    assert time.monotonic() - started_s < 10
    assert len(reached.bodies) == 2


def ask_pieces(app: App, pieces: list[bytes]) -> Reply:
    return asyncio.run(Connection(pieces).run(app))


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 60


def test_a_body_may_not_take_for_ever() -> None:
    app, reached = guarded(body_seconds=0.15)

    async def drip() -> Reply:
        connection = Connection(b"y" * 1000)

        async def receive() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"y", "more_body": True}

        connection.receive = receive  # type: ignore[method-assign]
        return await connection.run(app)

    async def silent() -> Reply:
        connection = Connection(b"")
        connection.receive = asyncio.Event().wait  # type: ignore[method-assign,assignment]
        return await connection.run(app)

    for way in (drip, silent):
        started_s = time.monotonic()
        refused(asyncio.run(way()), 408, "E1709")
        assert 0.1 < time.monotonic() - started_s < 10
    assert not reached.bodies


def test_who_leaves_in_the_middle_of_a_body_holds_nothing() -> None:
    app, reached = guarded()

    async def run() -> None:
        connection = Connection([b"x" * 1000] * 10)
        receive = connection.receive

        async def leaving() -> Message:
            connection.left.set() if connection.taken >= 3000 else None
            return await receive()

        connection.receive = leaving  # type: ignore[method-assign]
        await connection.run(app)

    asyncio.run(run())
    assert not reached.bodies
    assert app._held_bytes == 0


@pytest.mark.parametrize("name", ["gzip", "br", "GZIP", "gzip, identity", "x"])
def test_a_compressed_body_is_not_unpacked(name: str) -> None:
    app, reached = guarded()
    refused(ask(app, b"x" * 50, headers={"content-encoding": name}), 415, "E1710")
    assert not reached.bodies
    assert ask(app, b"x", headers={"content-encoding": "Identity"}).status == 200


def test_headers_are_bounded_all_together() -> None:
    app, reached = guarded(max_header_bytes=2000)
    assert ask(app, b"", headers={"a": "x" * 1800}).status == 200
    refused(ask(app, b"", headers={"a": "x" * 2000}), 431, "E1711")
    refused(ask(app, b"", headers={f"a{i}": "" for i in range(1000)}), 431, "E1711")
    refused(ask(app, b"", path=f"{CHAT}?q={'x' * 2000}"), 431, "E1711")
    refused(ask(app, b"", path="/" + "x" * 2000), 431, "E1711")
    assert len(reached.bodies) == 1


def test_all_bodies_together_are_bounded_while_they_arrive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "BODIES_BYTES", 1000)
    monkeypatch.setattr(guard, "LINGER_S", 0.0)
    app, reached = guarded()

    async def run() -> None:
        reached.goes_on = asyncio.Event()
        slow = [Connection([b"x" * 300, b"x" * 300]) for _ in range(2)]
        gate = asyncio.Event()
        for one in slow:
            receive, count = one.receive, [0]

            async def gated(receive: Any = receive, count: list[int] = count) -> Message:
                count[0] += 1
                if count[0] == 2:
                    await gate.wait()
                return await receive()

            one.receive = gated  # type: ignore[method-assign]
        tasks = [asyncio.ensure_future(one.run(app)) for one in slow]
        await asyncio.sleep(0.02)
        assert app._held_bytes == 600
        refused(await Connection(b"x" * 500).run(app), 429, "E1707")
        assert app._held_bytes == 600
        tasks.append(asyncio.ensure_future(Connection(b"x" * 400).run(app)))
        await asyncio.sleep(0.02)
        gate.set()
        reached.goes_on.set()
        replies = await asyncio.gather(*tasks)
        assert sorted(reply.status for reply in replies).count(200) >= 1
        assert {reply.status for reply in replies} <= {200, 429}
        assert app._held_bytes == 0
        assert (await Connection(b"x" * 1000).run(app)).status == 200

    asyncio.run(run())


# keys


def test_every_route_and_method_asks_for_a_key(service: Service) -> None:
    app = make_app(service, KEYS)
    found = routes(app)
    assert len(found) >= 9 * 8
    assert ("/v1/chat/completions", "POST") in found
    asked = 0
    for _, method, reply in keyless(app, found):
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        if method != "HEAD":
            refused(reply, 401, "E1702")
        asked += 1
    assert asked == 2 * len(found) + len(WRONG_KEYS) - 2
    for path, method in found:
        reply = ask(app, encoded(body_of()), path=path, method=method, headers=BEARER)
        assert reply.status not in (401, 403, 500)
    for spelling in (f"bearer {KEY}", f"BEARER  {KEY} "):
        assert get(app, "/v1/models", headers={"authorization": spelling}).status == 200


def test_only_the_page_is_open(service: Service) -> None:
    app = make_app(service, KEYS)
    for path in ("/", "/favicon.ico", "/assets/a.js", "/-/healthz"):
        assert is_open(path)
        assert get(app, path).status in (200, 404)
    for path in ("/assets", "/assetsx", "/v1/models", "/assets/../v1/models", "//", "/-/routes"):
        assert get(app, path).status in (401, 404)
        assert path.startswith("/assets/") or not is_open(path)
    for name in ("..", "%2e%2e", "../app.py", "..%2fapp.py", "a\0b", "x" * 5000):
        assert get(app, f"/assets/{name}").status == 404


def test_without_keys_only_this_machine_is_answered(app: App) -> None:
    for client in (LOCAL, ("127.9.9.9", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)):
        assert get(app, "/v1/models", client=client).status == 200
    for client in (
        *(("10.0.0.1", 1), ("192.168.1.9", 1), ("8.8.8.8", 1), ("::ffff:10.0.0.1", 1)),
        *(("fe80::1", 1), ("localhost", 1), ("", 0), ("testclient", 1), ("0.0.0.0", 1), None),
    ):
        reply = get(app, "/v1/models", client=client)
        refused(reply, 403, "E1705")
        # nothing that a client says of itself helps
        for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-client-ip"):
            headers = {name: "for=127.0.0.1" if name == "forwarded" else "127.0.0.1"}
            refused(get(app, "/v1/models", client=client, headers=headers), 403, "E1705")
        for path in ("/", "/health", "/metrics", "/openapi.json", "/assets/x.js"):
            refused(get(app, path, client=client), 403, "E1705")


def test_without_keys_no_other_name_leads_here(app: App) -> None:
    """DNS rebinding: a page of another site asks its own name, which leads to this machine."""
    for host in ("localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000"):
        assert get(app, "/v1/models", headers={"host": host}).status == 200
    for host in (
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("10.0.0.1", "", "localhost@evil.example", "evil.example:localhost", "[::2]:80"),
        *("127.0.0.2", "0.0.0.0", "xlocalhost", "localhost:8000:evil.example"),
    ):
        for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/")):
            reply = ask(app, b"{}", method=method, path=path, headers={"host": host})
            refused(reply, 403, "E1705")


def test_a_form_of_another_site_is_not_taken(app: App) -> None:
    body = encoded(body_of())
    for kind in (
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("", "application/jsonx", "text/json", "application/xml"),
    ):
        reply = ask(app, body, headers={"content-type": kind})
        assert (reply.status, reply.error["code"]) == (415, "E1710")
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert ask(app, body, headers={"content-type": kind}).status == 200


# over a socket


def test_a_refused_large_body_still_gets_its_answer(address: str) -> None:
    """Closed with unread bytes, the client's system would drop the answer."""
    big: Any = [{"role": "user", "content": "x" * 12_000_000}]
    huge: Any = [{"role": "user", "content": "x" * 24_000_000}]
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=MODEL, messages=huge)
        assert (caught.value.status_code, caught.value.code) == (413, "E1703")  # type: ignore[attr-defined]
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="nobody").chat.completions.create(model=MODEL, messages=big)
        assert client.models.list().data


def talk(address: str, sent: bytes, wait_s: float = 5.0) -> bytes:
    """What a server says to some bytes, until it closes."""
    host, port = address.removeprefix("http://").split(":")
    got = b""
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(sent)
        while piece := connection.recv(65536):
            got += piece
    return got


def test_a_websocket_is_refused(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    headers = (
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    got = talk(address, headers.encode())
    assert b" 403 " in got.splitlines()[0]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_websocket_is_closed_before_it_opens() -> None:
    app, reached = guarded()
    sent: list[Message] = []

    async def run() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        await app({"type": "websocket", "path": "/", "headers": []}, Connection().receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert not reached.bodies


def test_slow_and_broken_senders_over_a_socket(service: Service, limited: Any) -> None:
    with serving(limited(body_seconds=0.3)) as address:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        started_s = time.monotonic()
        got = talk(address, f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert b" 408 " in got.splitlines()[0]
        assert b"E1709" in got
        assert time.monotonic() - started_s < 3
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
        assert b"E1709" in talk(address, chunked.encode())
        both = f"{head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert b" 200 " not in talk(address, both.encode()).splitlines()[0]
        assert b" 400 " in talk(address, b"\x16\x03\x01\x02\x00\x01\r\n\r\n").splitlines()[0]
        body = json.dumps(body_of()).encode()
        whole = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        assert b" 200 " in talk(address, whole).splitlines()[0]
