"""Kind 99: what clients send, and how."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2

from medv_ray.serving import guard
from medv_ray.serving.app import make_app
from medv_ray.serving.auth import Keys
from medv_ray.serving.guard import App, Message
from medv_ray.serving.options import FetchSettings
from tests.corpus.bench import Bench, hearing, replied, sent
from tests.corpus.kinds import Kind, Outcome
from tests.corpus.sound import QUESTION, sound
from tests.unit.serving.client import KEY, Connection, body_of, encoded, message
from tests.unit.serving.conftest import KEYS, NO_KEYS, settings_of

Send = Callable[[Bench], Outcome]
HOST = "images.example.org"
MIB = 2**20


@contextlib.contextmanager
def app_of(bench: Bench, keys: Keys = NO_KEYS, **changes: Any) -> Iterator[App]:
    """The bench's service behind other limits, or with hosts to fetch from."""
    fetch = changes.pop("fetch", None)
    settings = settings_of(ongoing=200, per_key=200, **changes)
    if fetch is not None:
        settings = settings.model_copy(update={"fetch": fetch})
    with mock.patch.object(bench.service, "settings", settings):
        yield make_app(bench.service, keys)


def of(body: Any, keys: Keys = NO_KEYS, **named: Any) -> Callable[[Path], Send]:
    """A request that is sent whole; `body` may be a function that makes it."""

    def send(bench: Bench) -> Outcome:
        given = body() if callable(body) else body
        with app_of(bench, keys) as app, hearing() as heard:
            return replied(sent(app, given, **named), heard)

    return lambda folder: send


def asked(**fields: Any) -> dict[str, Any]:
    return body_of(messages=[message(QUESTION, sound())], **fields)


def with_field(text: str) -> str:
    """A sound request, and a field that JSON's writer would not write."""
    return f"{json.dumps(asked())[:-1]},{text}}}"


def with_url(url: str) -> dict[str, Any]:
    body = asked()
    body["messages"][0]["content"][0]["image_url"]["url"] = url
    return body


def pieces(
    make: Callable[[], Any], headers: dict[str, str] | None = None, **limits: Any
) -> Callable[[Path], Send]:
    """A body that comes in pieces."""

    def send(bench: Bench) -> Outcome:
        with (
            app_of(bench, **limits) as app,
            hearing() as heard,
            mock.patch.object(guard, "LINGER_S", 0.05),
        ):
            return replied(asyncio.run(Connection(make(), headers=headers).run(app)), heard)

    return lambda folder: send


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 65536


def slowloris(bench: Bench) -> Outcome:
    """A byte every 20 ms, where all must be there after 0.2 s."""

    async def drip(app: App) -> Any:
        connection = Connection(b"")

        async def receive() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"{", "more_body": True}

        connection.receive = receive  # type: ignore[method-assign]
        return await connection.run(app)

    with app_of(bench, body_seconds=0.2) as app, hearing() as heard:
        return replied(asyncio.run(drip(app)), heard)


def vanishing(bench: Bench) -> Outcome:
    """The client leaves after the first event; its request must leave the running batch."""

    async def run(app: App) -> None:
        connection = Connection(encoded(asked(stream=True)))
        send = connection.send

        async def sending(event: Message) -> None:
            await send(event)
            if event["type"] == "http.response.body":
                connection.left.set()

        connection.send = sending  # type: ignore[method-assign]
        await connection.run(app)
        while bench.service.scheduler.ongoing:
            await asyncio.sleep(0.005)

    with app_of(bench) as app, hearing() as heard:
        asyncio.run(asyncio.wait_for(run(app), 300))
    return Outcome("cancelled", heard.all)


def slow_reader(bench: Bench) -> Outcome:
    """Takes nothing until another's request is answered and its own is done."""

    async def run(app: App) -> Any:
        connection, goes_on = Connection(encoded(asked(stream=True))), asyncio.Event()
        send = connection.send

        async def stalled(event: Message) -> None:
            if event["type"] == "http.response.body":
                await goes_on.wait()
            await send(event)

        connection.send = stalled  # type: ignore[method-assign]
        task = asyncio.ensure_future(connection.run(app))
        other = await Connection(encoded(asked())).run(app)
        assert other.status == 200
        while bench.service.scheduler.ongoing:
            await asyncio.sleep(0.005)
        goes_on.set()
        return await task

    with app_of(bench) as app, hearing() as heard:
        reply = asyncio.run(asyncio.wait_for(run(app), 300))
    assert reply.events[-1]["choices"][0]["finish_reason"]
    return Outcome("answered", heard.all)


