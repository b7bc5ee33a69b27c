"""One batch: its lines asked, some at a time, and what comes of them committed in their order.

Nothing of it is held but the lines that are under way. The same code answers batches of an endpoint
(`runner`) and files from the command line (`offline`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from medv_ray import files
from medv_ray.disk import disk_errors
from medv_ray.errors import RunError
from medv_ray.serving.batch import lines
from medv_ray.serving.batch.journal import Journal, Progress
from medv_ray.serving.batch.lines import BadLine, BatchLine, Raw

COMMIT_S = 1.0
"""At most so much work is done again after a kill."""
COMMIT_BYTES = 2**22
UNDER_WAY = 256
"""Lines that wait for an earlier one before they can be committed."""
LOOK_S = 0.02
"""Between two looks for room, while other clients have all of it."""
TRIES = 3
"""For a line that is refused for want of memory, or in time."""
Over = Literal["cancelled", "expired"] | None
Ask = Callable[[str, bytes, str], Awaitable[tuple[int, bytes]]]
"""Status and body, given url, body and request id. Raises RunError where nobody can answer."""


@dataclass(frozen=True)
class Paths:
    """Where a batch lies."""

    input: str
    output: str
    errors: str
    journal: str


class Ended(NamedTuple):
    """What came of a line; of a blank one neither."""

    raw: Raw
    output: bytes = b""
    error: bytes = b""
    tokens: tuple[int, int] = (0, 0)


Waiting = deque[Ended | asyncio.Task[Ended]]
"""Lines that are not committed yet, in the order of the file."""


class Job:
    """A batch from its last commit to its end."""

    def __init__(
        self,
        name: str,
        paths: Paths,
        ask: Ask,
        has_room: Callable[[int], bool],
        limit: int,
        *,
        endpoint: str | None = None,
        over: Callable[[], Over] = lambda: None,
        check: Callable[[], None] = lambda: None,
        count: Callable[[int, int], None] = lambda completed, failed: None,
    ) -> None:
        """
        Args:
            name: tells this batch from all others; ids of its answers are made of it.
            has_room: whether one more line may start, given the number under way.
            limit: bytes of a line.
            endpoint: the only url of its lines, if there is only one.
            over: whether it is to end before its last line.
            check: raises RunError when this process is no longer its one writer.
            count: is told how many more lines were answered, and how many failed.
        """
        self._name, self._paths, self._ask, self._has_room = name, paths, ask, has_room
        self._limit, self._endpoint, self._over = limit, endpoint, over
        self._check, self._count = check, count
        self._ready: list[Ended] = []
        self._ready_bytes = 0
        self._committed = 0.0
        self._running: set[asyncio.Task[Ended]] = set()

    @property
    def progress(self) -> Progress:
        """After the last commit."""
        return self._progress

    async def run(self) -> Progress:
        """All that is left of it; its status is `finalizing` then.

        Raises RunError E1503, E1511 of a disk, E1506 for files that are not as they were committed,
        and what `ask` and `check` raise. What was committed stays; another job goes on.
        """
        with disk_errors("a batch"), self._opened():
            if self._progress.status == "in_progress":
                found = await asyncio.to_thread(lines.survey, self._paths.input, self._limit)
                await self._all(found)
        return self._progress

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with ExitStack() as held:
            self._journal = Journal(self._paths.journal)
            held.callback(self._journal.close)
            now = time.time()
            self._progress = self._journal.progress or Progress(began=now, time=now, total=0)
            if self._progress.status == "in_progress":
                done = self._progress
                self._output = _cut(held, self._paths.output, done.output_bytes)
                self._errors = _cut(held, self._paths.errors, done.error_bytes)
            yield

    async def _all(self, found: lines.Survey) -> None:
        self._note(total=found.total)
        waiting: Waiting = deque()
        why: Over = None
        try:
            with open(self._paths.input, "rb") as file:
                done = self._progress
                for raw in lines.read_lines(file, self._limit, done.lines, done.offset):
                    why = await self._room(waiting, why)
                    waiting.append(self._begin(raw, found, why))
            while waiting:
                self._take(waiting)
                await self._wait()
            self._commit(status="finalizing", finishing=time.time(), outcome=why or "completed")
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _room(self, waiting: Waiting, why: Over) -> Over:
        """Wait until one more line may start, or be refused as the batch is to end."""
        await asyncio.sleep(0)  # several batches may share the loop
        while True:
            self._take(waiting)
            why = why or self._over()
            if len(waiting) < UNDER_WAY and (why or self._has_room(len(self._running))):
                return why
            await self._wait()

    async def _wait(self) -> None:
        if self._running:
            when = asyncio.FIRST_COMPLETED
            await asyncio.wait(set(self._running), timeout=LOOK_S, return_when=when)
        else:
            await asyncio.sleep(LOOK_S)

    def _begin(self, raw: Raw, found: lines.Survey, why: Over) -> Ended | asyncio.Task[Ended]:
        bare = raw._replace(data=b"")  # what waits has no bytes of its line, which may be pictures
        if lines.is_blank(raw):
            return Ended(bare)
        name = f"batch_req_{digest(self._name, raw.number)}"
        if why is not None:
            return Ended(bare, error=lines.not_run(name, raw, why))
        try:
            line = lines.read(raw, bool(found.repeats[raw.number]), self._endpoint, self._limit)
        except BadLine as error:
            return Ended(bare, error=lines.refused(name, raw, error))
        task = asyncio.ensure_future(self._answer(bare, line, name))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _answer(self, raw: Raw, line: BatchLine, name: str) -> Ended:
        body = json.dumps(line.body).encode()
        request_id = digest(self._name, "request", raw.number)
        for left in reversed(range(TRIES)):
            status, found = await self._ask(line.url, body, request_id)
            if status not in (429, 503) or not left:
                break
            await asyncio.sleep(COMMIT_S)
        said: dict[str, Any] = json.loads(found)
        made = lines.answered(name, raw, line.custom_id, request_id, status, said)
        if status != 200:
            return Ended(raw, error=made)
        return Ended(raw, output=made, tokens=_tokens(said))

    def _take(self, waiting: Waiting) -> None:
        """Commit what is done without a gap, where it is time."""
        while waiting and (isinstance(waiting[0], Ended) or waiting[0].done()):
            first = waiting.popleft()
            ended = first if isinstance(first, Ended) else first.result()
            self._ready.append(ended)
            self._ready_bytes += len(ended.output) + len(ended.error)
        late = time.monotonic() - self._committed > COMMIT_S
        if late or self._ready_bytes > COMMIT_BYTES:
            self._commit()

    def _commit(self, **changes: Any) -> None:
        ready, self._ready, self._ready_bytes = self._ready, [], 0
        self._committed = time.monotonic()
        if not ready and not changes:
            return
        self._check()
        for handle, parts in (
            (self._output, [one.output for one in ready if one.output]),
            (self._errors, [one.error for one in ready if one.error]),
        ):
            if parts:
                files.append(handle, b"".join(parts))
                os.fsync(handle)
        done = self._progress
        if ready:
            changes |= {"lines": ready[-1].raw.number, "offset": ready[-1].raw.end}
        self._note(
            **changes,
            output_bytes=done.output_bytes + sum(len(one.output) for one in ready),
            error_bytes=done.error_bytes + sum(len(one.error) for one in ready),
            completed=done.completed + sum(bool(one.output) for one in ready),
            failed=done.failed + sum(bool(one.error) for one in ready),
            input_tokens=done.input_tokens + sum(one.tokens[0] for one in ready),
            output_tokens=done.output_tokens + sum(one.tokens[1] for one in ready),
        )
        now = self._progress
        self._count(now.completed - done.completed, now.failed - done.failed)

    def _note(self, **changes: Any) -> None:
        self._progress = replace(self._progress, time=time.time(), **changes)
        self._journal.append(self._progress)


def digest(*parts: object) -> str:
    """An id that follows from what it is of: made again after a kill, it is the same."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _cut(held: ExitStack, path: str, size: int) -> int:
    """A file open for appending, without what was never committed. Raises RunError E1506."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    held.callback(os.close, handle)
    if os.fstat(handle).st_size < size:
        raise RunError("E1506", "a batch's output is shorter than what was committed of it.")
    os.ftruncate(handle, size)
    return handle


def _tokens(body: dict[str, Any]) -> tuple[int, int]:
    usage = body.get("usage") or {}
    asked = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    said = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return asked, said
