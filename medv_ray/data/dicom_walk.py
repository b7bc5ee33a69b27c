"""The elements at the top of a DICOM data set, walked without reading what they hold.

For planning, which wants one number of each file and not pydicom's whole reading of it. Undefined
lengths are followed through their items; nothing is kept, and the number of steps is limited.
Source: PS3.5 chapters 7 and A.4, PS3.10 chapter 7.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from medv_ray.formats import dicom_start

_FRAMES, _LAST = 0x00280008, 0x00280100
_SIZES = {0x00280002: "samples", 0x00280010: "rows", 0x00280011: "columns", _LAST: "bits"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_IMPLICIT, _DEFLATED, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
_PLAIN = (_IMPLICIT, "1.2.840.10008.1.2.1", _BIG)
_HEADER_BYTES = 2**20
_STEPS = 2**16
_PIECE_BYTES = 8  # what each frame of compressed data takes at least


class Element(NamedTuple):
    """An element's head; the file stands at its value."""

    tag: int
    kind: bytes
    length: int


def dicom_frames(file: BinaryIO, head: bytes, size: int) -> int:
    """NumberOfFrames; 1 without it. Raises ValueError for a number that is none or that the file
    has no room for."""
    start = dicom_start(head)
    if start is None:
        raise ValueError
    syntax, start = _file_meta(file, start)
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
    frames, sizes = 1, {"samples": 1, "rows": 0, "columns": 0, "bits": 0}
    for element in _top(file, is_explicit, order):
        if element.tag == _FRAMES:
            text = file.read(min(element.length, 64)).rstrip(b"\0 ").lstrip()
            frames = int(text) if text else 1
        elif element.tag in _SIZES and element.length == 2:
            [sizes[_SIZES[element.tag]]] = struct.unpack(order + "H", file.read(2))
        if element.tag >= _LAST:
            break
    least = _PIECE_BYTES
    if syntax in _PLAIN or not syntax:
        least = sizes["samples"] * sizes["rows"] * sizes["columns"] * sizes["bits"] // 8
    if frames < 1 or (frames > 1 and frames * least > size and syntax != _DEFLATED):
        raise ValueError
    return frames


def _file_meta(file: BinaryIO, start: int) -> tuple[str, int]:
    """Transfer syntax, empty where there is none, and where the data set begins."""
    file.seek(start)
    syntax, end = "", start
    while (element := _element(file, True, "<")) is not None and element.tag >> 16 == 2:
        if element.tag & 0xFFFF == 0x10:
            syntax = file.read(min(element.length, 64)).rstrip(b"\0 ").decode("ascii")
            file.seek(-min(element.length, 64), io.SEEK_CUR)
        end = file.seek(element.length, io.SEEK_CUR)
    return syntax, end


def _top(file: BinaryIO, is_explicit: bool, order: str) -> Iterator[Element]:
    """The elements of the data set, each with the file at its value."""
    for _ in range(_STEPS):
        element = _element(file, is_explicit, order)
        if element is None:
            return
        if element.length == _UNDEFINED:
            _pass(file, is_explicit and element.kind != b"UN", order)
            continue
        behind = file.tell() + element.length
        yield element
        file.seek(behind)
    raise ValueError


def _pass(file: BinaryIO, is_explicit: bool, order: str) -> None:
    """Leave a sequence of undefined length behind."""
    explicit = [is_explicit]
    for _ in range(_STEPS):
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
