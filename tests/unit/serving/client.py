"""A client inside the process: ASGI by hand, and what requests are made of."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from medv_ray.data.synthetic import Row, rows
from medv_ray.errors import CATALOGUE
from medv_ray.serving.guard import App, Message

MODEL = "medv-tiny"
KEY = "key-of-alice-0123456789"
CHAT = "/v1/chat/completions"
LOCAL = ("127.0.0.1", 50000)


@cache
def tiles() -> list[Row]:
    """Four synthetic tiles, a question and a caption of each."""
    return list(rows(4, seed=5, per_image=1, captions=True, size_wh=(64, 64)))


def url_of(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def message(text: str, *images: bytes, role: str = "user") -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url_of(image)}} for image in images
    ]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def body_of(row: Row | None = None, **fields: Any) -> dict[str, Any]:
    """A request about a tile."""
    row = row or tiles()[0]
    return {"model": MODEL, "messages": [message(row.question, row.image)], **fields}


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    ended: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """What stands under `error`; its shape is checked."""
        (shown,) = self.json().values()
        assert set(shown) == {"message", "type", "param", "code"}
        assert shown["code"] in CATALOGUE
        assert shown["message"]
        assert shown["message"].endswith((".", "!")), shown
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-medv"] == "1"
        assert ("retry-after" in self.headers) == (self.status in (429, 503))
        return shown

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a stream that has ended as it should."""
        *found, last = self.body.decode().split("\n\n")[:-1]
        assert last == "data: [DONE]"
        return [json.loads(one.removeprefix("data: ")) for one in found]


class Connection:
    """One request on its way: what the client sends, and what it has got."""

    def __init__(
        self,
        body: bytes | Iterable[bytes] = b"",
        *,
        method: str = "POST",
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        client: tuple[str, int] | None = LOCAL,
    ) -> None:
        self._pieces = iter([body] if isinstance(body, bytes) else body)
        self.reply = Reply()
        self.left = asyncio.Event()
        """Set: the client has closed the connection."""
        self.taken = 0
        """Bytes of the body that the application has read."""
        named = {"host": "localhost:8000", "content-type": "application/json", **(headers or {})}
        bare, _, query = path.partition("?")
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": bare,
            "raw_path": bare.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in named.items()],
            "client": client,
            "server": ("127.0.0.1", 8000),
        }
        self._next: bytes | None = next(self._pieces, b"")

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        if self._next is None or self.left.is_set():
            await self.left.wait()
            return {"type": "http.disconnect"}
        piece, self._next = self._next, next(self._pieces, None)
        self.taken += len(piece)
        return {"type": "http.request", "body": piece, "more_body": self._next is not None}

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        reply = self.reply
        assert not reply.ended
        if message["type"] == "http.response.start":
            assert not reply.status
            reply.status = message["status"]
            reply.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            assert reply.status
            reply.pieces.append(message.get("body", b""))
            reply.ended = not message.get("more_body", False)

    async def run(self, app: App) -> Reply:
        await app(self.scope, self.receive, self.send)
        return self.reply


def encoded(body: dict[str, Any] | bytes | str) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def ask(app: App, body: dict[str, Any] | bytes | str = b"", **named: Any) -> Reply:
    """The reply to one request, sent and answered whole."""

    async def run() -> Reply:
        return await asyncio.wait_for(Connection(encoded(body), **named).run(app), 30)

    return asyncio.run(run())


def get(app: App, path: str, **named: Any) -> Reply:
    return ask(app, method="GET", path=path, **named)


def ask_all(app: App, bodies: Sequence[dict[str, Any]], **named: Any) -> list[Reply]:
    """Replies to requests that are sent at the same time."""

    async def run() -> list[Reply]:
        return await asyncio.gather(*(Connection(encoded(b), **named).run(app) for b in bodies))

    return asyncio.run(run())


def said(reply: Reply, index: int = 0) -> str:
    """The text of a stream's choice."""
    deltas = [c["delta"] for e in reply.events for c in e["choices"] if c["index"] == index]
    return "".join(delta.get("content", "") for delta in deltas)
