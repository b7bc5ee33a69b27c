"""Who dies on what: names the row that ends its worker, and bounds deaths without progress.

The first death of a chunk is anonymous: rows are not announced, which costs nothing in a healthy
run. A chunk that is tried again announces each row before trying it, so that the next death has a
name. A row with two such deaths is quarantined (E1504); outside kills do not hit one row twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BLAMED_DEATHS = 2  # with the anonymous one before it, a crashing row costs three workers
CHUNK_DEATHS = 6  # deaths of a chunk that no row explains
START_DEATHS = 3  # deaths of one actor in a row while it loads
SCORE, DECODE = "score", "decode"
"""What actors do. Their deaths are counted apart: a chunk that decodes is no progress of those that
answer."""


def death_limit(actors: int) -> int:
    """Deaths without a finished chunk or a named row, over all actors, that a job lives through.

    Every actor may sit on a hopeless chunk, and one of them may get another one after it; where
    all chunks are hopeless, the job must end before it has given up each of them.
    """
    return (CHUNK_DEATHS + 1) * (actors + 1)


class Orders(NamedTuple):
    """What an actor is to do with a chunk."""

    skip: str = ""
    """`stop`: the job ends. `lost`: its workers died too often and no row is to blame."""
    announce: bool = False
    """Report each row before it is tried."""
    crashed: tuple[int, ...] = ()
    """Row numbers that are quarantined untried."""


@dataclass
class _Attempts:
    running: bool = False
    deaths: int = 0
    row: int | None = None
    blamed: Counter[int] = field(default_factory=Counter)
    crashed: list[int] = field(default_factory=list)


class Deaths:
    """The bookkeeping, without Ray."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """See `death_limit`."""
        self.total = 0
        self.since_progress = 0
        self._starting: Counter[str] = Counter()
        self._alive: set[str] = set()
        self._chunks: dict[str, _Attempts] = {}

    def born(self, actor: str) -> str:
        """An actor begins to load. Returns why it must not, or ""."""
        if actor in self._alive or self._starting[actor]:
            self.total += 1
            self.since_progress += 1
        self._alive.discard(actor)
        self._starting[actor] += 1
        if self._starting[actor] > START_DEATHS:
            return f"A worker died {START_DEATHS} times in a row while it loaded."
        if self.since_progress > self.limit:
            return f"Workers died {self.since_progress} times and no chunk was finished meanwhile."
        return ""

    def ready(self, actor: str) -> None:
        """The actor has loaded."""
        del self._starting[actor]
        self._alive.add(actor)

    def start(self, source_key: str) -> Orders:
        """A chunk is tried."""
        attempts = self._chunks.setdefault(source_key, _Attempts())
        if attempts.running:
            self._died(attempts)
        attempts.running, attempts.row = True, None
        unexplained = attempts.deaths - BLAMED_DEATHS * len(attempts.crashed)
        if unexplained > CHUNK_DEATHS:
            del self._chunks[source_key]
            return Orders(skip="lost")
        return Orders("", attempts.deaths > 0, tuple(attempts.crashed))

    def _died(self, attempts: _Attempts) -> None:
        attempts.deaths += 1
        if attempts.row is None:
            return
        attempts.blamed[attempts.row] += 1
        if attempts.blamed[attempts.row] == BLAMED_DEATHS:
            attempts.crashed.append(attempts.row)
            self.since_progress = 0

    def row(self, source_key: str, row: int | None) -> None:
        """A row of a chunk is about to be tried; None: the last one is over."""
        attempts = self._chunks.get(source_key)
        if attempts is not None:  # else another attempt at it has ended
            attempts.row = row

    def done(self, source_key: str) -> None:
        """The chunk's rows are written, or it is given up, which is no progress."""
        if self._chunks.pop(source_key, None) is not None:
            self.since_progress = 0


class Supervisor:
    """The Ray actor around `Deaths`, in the middle of the job: driver -> source -> actor -> driver.

    It hands the source its chunks, so that only a window of them exists at any time; it hands
    results to the driver as soon as they are there (Ray Data delivers blocks every 0.1 s, and what
    is on its way when the driver dies is done again); it keeps the error that ends the job.
    """

    def __init__(self, limit: int, decode_limit: int = 0) -> None:
        self._deaths = Deaths(limit)
        self._of = {SCORE: self._deaths, DECODE: Deaths(decode_limit)}
        self._waiting: dict[int, str] = {}
        self._fed = 0
        self._closed = False
        self._stopped = False
        self._ended = False
        self._more = asyncio.Event()
        self._results: list[str] = []
        self._arrived = asyncio.Event()
        self._fatal: tuple[str, str, str] | None = None
        self._ready_s: float | None = None

    async def feed(self, chunks: list[str], finished: list[int], last: bool) -> None:
        """Chunks for the source, numbered on from the last ones; numbers that are finished."""
        for chunk in chunks:
            self._waiting[self._fed] = chunk
            self._fed += 1
        for number in finished:
            self._waiting.pop(number, None)
        self._closed |= last
        self._more.set()

    async def take(self, number: int) -> list[str] | None:
        """Chunks from `number` on, at least one; None when there are no more. A source that is run
        again asks for numbers that are finished and gets empty strings for them."""
        while number >= self._fed and not (self._closed or self._stopped):
            self._more.clear()
            await self._more.wait()
        if self._stopped or number >= self._fed:
            return None
        return [self._waiting.get(n, "") for n in range(number, self._fed)]

    async def stop(self) -> None:
        """Hand out no more chunks, and let none start that waits in an actor's queue."""
        self._stopped = True
        self._more.set()

    async def born(self, actor: str, role: str = SCORE) -> str:
        """See `Deaths.born`."""
        return self._of[role].born(actor)

    async def ready(self, actor: str, role: str = SCORE) -> None:
        """See `Deaths.ready`."""
        self._of[role].ready(actor)
        if role == SCORE:
            self._ready_s = self._ready_s or time.monotonic()

    async def start(self, source_key: str, role: str = SCORE) -> Orders:
        """See `Deaths.start`."""
        return Orders(skip="stop") if self._stopped else self._of[role].start(source_key)

    async def decoded(self, source_key: str) -> None:
        """The chunk is on its way to an actor with the model, or will not come."""
        self._of[DECODE].done(source_key)

    async def row(self, source_key: str, row: int | None) -> None:
        """See `Deaths.row`."""
        self._deaths.row(source_key, row)

    async def done(self, source_key: str, result: str) -> None:
        """See `Deaths.done`; `result` is for the driver."""
        self._deaths.done(source_key)
        self._results.append(result)
        self._arrived.set()

    async def results(self) -> list[str] | None:
        """What came in since the last call, at least one; None when no more will."""
        while not self._results and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        new, self._results = self._results, []
        return new or None

    async def end(self) -> None:
        """Ray Data has nothing more to do."""
        self._ended = True
        self._arrived.set()

    async def fail(self, kind: str, code: str, detail: str) -> None:
        """Keep the first error that must end the job; Ray wraps it in its own on the way."""
        self._fatal = self._fatal or (kind, code, detail)

    async def report(self) -> dict[str, Any]:
        """What the driver asks for at the end. `ready_ago_s`: since the first actor had loaded, by
        this machine's own clock, which nobody sets."""
        return {
            "fatal": self._fatal,
            "ready_ago_s": self._ready_s and time.monotonic() - self._ready_s,
            "deaths": sum(deaths.total for deaths in self._of.values()),
        }
