"""The elements of a DICOM file, walked without pydicom: how many frames, which files of an index.

For planning, which wants a number of each file and not pydicom's whole reading of it. Undefined
lengths are followed through their items; nothing is kept, and the number of steps is limited.
Source: PS3.5 chapters 7 and A.4, PS3.10 chapters 7 and 8, PS3.3 F.5.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from medv_ray.formats import HEAD_BYTES, dicom_start

_COLOURS = 0x00280004
_FRAMES, _LAST = 0x00280008, 0x00280100
_SIZES = {0x00280002: "samples", 0x00280010: "rows", 0x00280011: "columns", _LAST: "bits"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_IMPLICIT, _DEFLATED, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_PLAIN = (_IMPLICIT, "1.2.840.10008.1.2.1", _BIG)
_RECORDS, _IN_USE, _FILE_ID = 0x00041220, 0x00041410, 0x00041500
_HEADER_BYTES = 2**20
_STEPS = 2**16
_INDEX_STEPS = 2**24
_PIECE_BYTES = 8  # what each frame of compressed data takes at least


class Element(NamedTuple):
    """An element's head; the file stands at its value."""

    tag: int
    kind: bytes
    length: int


def dicom_frames(file: BinaryIO, head: bytes, size: int) -> int:
    """NumberOfFrames; 1 without it. Raises ValueError for a number that is none or that the file
    has no room for."""
    syntax, start = file_meta(file, head)
    file.seek(start)
    order = ">" if syntax == _BIG else "<"
    if syntax == _DEFLATED:
        packed = file.read(_HEADER_BYTES)
        file = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _HEADER_BYTES))
    is_explicit = syntax != _IMPLICIT
    if not syntax:
        kind = file.read(6)[4:]
        is_explicit = kind.isalpha() and kind.isupper()
        file.seek(start)
    frames, pairs, sizes = 1, False, {"samples": 1, "rows": 0, "columns": 0, "bits": 0}
    for element in _top(file, is_explicit, order, iter(range(_STEPS))):
        if element.tag == _FRAMES:
            frames = _number(file.read(min(element.length, 64)))
        elif element.tag == _COLOURS:  # two pixels of 4:2:2 share their two colour samples
            pairs = file.read(min(element.length, 64)).strip(b"\0 ").upper().endswith(b"_422")
        elif element.tag in _SIZES and element.length == 2:
            [sizes[_SIZES[element.tag]]] = struct.unpack(order + "H", file.read(2))
        if element.tag >= _LAST:
            break
    least = _PIECE_BYTES
    if syntax in _PLAIN or not syntax:
        samples = 2 if pairs else sizes["samples"]
        least = samples * sizes["rows"] * sizes["columns"] * sizes["bits"] // 8
    if frames < 1 or (frames > 1 and frames * least > size and syntax != _DEFLATED):
        raise ValueError
    return frames


def _number(text: bytes) -> int:
    """NumberOfFrames as it is read at decoding: what stands behind the digits does not count, and 0
    is 1. Raises ValueError."""
    found = re.fullmatch(rb" *\+?(\d*).*", text.rstrip(b"\0 "), re.DOTALL)
    if found is None or (text.strip(b"\0 ") and not found[1]):
        raise ValueError
    return int(found[1] or 1) or 1


def referenced_files(data: bytes) -> list[tuple[str, ...]]:
    """The paths that the index of a DICOM folder (DICOMDIR) names, in its order, as their parts.

    Raises ValueError for what is no index, and for one that is cut short.
    """
    file = io.BytesIO(data)
    file.seek(file_meta(file, data[:HEAD_BYTES])[1])
    found: list[tuple[str, ...]] = []
    in_use, is_index, unended = True, False, 0
    for _ in range(_INDEX_STEPS):
        element = _element(file, True, "<")  # explicit, little-endian: PS3.10 8.6
        if element is None:
            if is_index and not unended:
                return found
            break
        if element.length != _UNDEFINED and file.tell() + element.length > len(data):
            break
        if element.tag >> 16 == 0xFFFE or element.kind == b"SQ":  # what is inside comes next
            unended += element.length == _UNDEFINED
            unended -= element.tag in (_ITEM_END, _SEQUENCE_END)
            in_use |= element.tag == _ITEM
            is_index |= element.tag == _RECORDS
            continue
        if element.length == _UNDEFINED:
            break
        value = file.read(element.length)
        if element.tag == _IN_USE:
            in_use = value != b"\0\0"
        elif element.tag == _FILE_ID and in_use:
            found.append(tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\")))
    raise ValueError


def file_meta(file: BinaryIO, head: bytes) -> tuple[str, int]:
    """Transfer syntax, empty where there is none, and where the data set begins.

    Always explicit, little-endian. Raises ValueError for a head that is none of DICOM's.
    """
    start = dicom_start(head)
    if start is None:
        raise ValueError
    file.seek(start)
    syntax, end = "", start
    for _ in range(_STEPS):
        element = _element(file, True, "<")
        if element is None or element.tag >> 16 != 2:
            return syntax, end
        if element.tag & 0xFFFF == 0x10:
            syntax = file.read(min(element.length, 64)).rstrip(b"\0 ").decode("ascii")
            file.seek(-min(element.length, 64), io.SEEK_CUR)
        end = file.seek(element.length, io.SEEK_CUR)
    raise ValueError


def _top(file: BinaryIO, is_explicit: bool, order: str, steps: Iterator[int]) -> Iterator[Element]:
    """The elements of the data set, each with the file at its value. Raises ValueError for one
    that takes more steps, inside of sequences too."""
    for _ in steps:
        element = _element(file, is_explicit, order)
        if element is None:
            return
        if element.length == _UNDEFINED:
            _pass(file, is_explicit and element.kind != b"UN", order, steps)
            continue
        behind = file.tell() + element.length
        yield element
        file.seek(behind)
    raise ValueError


def _pass(file: BinaryIO, is_explicit: bool, order: str, steps: Iterator[int]) -> None:
    """Leave a sequence of undefined length behind."""
    explicit = [is_explicit]
    for _ in steps:
        element = _element(file, explicit[-1], order)
        if element is None:
            raise ValueError
        if element.tag == _SEQUENCE_END:
            explicit.pop()
            if not explicit:
                return
        elif element.length != _UNDEFINED:
            file.seek(element.length, io.SEEK_CUR)
        elif element.tag != _ITEM:
            explicit.append(explicit[-1] and element.kind != b"UN")
    raise ValueError


def _element(file: BinaryIO, is_explicit: bool, order: str) -> Element | None:
    """The head of the next element; None at the end."""
    head = file.read(8)
    if len(head) < 8:
        return None
    group, number = struct.unpack(order + "HH", head[:4])
    tag = group << 16 | number
    if not is_explicit or group == 0xFFFE:
        return Element(tag, b"", struct.unpack(order + "L", head[4:])[0])
    kind = head[4:6]
    if kind in _LONG:
        more = file.read(4)
        if len(more) < 4:
            return None
        return Element(tag, kind, struct.unpack(order + "L", more)[0])
    return Element(tag, kind, struct.unpack(order + "H", head[6:])[0])
