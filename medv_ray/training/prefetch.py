"""Samples made by a thread before the loop asks for them, so that reading, decoding and a frozen
tower cost no time of a step.

A thread is enough: pictures are decoded in a child process, and torch computes without the
interpreter's lock. A sample follows from its position alone, so it has the same bits either way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """What `make` gives for each of `positions`, in their order, at most `ahead` of them waiting.

    An error of `make` is raised where its position is asked for, and the thread ends there. `close`
    ends it in any case.
    """

    def __init__(self, make: Callable[[int], T], positions: Iterable[int], ahead: int) -> None:
        self._make, self._positions = make, positions
        self._permits = threading.Semaphore(ahead)
        self._made: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
        self._closed = False
        # a daemon: a loop that was never closed does not keep the process
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for position in self._positions:
            self._permits.acquire()
            if self._closed:
                return
            try:
                self._made.put((position, self._make(position), None))
            except BaseException as error:
                self._made.put((position, None, error))
                return

    def __call__(self, position: int) -> T:
        """The next one, which must be this position's. Raises what `make` raised for it."""
        # the thread's last word may be on its way while it ends
        assert self._thread.is_alive() or not self._made.empty(), "nothing is made any more"
        due, made, error = self._made.get()
        self._permits.release()
        assert due == position, f"position {position} was asked for before {due}"
        if error is not None:
            raise error
        return made  # type: ignore[return-value]

    def close(self) -> None:
        """Let the thread finish the sample that it makes, and drop the others."""
        self._closed = True
        self._permits.release()
        self._thread.join()
