"""How many frames or pages a file holds, by its headers alone, and which of them is the picture.

Whoever plans an archive asks this of every file, outside the child process: so it is plain Python
on a file that is read where it is needed, it unpacks no more than `_HEADER_BYTES`, and it makes
lists no longer than `MOST_FRAMES`. Pages of a TIFF that are marked as reduced copies or masks of
others are no frames. JPEG files hold one picture; the further ones of an MPO are no frames of it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from medv_ray.data.encoded import end_of_png
from medv_ray.dicom_walk import dicom_frames
from medv_ray.errors import DataError, SettingsError
from medv_ray.file_parts import FilePart
from medv_ray.formats import HEAD_BYTES, format_of
from medv_ray.tiff_walk import pages

MOST_FRAMES = 2**17
"""A file that announces more is one row, which is refused: headers lie."""
_NEW_SUBFILE, _OLD_SUBFILE = 254, 255
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_BUFFER = 2**16
_STEPS = 2**22
"""Blocks, chunks or tags that are looked at."""


class Frames(NamedTuple):
    """The frames of a file."""

    places: Sequence[int]
    """Of each, the number under which a decoder finds it, from 0."""
    words: tuple[str, ...] = ()
    """What is in the file beside them."""


class FrameSplitter:
    """`image.frames` of `all` or `every:N`: one row a frame. See `file_parts.Splitter`."""

    def __init__(self, policy: str) -> None:
        self.key = f"image.frames={policy}"
        self._step = int(policy.partition(":")[2] or 1)

    def parts(self, filesystem: Any, path: str) -> tuple[FilePart, ...]:
        """The frames that are rows; of a file whose header cannot be read one."""
        with filesystem.open_input_file(path) as opened:
            size = opened.size()
            count = count_frames(io.BufferedReader(_Within(opened, size), _BUFFER), size)
        return tuple(FilePart(frame, count) for frame in range(1, count + 1, self._step))


class _Within(io.RawIOBase):
    """A file of a store, in which a place behind the end is the end: stores raise for it."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size, self._place = file, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = min(max(base + offset, 0), self._size)
        self._file.seek(self._place)
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """As any file."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def splitter(policy: str) -> FrameSplitter | None:
    """By `image.frames`; None where a file is one row."""
    return FrameSplitter(policy) if policy == "all" or policy.startswith("every:") else None


def count_frames(file: BinaryIO, size: int) -> int:
    """How many frames a picture file holds; 1 for one that cannot be read."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    try:
        found = _count(format_of(head), file, head, size)
    except (ValueError, IndexError, EOFError, StopIteration, struct.error, zlib.error):
        return 1
    return found if 1 <= found <= MOST_FRAMES else 1


def _count(kind: str | None, file: BinaryIO, head: bytes, size: int) -> int:
    if kind == "DICOM":
        return dicom_frames(file, head, size)
    if kind == "TIFF":
        return len(tiff_frames(file).places)
    if kind == "GIF":
        return _gif_frames(file)[0]
    if kind == "WEBP":
        return _webp_frames(file)
    return _png_frames(file) if kind == "PNG" else 1


def choose(
    kind: str | None, num_frames: int, data: bytes, policy: str, part: FilePart | None
) -> tuple[int, list[str]]:
    """Under which number a decoder finds the frame to show, from 0, and words.

    `num_frames` is what the decoder counts. Raises DataError E1210 for several frames under the
    policy `refuse`, E1207 for a file of other frames than were planned, SettingsError E1001 for a
    policy of several rows where there can be one only.
    """
    if kind == "TIFF":
        frames = tiff_frames(io.BytesIO(data))
    elif kind in ("DICOM", "GIF", "WEBP", "PNG"):
        words = () if kind in ("DICOM", "WEBP") or _has_end(kind, data) else ("frame_list_broken",)
        frames = Frames(range(num_frames), words)
    else:
        frames = Frames(range(1), (f"first_of_frames:{num_frames}",) if num_frames > 1 else ())
    count, said = len(frames.places), list(frames.words)
    several = max(count, num_frames)
    if policy == "refuse" and several > 1:
        raise DataError("E1210", f"the file holds {several} frames.")
    if part is not None:
        if part.of != count or not 1 <= part.frame <= count:
            raise DataError("E1207", f"the file holds {count} frames, {part.of} were planned.")
        index = part.frame - 1
    elif splitter(policy) is not None:
        detail = "makes rows of the images of a folder; here a picture is one: first or middle."
        raise SettingsError("E1001", f"image.frames={policy} {detail}")
    else:
        index = count // 2 if policy == "middle" else 0
    if count > 1:
        is_first = part is None and policy != "middle"
        said.append(f"first_of_frames:{count}" if is_first else f"frame:{index + 1}/{count}")
    return frames.places[index], said


