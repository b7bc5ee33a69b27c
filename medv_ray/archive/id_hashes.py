"""Finds the repeats among any number of hashes, in memory that does not grow with them.

The last 2^20 hashes are held. Earlier ones lie in a file that has no name, in the folder for
temporary files (TMPDIR): 24 bytes each, a run of 2^20 after the other, each run ordered by the
hash's first byte. Equal hashes have equal first bytes; so a few first bytes at a time are read from
all runs and compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from medv_ray.archive.store import writing

WIDTH = 16  # bytes of a hash: two of 10^9 different ids meet with probability 1e-21
HELD = 2**20
COMPARED = 2**20
"""Hashes that are compared at once, as far as their first bytes allow it."""
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("ordinal", "<i8")])
Records = npt.NDArray[Any]
"""Of RECORD."""


class IdHashes:
    """Hashes in the order of their rows."""

    def __init__(self, held: int | None = None) -> None:
        self._most = held or HELD
        self._held = bytearray()
        self._spilled = 0
        self._file: IO[bytes] | None = None
        self._runs: list[npt.NDArray[np.int64]] = []
        """Of each run: where its hashes of each first byte begin, in records from its own begin."""
        self._dead: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._spilled + len(self._held) // WIDTH

    def add(self, digests: bytes) -> None:
        """The next ones, one behind the other. Raises RunError E1503 when the disk of temporary
        files is full."""
        self._held += digests
        if len(self._held) >= WIDTH * self._most:
            self._spill()

    def drop(self, first: int) -> None:
        """From this ordinal on, none of those that are there is a repeat of anything or repeated.
        Their ordinals are not given again."""
        if first < len(self):
            self._dead.append((first, len(self)))

    def repeats(self) -> npt.NDArray[np.int64]:
        """int64[N], sorted ordinals of those that an earlier one equals."""
        return np.sort(np.concatenate([_repeats(part) for part in self._parts()]))

    def _parts(self) -> Iterator[Records]:
        """All records, equal ones in one part."""
        held = self._records()
        if self._file is None:
            yield held
            return
        order, starts = _by_first_byte(held)
        held = held[order]
        step = max(1, 256 * COMPARED // len(self))
        for first in range(0, 256, step):
            last = min(first + step, 256)
            pieces = [held[starts[first] : starts[last]]]
            begin = 0
            for run in self._runs:
                self._file.seek((begin + int(run[first])) * RECORD.itemsize)
                data = self._file.read(int(run[last] - run[first]) * RECORD.itemsize)
                pieces.append(np.frombuffer(data, RECORD))
                begin += int(run[256])
            yield self._alive(np.concatenate(pieces))

    def _records(self) -> Records:
        hashes = np.frombuffer(bytes(self._held), "<u8").reshape(-1, 2)
        records = np.empty(len(hashes), RECORD)
        records["high"], records["low"] = hashes[:, 0], hashes[:, 1]
        records["ordinal"] = np.arange(self._spilled, self._spilled + len(hashes))
        return self._alive(records)

    def _alive(self, records: Records) -> Records:
        for first, end in self._dead:
            ordinal = records["ordinal"]
            records = records[(ordinal < first) | (ordinal >= end)]
        return records

    def _spill(self) -> None:
        records = self._records()
        order, starts = _by_first_byte(records)
        size = len(records) * RECORD.itemsize
        with writing(os.path.join(tempfile.gettempdir(), "the comparison of ids (TMPDIR)"), size):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="medv-")  # noqa: SIM115  closed with self
            self._file.seek(0, os.SEEK_END)
            self._file.write(records[order].tobytes())
            self._file.flush()
        self._runs.append(starts)
        self._spilled += len(self._held) // WIDTH
        self._held.clear()


def _by_first_byte(records: Records) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Order by a hash's first byte, and int64[257], where each of them begins."""
    first = (records["high"] & 0xFF).astype(np.uint8)
    starts = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=256))])
    return np.argsort(first, kind="stable"), starts


def _repeats(records: Records) -> npt.NDArray[np.int64]:
    """int64[N], ordinals of records whose hash one of a lower ordinal has."""
    ranked = records[np.lexsort((records["ordinal"], records["low"], records["high"]))]
    same = (ranked["high"][1:] == ranked["high"][:-1]) & (ranked["low"][1:] == ranked["low"][:-1])
    found: npt.NDArray[np.int64] = ranked["ordinal"][1:][same]
    return found
