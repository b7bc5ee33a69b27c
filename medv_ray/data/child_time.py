"""How long a child process may take for a request: by its own CPU time, not by the clock.

A machine with more to do than cores makes every child slow; what waits for a core is not damaged.
"""

from __future__ import annotations

import time

MOST_WALL = 10
"""Times the CPU seconds, on the clock, for a child that gets hardly any core."""


class ChildTime:
    """`seconds` of the child's CPU time from now on; as long on the clock if it stands still."""

    def __init__(self, pid: int, seconds: float) -> None:
        # what clock_getcpuclockid(3) gives; /proc/PID/stat knows hundredths of a second only
        self._clock = (~pid << 3) | 2
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
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0
