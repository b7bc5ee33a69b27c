"""One request of /v1/chat/completions or /v1/responses, from its events to its body or stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from medv_ray.engine.request import Answer, Request
from medv_ray.errors import MedvError, RunError
from medv_ray.serving.completions import Completion
from medv_ray.serving.replies import OURS, error_of
from medv_ray.serving.service import Service

log = logging.getLogger(__name__)
HEADERS = {
    OURS.decode(): "1",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
STREAM_HEADERS = HEADERS | {"x-accel-buffering": "no"}
"""nginx would gather a stream's events and hand them on late."""
WRITE_S = 30.0
"""For a stream's last bytes, beyond `limits.request_seconds`."""
Chunks = list[dict[str, Any]]


class Exchange:
    """A request, until it is answered, refused or left."""

    def __init__(
        self, service: Service, said: Completion, requests: Sequence[Request], started_s: float
    ) -> None:
        """`started_s`: a monotonic time."""
        self._service, self._said = service, said
        self._requests, self._started_s = list(requests), started_s

    async def whole(self) -> dict[str, Any]:
        """The body. Raises MedvError."""
        async for _ in self._chunks(watched=False):
            pass
        return self._said.whole()

    async def streamed(self, held: AsyncExitStack) -> Response:
        """A stream that has begun; `held` is closed when it ends, however it does.

        Raises MedvError for what is wrong before its first event.
        """
        chunks = self._chunks(watched=True)
        held.push_async_callback(chunks.aclose)
        try:
            first = await anext(chunks)
        except BaseException:
            await held.aclose()
            raise
        seconds = self._service.settings.limits.request_seconds + WRITE_S
        return Stream(self._events(first, chunks), held, seconds)

    async def _events(self, first: Chunks, chunks: AsyncIterator[Chunks]) -> AsyncIterator[bytes]:
        yield self._joined(first)
        try:
            async for more in chunks:
                yield self._joined(more)
        except Exception as error:  # a defect as well: the client would only see a cut connection
            if not isinstance(error, MedvError):
                log.error("a stream ended with %s", type(error).__name__)
                error = RunError("E1509", f"{type(error).__name__}: a defect of the endpoint.")
            yield self._said.failed(error_of(error))
            return
        yield self._said.last()

    def _joined(self, chunks: Chunks) -> bytes:
        return b"".join(map(self._said.event, chunks))

    async def _chunks(self, watched: bool) -> AsyncGenerator[Chunks]:
        """What each event brings; empty ones only for a request that is not watched.

        One choice after the other, whichever are answered side by side: another replica, whose
        slots are taken otherwise, gives the same bytes.
        """
        model, said = self._said.request.model, self._said
        asked = self._service.asked(model, self._requests, watched, self._started_s)
        current, later = 0, dict[int, Chunks]()
        with said.noting():
            async with asked as events:
                async for number, one in events:
                    if isinstance(one, Answer):
                        said.answers[number] = one
                    if not watched:
                        yield []
                        continue
                    made = said.chunks(number, one)
                    if number > current:
                        later.setdefault(number, []).extend(made)
                        continue
                    while current in said.answers:
                        current += 1
                        made += later.pop(current, [])
                    if made:
                        yield made


class Stream(StreamingResponse):
    """Server-sent events, and what is held for them."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack, seconds: float) -> None:
        """`seconds`: after which it is cut; a client that reads nothing would hold it for ever."""
        super().__init__(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._held, self._seconds = held, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the client may be gone before the first event, and then the events never begin
        async with self._held, asyncio.timeout(self._seconds):
            await super().__call__(scope, receive, send)
