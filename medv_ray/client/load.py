"""Load on a running endpoint: `medv bench serve`. One process, one event loop, many requests.

Closed loop: each client asks again when it was answered. Open loop: requests come at times drawn
beforehand, however slow the answers are; latency counts from the time at which one was to come.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import cycle, islice
from typing import Any

import httpx2

from medv_ray.client.endpoint import CHAT, CONNECT_S, address, headers
from medv_ray.client.questions import LoadSettings
from medv_ray.errors import CATALOGUE

ERROR_WAIT_S = 0.2
"""What a client of a closed loop waits after an error that says no time."""
DAY_S = 86400.0


@dataclass
class Outcome:
    """What became of a request. Holds nothing of what was asked or answered."""

    begun_s: float
    """Monotonic: when it was to be sent."""
    status: int = 0
    """HTTP status; 0 where none came."""
    code: str | None = None
    """The catalogue's, of an error answer."""
    error: str | None = None
    """Kind of what the client met: an exception's name, `timeout`, `cut`, `bad_answer`."""
    delay_s: float = 0.0
    """How much later than it should the client sent it."""
    seconds: float = 0.0
    first_text_s: float | None = None
    tokens: int = 0
    retry_after_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def answered(self) -> bool:
        """A whole answer."""
        return self.status == 200 and self.error is None and self.code is None


class Load:
    """One run against an endpoint."""

    def __init__(self, settings: LoadSettings, bodies: list[bytes]) -> None:
        self._settings = settings
        self._bodies = islice(cycle(bodies), settings.requests)
        self.outcomes: list[Outcome] = []
        self.obeyed = 0
        """Waits that Retry-After asked for and a client made, in full."""
        self.waited_s = 0.0
        self.interrupted = False
        self.started_s = self.ended_s = self._end_s = 0.0

    async def run(self) -> None:
        """Ask until time or requests are used up and all are answered. Ctrl-C ends it at once."""
        client = httpx2.AsyncClient(
            base_url=address(self._settings.url),
            headers=headers() | {"content-type": "application/json"},
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,  # a proxy in between would be measured, too
        )
        self.started_s = time.monotonic()
        self._end_s = self.started_s + self._settings.seconds_or_end
        async with client:
            try:
                await (self._closed(client) if self._settings.rate is None else self._open(client))
            except asyncio.CancelledError:
                self.interrupted = True
        self.ended_s = time.monotonic()

    async def _closed(self, client: httpx2.AsyncClient) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.clients or 20):
                group.create_task(self._ask_again_and_again(client))

    async def _ask_again_and_again(self, client: httpx2.AsyncClient) -> None:
        while (left_s := self._end_s - time.monotonic()) > 0:
            body = next(self._bodies, None)
            if body is None:
                return
            outcome = await self._ask(client, body, time.monotonic())
            if outcome.answered:
                continue
            asked_s, left_s = outcome.retry_after_s, self._end_s - time.monotonic()
            wait_s = ERROR_WAIT_S if asked_s is None else asked_s
            await asyncio.sleep(max(0.0, min(wait_s, left_s)))
            if asked_s is not None and asked_s <= left_s:
                self.obeyed += 1
                self.waited_s += asked_s

    async def _open(self, client: httpx2.AsyncClient) -> None:
        draw, due_s = random.Random(self._settings.seed), self.started_s
        assert self._settings.rate is not None
        async with asyncio.TaskGroup() as group:
            while True:
                due_s += draw.expovariate(self._settings.rate)
                await asyncio.sleep(max(0.0, min(due_s, self._end_s) - time.monotonic()))
                if due_s > self._end_s or (body := next(self._bodies, None)) is None:
                    return
                group.create_task(self._ask(client, body, due_s))

    async def _ask(self, client: httpx2.AsyncClient, body: bytes, begun_s: float) -> Outcome:
        """One request; what goes wrong with it is noted, not raised."""
        outcome = Outcome(begun_s, sent_bytes=len(body), delay_s=time.monotonic() - begun_s)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with client.stream("POST", CHAT, content=body) as response:
                    outcome.status = response.status_code
                    try:
                        await self._read(response, outcome)
                    finally:
                        outcome.received_bytes = response.num_bytes_downloaded
        except TimeoutError:
            outcome.error = "timeout"
        except httpx2.TransportError as error:
            outcome.error = type(error).__name__
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, httpx2.HTTPError):
            outcome.error = "bad_answer"
        outcome.seconds = time.monotonic() - begun_s
        self.outcomes.append(outcome)
        return outcome

    async def _read(self, response: httpx2.Response, outcome: Outcome) -> None:
        if response.status_code != 200:
            outcome.retry_after_s = retry_after(response.headers.get("retry-after"))
            body = await response.aread()
            with suppress(ValueError, KeyError, TypeError):
                outcome.code = _code(json.loads(body)["error"])
        elif self._settings.stream:
            await self._read_stream(response, outcome)
        else:
            whole = json.loads(await response.aread())
            outcome.tokens = int(whole["usage"]["completion_tokens"])
            if not whole["choices"]:
                raise ValueError("no answer")

    async def _read_stream(self, response: httpx2.Response, outcome: Outcome) -> None:
        outcome.error = "cut"  # until its end is seen
        async for event in httpx2.EventSource(response):
            if event.data == "[DONE]":
                outcome.error = None
                continue
            chunk: Any = event.json()
            if "error" in chunk:
                outcome.error, outcome.code = "error_event", _code(chunk["error"])
                return
            said = any(choice["delta"].get("content") for choice in chunk["choices"])
            if said and outcome.first_text_s is None:
                outcome.first_text_s = time.monotonic() - outcome.begun_s
            if chunk.get("usage"):
                outcome.tokens = int(chunk["usage"]["completion_tokens"])


def _code(error: Any) -> str:
    """A code of our catalogue; another endpoint's words are left out."""
    given = error.get("code") if isinstance(error, dict) else None
    return given if isinstance(given, str) and given in CATALOGUE else "other"


def retry_after(header: str | None) -> float | None:
    """Seconds that the header asks to wait, given as such or as a date; a day at most."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return min(float(header), DAY_S)
    try:
        left_s = parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, left_s), DAY_S)
