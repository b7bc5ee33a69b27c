"""Lookup tables of DICOM objects: modality, VOI and palette ones, segmented ones too.

PS3.3 C.11.1.1 and C.11.2.1.1 (descriptor), C.7.9.2 (segments).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Table:
    """A lookup table: `values[x - first]`, clamped at both ends."""

    first: int
    values: NDArray[np.float64]
    bits: int

    @classmethod
    def of(cls, item: Dataset, names: str, signed: bool) -> Table | None:
        """The table of `names` ("LUT{}") in a sequence's item or a header, if there is one.

        `signed`: whether what it is applied to may be negative. Raises DataError E1207 for one
        that is cut short.
        """
        descriptor = item.get(names.format("Descriptor"))
        if descriptor is None:
            return None
        try:
            entries, first, bits = (int(value) for value in descriptor)
            entries, bits = entries % 2**16 or 2**16, bits or 16
            big = item.original_encoding[1] is False
            segmented = item.get(f"Segmented{names.format('Data')}")
            raw = item.get(names.format("Data"))
            if raw is None and segmented is not None:
                values = _unrolled(_numbers(segmented, 1 if bits <= 8 else 2, big), entries, bits)
            else:
                short = isinstance(raw, bytes) and len(raw) in (entries, entries + 1)
                values = _numbers(raw, 1 if short and entries > 1 else 2, big)[:entries]
        except (TypeError, ValueError, IndexError):
            values = np.empty(0, np.int64)
            entries = bits = first = 0
        if not 1 <= entries <= len(values) or not 1 <= bits <= 16:
            raise DataError("E1207", "a lookup table of the DICOM header is cut short.")
        # some writers put a negative number into an element that has no sign, and the reverse
        if signed and first >= 2**15:
            first -= 2**16
        elif not signed and first < 0:
            first += 2**16
        return cls(first, values.astype(np.float64), bits)


def _numbers(raw: Any, size: int, big: bool) -> NDArray[np.int64]:
    """What a table's element holds: bytes, or numbers as pydicom read them."""
    if isinstance(raw, bytes):
        order = ">" if big else "<"
        numbers = np.frombuffer(raw[: len(raw) // size * size], f"{order}u{size}")
        return numbers.astype(np.int64)
    return np.atleast_1d(np.asarray(raw, np.int64)) % 2**16


def _unrolled(raw: NDArray[np.int64], entries: int, bits: int) -> NDArray[np.int64]:
    """The entries of a segmented table, `entries` of them at most.

    Raises ValueError or IndexError for segments of no sense.
    """
    pieces: list[NDArray[np.int64]] = []
    starts: list[int] = []  # of each segment
    held = at = 0

    def run(at: int) -> int:
        """One segment; where the next begins."""
        nonlocal held
        kind, length = int(raw[at]), int(raw[at + 1])
        if kind == 0:
            piece = raw[at + 2 : at + 2 + length]
            if len(piece) < length:
                raise ValueError("cut short")
            after = at + 2 + length
        elif kind == 1:
            last = int(pieces[-1][-1])
            piece = np.rint(np.linspace(last, int(raw[at + 2]), length + 1)[1:]).astype(np.int64)
            after = at + 3
        else:
            raise ValueError("no such segment")
        if len(piece):
            pieces.append(piece)
            held += len(piece)
        return after

    while at + 1 < len(raw) and held < entries:
        starts.append(at)
        if raw[at] != 2:
            at = run(at)
            continue
        words = [int(word) for word in raw[at + 2 : at + (4 if bits > 8 else 6)]]
        # a byte offset, low part first, from the start of the table
        offset = sum(word << (16 if bits > 8 else 8) * place for place, word in enumerate(words))
        begin = starts.index(offset // (2 if bits > 8 else 1))
        for start in starts[begin : begin + int(raw[at + 1])]:
            if raw[start] == 2:
                raise ValueError("a segment of segments of segments")
            if held < entries:
                run(start)
        at += 2 + len(words)
    return np.concatenate(pieces)[:entries]
