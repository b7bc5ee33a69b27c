"""How long a child process may take for a request: by its own CPU time, not by the clock.

A machine with more to do than cores makes every child slow; what waits for a core is not damaged.
"""

from __future__ import annotations

import os
import time

MOST_WALL = 10
"""Times the CPU seconds, on the clock, for a child that gets hardly any core."""
_TICKS = os.sysconf("SC_CLK_TCK")


class ChildTime:
    """`seconds` of the child's CPU time from now on; as long on the clock if it stands still."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._stat = f"/proc/{pid}/stat"
        self._seconds = seconds
        self._begun_s = self._moved_s = time.monotonic()
        self._first = self._seen = self._used()

    def left(self) -> float:
        """Seconds after which to ask again; none: its time is over."""
        now_s, used = time.monotonic(), self._used()
        if used > self._seen:
            self._seen, self._moved_s = used, now_s
        return min(
            self._seconds - (used - self._first),
            self._seconds - (now_s - self._moved_s),
            self._seconds * MOST_WALL - (now_s - self._begun_s),
        )

    def _used(self) -> float:
        """0 where nobody tells: then the clock decides."""
        try:  # asked several times a picture, so without what `open` does around it
            file = os.open(self._stat, os.O_RDONLY)
            try:
                fields = os.read(file, 4096).rpartition(b")")[2].split()
            finally:
                os.close(file)
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICKS
