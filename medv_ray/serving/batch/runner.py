"""Works on the batches of a folder, beside the requests of a replica, in a thread of its own.

Of the replicas that share the folder one works on a batch: it holds the batch's lock. One that dies
lets go of it, and another, or the same one when it is back, goes on behind the last commit.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from medv_ray.archive.lock import NAME as LOCK
from medv_ray.archive.lock import Lock, owner_of
from medv_ray.archive.store import Store
from medv_ray.errors import MedvError, RunError
from medv_ray.serving.batch.batches import Batch, Batches
from medv_ray.serving.batch.job import Ask, Job, Over
from medv_ray.serving.batch.journal import Journal, Progress
from medv_ray.serving.batch.shelf import Shelf
from medv_ray.serving.guard import App, Message, Scope
from medv_ray.serving.replies import REQUEST_ID

log = logging.getLogger(__name__)
LOOK_S = 2.0
"""Between two looks for batches, as other replicas take them, too."""
SWEEP_S = 60.0
OVER_S = 0.25
"""Between two looks whether a batch was cancelled."""
DEAD_S = 120.0
"""A lock of another machine without a sign of life for so long is taken over."""


class Stopped(Exception):
    """The runner is being closed."""


class Runner:
    """Answers batches until it is closed."""

    def __init__(
        self,
        shelf: Shelf,
        ask: Callable[[str], Ask],
        has_room: Callable[[int], bool],
        limit: int,
        count: Callable[[int, int], None],
    ) -> None:
        """`ask`: for an API key's name; the rest as Job has it."""
        self._batches, self._shelf = Batches(shelf), shelf
        self._ask, self._has_room, self._limit, self._count = ask, has_room, limit, count
        self._working: dict[str, asyncio.Task[None]] = {}
        self._owners: dict[str, str] = {}
        self._later: dict[str, float] = {}
        self._swept = 0.0
        self._stopping = False
        self._woken = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="medv-batches", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for batches now."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    def close(self) -> None:
        """Stop; what was committed stays."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._work())
        finally:
            self._loop.close()

    async def _work(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                await asyncio.to_thread(self._sweep)
                await self._begin()
            except (MedvError, OSError) as error:
                log.error("batches could not be looked for: %s", _word(error))
            try:
                await asyncio.wait_for(self._woken.wait(), LOOK_S)
            except TimeoutError:
                continue
        for task in self._working.values():
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept > SWEEP_S or not self._swept:
            self._swept = time.monotonic()
            self._batches.sweep()
            self._shelf.sweep(self._batches.needed(self._batches.unfinished()))

    async def _begin(self) -> None:
        """Take batches as far as there is room: of those who have the fewest here, the oldest."""
        unfinished = await asyncio.to_thread(self._batches.unfinished)
        now = time.monotonic()
        free = [one for one in unfinished if one.id not in self._working]
        free = [one for one in free if self._later.get(one.id, 0.0) < now]
        while free and len(self._working) < self._shelf.settings.side_by_side:
            count = Counter(self._owners[name] for name in self._working)
            batch = min(free, key=lambda one: (count[one.owner], one.created_at, one.id))
            free.remove(batch)
            lock = await asyncio.to_thread(self._lock, batch)
            if lock is None:
                continue
            task = asyncio.ensure_future(self._one(batch, lock))
            self._working[batch.id], self._owners[batch.id] = task, batch.owner
            task.add_done_callback(partial(self._ended, batch.id))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._working[name], self._owners[name]
        self._woken.set()

    def _lock(self, batch: Batch) -> Lock | None:
        """The batch's lock; None where another process has it, or the batch is over by now."""
        store = Store(self._batches.path(batch.id))
        lock = Lock(store)
        try:
            owner = owner_of(store.read(LOCK)) if store.exists(LOCK) else {}
            lock.acquire(take_over=time.time() - float(owner.get("beat", 0)) > DEAD_S)
        except RunError:
            return None
        done = self._batches.progress(batch)
        if done is not None and done.is_over:
            lock.release()
            return None
        return lock

    async def _one(self, batch: Batch, lock: Lock) -> None:
        try:
            paths = self._batches.paths(batch)
            job = Job(
                batch.id, paths, self._ask(batch.owner), self._has_room, self._limit,
                endpoint=batch.endpoint, over=self._over(batch), check=lock.check,
                count=self._count,
            )  # fmt: skip
            try:
                done = await job.run()
                if not done.total:
                    done = replace(done, code="E1701", message="the file holds no request.")
                    done = replace(done, outcome="failed")
            except FileNotFoundError:
                done = _lost(self._batches.progress(batch))
            await asyncio.to_thread(self._end, batch, done)
        except (MedvError, OSError) as error:  # a disk, say: tried again later
            log.error("a batch stopped, and goes on later: %s", _word(error))
            self._later[batch.id] = time.monotonic() + 10 * LOOK_S
        except Exception as error:  # its text may hold anything
            log.error("a batch ended with %s", type(error).__name__)
            self._later[batch.id] = time.monotonic() + 30 * LOOK_S
        finally:
            await asyncio.to_thread(lock.release)

    def _end(self, batch: Batch, done: Progress) -> None:
        self._batches.publish(batch, done)
        journal = Journal(self._batches.paths(batch).journal)
        try:
            status = done.outcome or "completed"
            journal.append(replace(done, status=status, time=time.time()))
        finally:
            journal.close()

    def _over(self, batch: Batch) -> Callable[[], Over]:
        """`Batches.over`, looked up now and then."""
        seen: Over = None
        at = 0.0

        def over() -> Over:
            nonlocal seen, at
            if seen is None and time.monotonic() - at > OVER_S:
                seen, at = self._batches.over(batch), time.monotonic()
            return seen

        return over


def _lost(done: Progress | None) -> Progress:
    now = time.time()
    done = done or Progress(began=now, time=now, total=0)
    rule = "the input file is not there any more."
    return replace(done, outcome="failed", code="E1706", message=rule, finishing=now)


def _word(error: Exception) -> str:
    return error.code if isinstance(error, MedvError) else type(error).__name__


def asker(app: App, owner: str, state: Mapping[str, object], is_lost: Callable[[], bool]) -> Ask:
    """Requests to the routes of an application, without a wire: a line is answered as its body
    would be over HTTP.

    Args:
        app: the routes, behind limits and keys.
        owner: the name of the key.
        state: what the routes find in the request's state, beside.
        is_lost: whether nothing can be answered here any more.
    """

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": url,
            "raw_path": url.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (REQUEST_ID.encode(), request_id.encode()),
            ],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {**state, "key": owner},
        }
        sent = False
        status, pieces = 0, list[bytes]()

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            pieces.append(message.get("body", b""))

        try:
            await app(scope, receive, send)
        except MedvError:
            raise
        except Exception as error:  # answered already; its text may hold anything
            log.error("a line ended with %s", type(error).__name__)
        found = b"".join(pieces)
        if status == 503 and is_lost():
            raise RunError("E1708", "nothing can be answered here any more.")
        if status >= 500 and b'"E1513"' in found:  # each line would end so
            raise RunError("E1513", json.loads(found)["error"]["message"])
        return status, found

    return ask