def fetched(address: str, status: int = 200) -> Callable[[Path], Send]:
    """A host that pictures may come from, whose name leads to an address, or which leads on."""

    def send(bench: Bench) -> Outcome:
        reply = httpx2.Response(status, headers={"location": "http://127.0.0.1/"}, content=b"x")
        client = partial(httpx2.Client, transport=httpx2.MockTransport(lambda _: reply))
        found = [(2, 1, 6, "", (address, 443))]
        with (
            app_of(bench, fetch=FetchSettings(hosts=(HOST,))) as app,
            hearing() as heard,
            mock.patch.object(socket, "getaddrinfo", return_value=found),
            mock.patch.object(httpx2, "Client", client),
        ):
            return replied(sent(app, with_url(f"https://{HOST}/a.png")), heard)

    return lambda folder: send


def kinds() -> Iterator[Kind]:
    def one(name: str, want: str, note: str = "", **cases: Any) -> Kind:
        made = {case.replace("_", " "): make for case, make in cases.items()}
        if len(made) == 1:
            made = {"": next(iter(made.values()))}
        return Kind(99, name, want, made, note=note)

    def numbers(name: str, *fields: str) -> Kind:
        cases = {field.replace('"', "")[:24]: of(with_field(field)) for field in fields}
        return Kind(99, name, "E1701 E1001 E1002", cases)

    yield one(
        "300 MiB",
        "E1703",
        announced=pieces(lambda: [b"x" * MIB] * 300, {"content-length": str(300 * MIB)}),
        chunked=pieces(lambda: [b"x" * MIB] * 300),
    )
    yield one("chunks without end", "E1703", whole=pieces(endless))
    yield one("a byte at a time", "E1709", whole=lambda folder: slowloris)
    yield one(
        "gzip bomb",
        "E1710",
        whole=of(lambda: gzip.compress(bytes(100 * MIB), 1), headers={"content-encoding": "gzip"}),
    )
    yield one(
        "other content type", "E1710", whole=of(asked(), headers={"content-type": "text/html"})
    )
    yield one(
        "10^6 messages",
        "E1701",
        whole=of(lambda: '{"model":"m","messages":[' + "{}," * 10**6 + "{}]}"),
    )
    yield one("JSON 100,000 deep", "E1701", whole=of("[" * 100_000 + "]" * 100_000))
    yield numbers(
        "numbers beyond all bounds",
        '"n":1000000000',
        '"max_tokens":-1',
        '"max_tokens":1000000000000',
        '"diffusion":{"steps":0}',
        '"diffusion":{"steps":NaN}',
        '"n":' + "9" * 4200,
    )
    yield one("base64 that is none", "E1701", whole=of(with_url("data:image/png;base64,%%%%")))
    yield one(
        "URL of a file, of this machine",
        "E1704 E1701",
        **{
            url: of(with_url(url))
            for url in (
                "file:///etc/passwd",
                "http://169.254.169.254/latest/meta-data/",
                "http://[::ffff:127.0.0.1]/a.png",
            )
        },
    )
    yield one(
        "allowed host: rebound to this machine, redirects",
        "E1704",
        private=fetched("127.0.0.1"),
        mapped=fetched("::ffff:169.254.169.254"),
        redirect=fetched("93.184.215.14", 302),
    )
    yield one(
        "64 pictures",
        "E1701",
        whole=of(lambda: body_of(messages=[message(QUESTION, *[sound()] * 64)])),
    )
    yield one("client leaves in the middle", "ok", whole=lambda folder: vanishing)
    yield one("reader that stands still", "ok", whole=lambda folder: slow_reader)
    yield one(
        "no key, wrong key",
        "E1702",
        none=of(asked(), KEYS),
        wrong=of(asked(), KEYS, headers={"authorization": f"Bearer {KEY}x"}),
    )
    yield one("headers of 1 MiB", "E1711", whole=of(asked(), headers={"a": "x" * MIB}))
    yield one("path //admin/../", "E1706", whole=of(b"", method="GET", path="//admin/../"))
    yield one(
        "host of another name, without keys",
        "E1705",
        whole=of(asked(), headers={"host": "evil.example"}),
    )
