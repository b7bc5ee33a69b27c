"""Row ids: which are acceptable, what stands in for the others, and which repeat an earlier one."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medv_ray.errors import DataError

MAX_ID_BYTES = 512
WIDTH = 16  # bytes of an id's hash: two of 10^9 different ids meet with probability 1e-21


def fallback_id(stem: str, row: int) -> str:
    """The id of a row that has none of its own."""
    return f"{stem}:{row}"


def id_problem(value: object) -> DataError | None:
    """What is wrong with the cell of an id column; None for a good one. Never repeats the value."""
    if value is None:
        return DataError("E1102", "the id is null.")
    if isinstance(value, bool) or not isinstance(value, str | int):
        return DataError("E1109", f"the id is a {type(value).__name__}, no text or whole number.")
    if isinstance(value, int):
        return None
    text = value
    if not text.strip():
        return DataError("E1102", "the id is empty.")
    if "/" in text or "\\" in text or ".." in text:
        return DataError("E1104", "the id has '/', '\\' or '..'.")
    if text.isascii() and text.isprintable() and len(text) <= MAX_ID_BYTES:
        return None
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        return DataError("E1104", "the id has a control character or a lone surrogate.")
    size = len(text.encode())
    if size > MAX_ID_BYTES:
        return DataError("E1104", f"the id has {size} bytes; at most {MAX_ID_BYTES} are allowed.")
    return None


def normal(text: str) -> str:
    """The form in which ids are compared: NFC, trimmed."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def fingerprint(text: str) -> bytes:
    return blake2b(normal(text).encode(), digest_size=WIDTH).digest()


class IdCensus:
    """Finds repeated ids over a whole archive, in 16 bytes a row; about 40 while it compares."""

    def __init__(self) -> None:
        self.hashes = bytearray()
        self.refused: list[int] = []
        self.stems: list[tuple[int, str, int]] = []  # first ordinal, stem and row of each piece

    def start_file(self, stem: str, row: int = 0) -> None:
        """The rows that follow belong to this file, the first of them with this number."""
        self.stems.append((len(self), stem, row))

    def drop_file(self) -> None:
        """Forget the file that was started last, and its rows."""
        first, _, _ = self.stems.pop()
        del self.hashes[first * WIDTH :]
        self.refused = [ordinal for ordinal in self.refused if ordinal < first]

    def __len__(self) -> int:
        return len(self.hashes) // WIDTH

    def add(self, values: Iterable[Any]) -> None:
        """The id cells of the next rows. A refused one counts with the id that stands in for it."""
        first, stem, row = self.stems[-1]
        for value in values:
            ordinal = len(self)
            if id_problem(value) is None:
                self.hashes += fingerprint(str(value))
            else:
                self.refused.append(ordinal)
                self.hashes += fingerprint(fallback_id(stem, row + ordinal - first))

    def duplicates(self) -> list[int]:
        """Sorted ordinals of rows whose id an earlier row has, or stands in for a refused one."""
        if not len(self):
            return []
        kind = pa.binary(WIDTH)
        hashes = pa.FixedSizeBinaryArray.from_buffers(
            kind, len(self), [None, pa.py_buffer(self.hashes)]
        )
        order = pc.array_sort_indices(hashes)  # stable: the first row of equal ids comes first
        ranked = hashes.take(order)
        repeats = pc.equal(ranked[1:], ranked[:-1])
        refused = set(self.refused)
        found = set(order[1:].filter(repeats).to_pylist()) - refused
        new = found | refused
        while new:  # a stand-in may itself be the id of another row
            stand_ins = pa.array([fingerprint(self.stand_in(o)) for o in sorted(new)], kind)
            meets = pc.indices_nonzero(pc.is_in(hashes, value_set=stand_ins)).to_pylist()
            new = set(meets) - found - refused
            found |= new
        return sorted(found)

    def stand_in(self, ordinal: int) -> str:
        """The fallback id of a row."""
        first, stem, row = self.stems[bisect_right(self.stems, ordinal, key=lambda s: s[0]) - 1]
        return fallback_id(stem, row + ordinal - first)


def row_numbers(ordinals: Iterable[int], first: int, count: int) -> Iterator[int]:
    """Those of sorted `ordinals` that fall into a file, as its row numbers."""
    return (o - first for o in ordinals if first <= o < first + count)
