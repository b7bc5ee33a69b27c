"""Between a job and who watches it: progress in rows (a bar on a terminal, one JSON line every 10 s
elsewhere), and Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from medv_ray.schema import STATUSES

PATIENCE_S = 60.0
INTERVAL_S = 10.0


class Progress:
    """Counts rows as chunks are committed. Use as a context manager."""

    def __init__(
        self, total: int, before: dict[str, int], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._total = total
        self._counts: Counter[str] = Counter({name: before[name] for name in STATUSES})
        self._new_rows = 0
        self._started_s = time.monotonic()
        self._first_s: float | None = None
        self._first_rows = 0
        self._interval_s = interval_s
        self._over = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            console = Console(stderr=True)
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("rows  {task.fields[rate]}"), TimeRemainingColumn(),
                TextColumn("{task.fields[quarantined]} quarantined"), console=console,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._bar is None:
            self._lines.start()
        else:
            self._bar.start()
            done = sum(self._counts.values())
            self._task = self._bar.add_task(
                "scoring", total=self._total, completed=done, rate="", quarantined=0
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()
        else:
            self._lines.join()

    def add(self, counts: dict[str, int]) -> None:
        """Rows of one chunk by status."""
        self._counts.update(counts)
        rows = sum(counts.values())
        self._new_rows += rows
        if self._first_s is None:
            self._first_s, self._first_rows = time.monotonic(), rows
        if self._bar is not None:
            rate = self._rate()
            self._bar.update(
                self._task, advance=rows, quarantined=self._counts["quarantined"],
                rate=f"{rate:.1f}/s" if rate else "",
            )  # fmt: skip

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            sys.stderr.write(text + "\n")

    def state(self) -> dict[str, Any]:
        """The fields of a progress line."""
        done = sum(self._counts.values())
        rate = self._rate()
        return {
            "progress": round(done / self._total, 4) if self._total else 1.0,
            "rows": done,
            "total": self._total,
            "rows_per_s": round(rate, 2) if rate else None,
            "eta_s": round((self._total - done) / rate) if rate else None,
            **{name: self._counts[name] for name in STATUSES},
        }

    def _rate(self) -> float | None:
        """Rows a second since the first chunk came in: loading a model says nothing of the rest."""
        if self._first_s is None:
            return None
        later = self._new_rows - self._first_rows
        if later:
            return later / (time.monotonic() - self._first_s)
        return self._new_rows / (self._first_s - self._started_s)

    def _print_lines(self) -> None:
        while not self._over.wait(self._interval_s):
            sys.stdout.write(json.dumps(self.state()) + "\n")
            sys.stdout.flush()


@contextmanager
def interrupts(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed, and the first time says so.

    The second Ctrl-C raises KeyboardInterrupt where the main thread is.
    """
    pressed, said = 0, False

    def on_signal(number: int, _: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    def asked() -> bool:
        nonlocal said
        if pressed and not said:
            said = True
            say("stopping once the running chunks are committed; again to stop at once")
        return said

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Patience:
    """Is over every `PATIENCE_S` anew."""

    def __init__(self) -> None:
        self._began_s = self._next_s = time.monotonic()
        self._next_s += PATIENCE_S

    @property
    def waited_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def is_over(self) -> bool:
        """Whether to say something now."""
        over = time.monotonic() > self._next_s
        self._next_s += PATIENCE_S if over else 0
        return over