def _has_end(kind: str, data: bytes) -> bool:
    """Whether a GIF or PNG has its end mark; without one, frames may be missing."""
    if kind == "PNG":
        return end_of_png(data) is not None
    try:
        return _gif_frames(io.BytesIO(data))[1]
    except (IndexError, StopIteration):  # more blocks than are looked at
        return True


def tiff_frames(file: BinaryIO) -> Frames:
    """The pages of a TIFF that are pictures of their own.

    Raises ValueError for no TIFF, EOFError for one whose first page is not there.
    """
    kinds, is_broken = list[int](), False
    try:
        for page in islice(pages(file, (_NEW_SUBFILE, _OLD_SUBFILE)), MOST_FRAMES + 1):
            old = _REDUCED if page.get(_OLD_SUBFILE) == 2 else 0
            kinds.append(int(page.get(_NEW_SUBFILE, old)))
    except struct.error:
        is_broken = True
    if not kinds:
        raise EOFError
    real = [index for index, kind in enumerate(kinds) if not kind & (_REDUCED | _MASK)] or [0]
    words = []
    if real[0]:
        words.append("thumbnail_page_skipped" if kinds[0] & _REDUCED else "mask_page_skipped")
    others = len(kinds) - len(real) - bool(real[0])
    if others:
        words.append(f"pages_left_out:{others}")
    return Frames(real, (*words, *(["page_list_broken"] if is_broken else [])))


def _gif_frames(file: BinaryIO) -> tuple[int, bool]:
    """Counts image descriptors, as Pillow does; a cut file has those that it has. And whether the
    end mark is there."""
    file.seek(10)
    flags = file.read(3)[0]
    if flags & 128:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
    count, steps = 0, iter(range(_STEPS))
    while (mark := file.read(1)) not in (b"", b";"):
        next(steps)
        if mark == b",":
            count += 1
            flags = (file.read(9) or b"\0")[-1]
            file.seek((3 << (flags & 7) + 1 if flags & 128 else 0) + 1, io.SEEK_CUR)
        elif mark == b"!":
            file.seek(1, io.SEEK_CUR)
        else:
            continue
        while (size := file.read(1)) not in (b"", b"\0"):
            next(steps)
            file.seek(size[0], io.SEEK_CUR)
    return count, mark == b";"


def _webp_frames(file: BinaryIO) -> int:
    file.seek(12)
    count, is_animated, steps = 0, False, iter(range(_STEPS))
    while len(head := file.read(8)) == 8:
        next(steps)
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"VP8X":
            is_animated = bool(file.read(1)[0] & 2)
            file.seek(-1, io.SEEK_CUR)
        elif not is_animated:
            return 1
        count += name == b"ANMF"
        file.seek(size + size % 2, io.SEEK_CUR)
    return count


def _png_frames(file: BinaryIO) -> int:
    """By the animation's header; a picture outside the animation counts as well."""
    file.seek(8)
    count, has_control, steps = 0, False, iter(range(_STEPS))
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        next(steps)
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"acTL":
            count = int.from_bytes(file.read(4), "big")
            size -= 4
        has_control |= head[4:] == b"fcTL"
        file.seek(size + 4, io.SEEK_CUR)
    return count + (not has_control) if count else 1
