"""How the row groups of a parquet file are cut, without a list of the cuts."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import overload

from medv_ray.archive.chunks import Cut


class GroupCuts(Sequence[Cut]):
    """The cuts of a file's row groups, each made when it is asked for: 32 bytes a row group."""

    def __init__(self) -> None:
        self._firsts, self._stops, self._steps = array("q"), array("q"), array("q")
        self._ends = array("q")

    def add(self, first: int, stop: int, step: int) -> None:
        """The next row group: its rows, which may be none, and how many there are in a cut."""
        self._firsts.append(first)
        self._stops.append(stop)
        self._steps.append(step)
        self._ends.append(len(self) + len(range(first, stop, step)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Cut: ...
    @overload
    def __getitem__(self, index: slice) -> list[Cut]: ...
    def __getitem__(self, index: int | slice) -> Cut | list[Cut]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        number = bisect_right(self._ends, at)
        group, stop, step = self._firsts[number], self._stops[number], self._steps[number]
        first = group + step * (at - (self._ends[number - 1] if number else 0))
        return Cut(range(first, min(first + step, stop)), (number, group))
