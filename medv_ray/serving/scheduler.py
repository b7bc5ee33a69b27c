"""The thread that steps the engines, and the way in and out of it.

Everything that touches a model runs in this one thread. Others hand requests in and get events
through a callback, which is called in this thread and must not wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from medv_ray.engine.engine import Engine
from medv_ray.engine.request import Answer, Request, View
from medv_ray.errors import MedvError, RunError, is_out_of_memory

log = logging.getLogger(__name__)
Event = View | Answer | MedvError
"""A state after a step, of a request that is watched; in the end an answer or an error, once."""
T = TypeVar("T")


@dataclass
class Job:
    """A request on its way through an engine."""

    model: str
    request: Request
    sink: Callable[[Event], None]
    watched: bool
    ticket: int = 0
    seen_step: int = -1


class Scheduler:
    """Steps engines, by turns, while any of them has work."""

    def __init__(
        self, engines: Mapping[str, Engine], on_failure: Callable[[], None] | None = None
    ) -> None:
        """`engines`: by the name of the model. They belong to the scheduler's thread from now on.
        `on_failure` is called when the thread ends by an error, before anybody hears of it."""
        self._engines = dict(engines)
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: deque[tuple[Future[Any], Callable[[], None]]] = deque()
        self._jobs: dict[tuple[str, int], Job] = {}
        self._busy_since: float | None = None
        self._running = True
        self._over = False
        """The thread admits nobody any more."""
        self.failed: str | None = None
        """The kind of error that ended the thread."""
        self._thread = threading.Thread(target=self._run, name="medv-scheduler", daemon=True)
        self._thread.start()

    def submit(
        self, model: str, request: Request, sink: Callable[[Event], None], watched: bool
    ) -> Job:
        """Queue a request; `sink` gets its events."""
        job = Job(model, request, sink, watched)
        self._inbox.put(lambda: self._admit(job))
        if self._over:  # the thread may not look again
            sink(self.over())
        return job

    def cancel(self, job: Job) -> None:
        """Take a request out before its next step. Nothing is said of it any more."""
        self._inbox.put(lambda: self._drop(job))

    def call(self, model: str, work: Callable[[Engine], T]) -> Future[T]:
        """Run something between two steps, with the engine of a model.

        The future is cancelled when the thread ends before, and has RunError E1306 where memory is
        short.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(self._engines[model]))
            except Exception as error:
                short = is_out_of_memory(error)
                future.set_exception(
                    RunError("E1306", f"{type(error).__name__}.") if short else error
                )
                if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
                    raise  # the GPU's context is lost

        def queue_up() -> None:
            if self._over:
                future.cancel()
            else:
                self._calls.append((future, run))

        self._inbox.put(queue_up)
        if self._over:
            future.cancel()
        return future

    def stuck_s(self) -> float:
        """Seconds for which the thread has been in one step."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def ongoing(self) -> int:
        """Requests that have no answer yet."""
        return len(self._jobs)

    @property
    def is_over(self) -> bool:
        """Whether the thread admits nobody any more."""
        return self._over or not self._running

    def over(self) -> RunError:
        """What is said of a request that the thread can not answer any more."""
        failed = self.failed
        why = "is ending" if failed is None else f"has stopped ({failed}) and is being replaced"
        return RunError("E1708", f"this replica {why}.")

    def counters(self) -> dict[str, int]:
        """What all engines have done so far, added up."""
        total: dict[str, int] = {}
        for engine in self._engines.values():
            for name, count in vars(engine.counters).items():
                total[name] = total.get(name, 0) + count
        return total

    def close(self) -> None:
        """End the thread after its step, and what the engines hold."""
        self._running = False
        self._inbox.put(lambda: None)
        self._thread.join(timeout=10)
        for engine in self._engines.values():
            engine.close()

    def _run(self) -> None:
        try:
            while self._running:
                self._take()
                for model, engine in self._engines.items():
                    if not engine.idle:
                        self._step(model, engine)
        except BaseException as error:
            # the text of an error may hold what was asked
            log.critical("the scheduler's thread ended: %s", type(error).__name__)
            self.failed = type(error).__name__
            if self._on_failure is not None:
                self._on_failure()
        self._over, self._busy_since = True, None
        self._take_all()  # who has asked meanwhile hears of it, too
        for future, _ in self._calls:
            future.cancel()
        for job in list(self._jobs.values()):
            self._end(job, self.over())

    def _take(self) -> None:
        """Do what others have asked for; wait for it while there is nothing to step."""
        self._busy_since = None
        if not self._calls and all(engine.idle for engine in self._engines.values()):
            self._inbox.get()()
        self._busy_since = time.monotonic()
        self._take_all()
        if self._calls:  # one a step: those who ask again and again would hold up all answers
            _, run = self._calls.popleft()
            run()

    def _take_all(self) -> None:
        while not self._inbox.empty():  # nobody else takes from it
            self._inbox.get()()

    def _admit(self, job: Job) -> None:
        if self._over:
            job.sink(self.over())
            return
        try:
            job.ticket = self._engines[job.model].admit(job.request)
        except MedvError as error:
            job.sink(error)
        except Exception as error:
            log.error("a request could not be admitted: %s", type(error).__name__)
            job.sink(RunError("E1509", f"{type(error).__name__}."))
        else:
            self._jobs[job.model, job.ticket] = job

    def _drop(self, job: Job) -> None:
        if self._jobs.pop((job.model, job.ticket), None):
            self._engines[job.model].cancel(job.ticket)

    def _end(self, job: Job, event: Event) -> None:
        if self._jobs.pop((job.model, job.ticket), None):
            job.sink(event)

    def _step(self, model: str, engine: Engine) -> None:
        try:
            ended = engine.step()
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
                raise  # the GPU's context is lost
            kind, short = type(error).__name__, is_out_of_memory(error)
            ticket = engine.give_up()
            if ticket is None:
                raise
            failed = RunError("E1306", f"{kind}.") if short else RunError("E1509", f"{kind}.")
            log.error("a request ended with %s", failed)
            ended = [(ticket, failed)]  # type: ignore[list-item]
        for ticket, event in ended:
            job = self._jobs.get((model, ticket))
            if job is not None:
                self._end(job, event)
        for job in [j for j in self._jobs.values() if j.watched and j.model == model]:
            view = engine.view(job.ticket)
            if view is not None and view.step != job.seen_step:
                job.seen_step = view.step
                job.sink(view)


def sink_to(loop: Any, put: Callable[[Event], None]) -> Callable[[Event], None]:
    """A sink that hands events to a function of an event loop."""

    def sink(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(put, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    return sink
