"""Endpoints in a thread: any application under uvicorn, and one whose answers are scripted."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import uvicorn

from medv_ray.serving.app import make_app
from medv_ray.serving.auth import Keys
from medv_ray.serving.options import ServeSettings
from medv_ray.serving.service import Service
from medv_ray.settings import TOY, ModelSettings, SamplerSettings

SECRET = "a patient's word"
"""Stands in every question, answer and error that is scripted; figures must not have it."""


class Server:
    """A server in a thread, which the next test uses again: to stop one takes 0.3 s."""

    idle: ClassVar[list[Server]] = []

    def __init__(self) -> None:
        self.app: Any = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self, log_level="error", lifespan="off"))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), daemon=True
        )
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listener.close()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of an ASGI application."""
    server = Server.idle.pop() if Server.idle else Server()
    server.app = app
    try:
        yield server.url
    finally:
        Server.idle.append(server)


@contextmanager
def toy_endpoint() -> Iterator[str]:
    """The URL of an endpoint that answers with the embedded toy."""
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8)
    service = Service.load(ServeSettings(model=ModelSettings(path=str(TOY)), sampler=sampler))
    try:
        with running(make_app(service, Keys.load(None))) as url:
            yield url
    finally:
        service.close()


Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Scripted:
    """Answers the n-th chat request as `script(n)` says."""

    script: Callable[[int], Reply]
    came_s: list[float] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["path"] == "/v1/models":
            await start(send, 200)
            models = {"data": [{"id": "m", "medv": {"sampler": {"steps": 8}}}]}
            await send({"type": "http.response.body", "body": json.dumps(models).encode()})
            return
        body = b""
        self.came_s.append(time.monotonic())
        number = len(self.came_s) - 1
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(json.loads(body))
        await self.script(number).give(send, self.bodies[-1]["stream"])


async def start(send: Send, status: int, kind: str = "application/json", **more: str) -> None:
    headers = {"content-type": kind, **{n.replace("_", "-"): v for n, v in more.items()}}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


@dataclass
class Reply:
    """One scripted answer."""

    status: int = 200
    wait_s: float = 0.0
    retry_after: str | None = None
    code: str = "E1707"
    events: tuple[Any, ...] = ()
    """Of a stream, in place of the usual ones."""
    cut: bool = False
    """End a stream before [DONE]."""

    async def give(self, send: Send, stream: bool) -> None:
        await asyncio.sleep(self.wait_s)
        if self.status != 200:
            more = {} if self.retry_after is None else {"retry_after": self.retry_after}
            await start(send, self.status, **more)
            error = {"error": {"message": SECRET, "code": self.code}}
            await send({"type": "http.response.body", "body": json.dumps(error).encode()})
        elif stream:
            await start(send, 200, "text/event-stream")
            for event in self.events or usual():
                data = f"data: {json.dumps(event)}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            end = b"" if self.cut else b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": end})
        else:
            await start(send, 200)
            whole = {"choices": [{"message": {"content": SECRET}}], "usage": USAGE}
            await send({"type": "http.response.body", "body": json.dumps(whole).encode()})


USAGE = {"completion_tokens": 3}


def usual() -> list[dict[str, Any]]:
    """A stream's events."""
    return [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": SECRET}}]},
        {"choices": [], "usage": USAGE},
    ]
