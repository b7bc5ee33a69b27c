"""How long an input took and how much memory its processes held; what no message may hold."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tests.corpus.sound import CANARY

MOST_S = 5.0
MOST_BYTES = 2**30
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)
ABSOLUTE = re.compile(r"(?<![\w.:/*<])/(?:tmp|home|work|usr|root|var|etc|opt|proc|dev|mnt)\b")
STACK = re.compile(r'Traceback \(most recent|File "[^"]+", line \d')


@dataclass
class Measure:
    seconds: float = 0.0
    """Of the clock, less what a process waited for a core that others had; of the better of two
    tries."""
    bytes: int = 0
    """Most that one process held: this one, or a child."""


@contextlib.contextmanager
def measuring() -> Iterator[Measure]:
    measure, began_s = Measure(), time.monotonic()
    pa.default_memory_pool().release_unused()  # what an earlier input held
    for process in _processes():  # the peak of each is what it holds now
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    queued = {process: _queued_s(process) for process in _processes()}
    yield measure
    waited_s = sum(_queued_s(process) - queued.get(process, 0.0) for process in _processes())
    measure.seconds = max(0.0, time.monotonic() - began_s - waited_s)
    measure.bytes = max(map(_peak, _processes()))
    now = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if now > ended:  # of all children that ended so far, the largest
        measure.bytes = max(measure.bytes, now * 1024)


def _processes() -> list[int]:
    """This one and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [os.getpid(), *map(int, children)]


def _queued_s(process: int) -> float:
    """How long it has waited for a core so far."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _peak(process: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def leaks(message: str, root: Path) -> list[str]:
    """What stands in a message and must not."""
    found = {
        "an address": ADDRESS.search(message),
        "an absolute path": ABSOLUTE.search(message) or str(root) in message,
        "a stack": STACK.search(message),
        "content of a row": CANARY in message,
    }
    return [name for name, there in found.items() if there]
