"""The directories of a TIFF, one a page, walked without a decoder: numbers and texts of tags.

Nothing is kept, and the number of steps is limited. Source: TIFF 6.0, section 2; BigTIFF as libtiff
reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from typing import BinaryIO, Literal

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
_TEXTS = (1, 2, 7)
_MOST_TEXT = 4096


def pages(
    file: BinaryIO, wanted: Container[int], steps: int = 2**22
) -> Iterator[dict[int, bytes | int]]:
    """Of each page, in the order of the list, the `wanted` tags: single whole numbers, beginnings
    of texts, and 0 for anything else that is there.

    Raises ValueError for no TIFF, struct.error for one that breaks off, or that has more than
    `steps` tags.
    """
    file.seek(0)
    head = file.read(16)
    endian: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    # some write the version in the other order
    if head[:2] not in (b"II", b"MM") or not {42, 43} & set(head[2:4]):
        raise ValueError
    order = "<" if endian == "little" else ">"
    is_big = 43 in head[2:4]
    count, entry, link = (struct.Struct(order + code) for code in
                          (("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")))  # fmt: skip
    (at,) = link.unpack_from(head, link.size)
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        file.seek(_place(at))
        (entries,) = count.unpack(file.read(count.size))
        steps -= entries
        if not 0 < entries < 2**16 or steps < 0:
            raise struct.error
        block = file.read(entries * entry.size)
        (at,) = link.unpack(file.read(link.size))
        found = {}
        for tag, kind, length, raw in entry.iter_unpack(block):
            if tag in wanted:
                found[tag] = raw[:length] if kind in _TEXTS else 0
                if length == 1 and kind in _SIZES:
                    found[tag] = int.from_bytes(raw[: _SIZES[kind]], endian)
                elif kind in _TEXTS and length > len(raw):
                    file.seek(_place(*link.unpack(raw)))
                    found[tag] = file.read(min(length, _MOST_TEXT))
        yield found


def _place(at: int) -> int:
    """An offset that a file can be asked for. Raises struct.error."""
    if at >= 2**63:
        raise struct.error
    return at
