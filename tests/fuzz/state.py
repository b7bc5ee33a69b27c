"""What a fuzzing process has done so far, in a file that outlives it: also when it dies of an
input, which then stands there."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("<QQQQdQ")
MOST_INPUT = 2**20


class Figures(NamedTuple):
    cases: int = 0
    faults: int = 0
    slowest_us: int = 0
    rss_kb: int = 0
    since: float = 0.0
    """When the input at hand began, by the monotonic clock; 0 between two of them."""
    length: int = 0


class State:
    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(HEAD.size + MOST_INPUT))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @property
    def figures(self) -> Figures:
        return Figures(*HEAD.unpack(self._map[: HEAD.size]))

    @figures.setter
    def figures(self, value: Figures) -> None:
        self._map[: HEAD.size] = HEAD.pack(*value)

    @property
    def input(self) -> bytes:
        return self._map[HEAD.size : HEAD.size + self.figures.length]

    def begin(self, data: bytes, now: float) -> None:
        data = data[:MOST_INPUT]
        self._map[HEAD.size : HEAD.size + len(data)] = data
        self.figures = self.figures._replace(since=now, length=len(data))
