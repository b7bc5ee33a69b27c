"""Which members of a tar shard are a row, by its headers, and which are left out."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.left_out import (
    EMPTY,
    HIDDEN,
    INDEX,
    NO_IMAGE,
    NOT_UTF8,
    SIDE,
    LeftOut,
    is_hidden,
    is_index,
    is_side_file,
    picture_keys,
)
from medv_ray.archive.store import escaped
from medv_ray.errors import DataError
from medv_ray.formats import ENDINGS, HEAD_BYTES, ending, format_of

TEXT, JSON = ".txt", ".json"
READ_AHEAD = 2**18
BLOCK = 512
NONE = (-1, 0)
KNOWN = {*ENDINGS, TEXT, JSON}
NO_MEMBERS = (b"V", b"D")
"""GNU's label of the whole archive, and a folder in one of its incremental backups."""
BROKEN = (
    *(tarfile.TarError, ValueError, LookupError, OverflowError, EOFError, OSError, MemoryError),
    RecursionError,  # of a thousand long names, one behind the other
)
"""What tarfile raises for headers that are none."""


@dataclass(slots=True)
class Member:
    """The members of one key: a row."""

    key: str
    image: tuple[int, int] = NONE
    """Offset and bytes; so for the others."""
    text: tuple[int, int] = NONE
    json: tuple[int, int] = NONE
    suffix: str = ""
    """What the name of its image has behind the key."""
    code: str = ""
    """The error of a member that is refused."""
    stamps: list[tuple[int, float]] = field(default_factory=list)
    """Checksum and time of each header."""

    def at(self) -> tuple[Any, ...]:
        """As a chunk carries it."""
        return (self.key, *self.image, *self.text, *self.json, self.suffix, self.code)


class Index:
    """The rows of a shard in the order of their first member."""

    def __init__(self, with_text: bool) -> None:
        self.with_text = with_text
        self.order: list[Member] = []
        self.left_out = LeftOut()
        self.end = 0
        """Where the end mark is."""
        self._open: dict[str | tuple[str, int], Member] = {}
        """By key; the further rows of one by key and number."""
        self._again: dict[tuple[str, str], int] = {}
        """Further members of a key and sort."""
        self._others: list[tuple[str, str]] = []
        """Names of members that are no part of a row, and why."""

    def add(self, info: tarfile.TarInfo, stream: Any) -> None:
        """One member: part of a row, or left out."""
        if info.isdir() or info.type in NO_MEMBERS:
            return
        name = info.name.removeprefix("./")
        sort, why = self._sort_of(name, info, stream)
        if why == HIDDEN or (not sort and info.isreg()):
            self._others.append((name, why))
        elif not info.isreg() or info.issparse() or is_unsafe(info.name):
            self.order.append(Member(escaped(info.name), code="E1106"))
        else:
            # an ending that is none, as in 1.2.840.113, belongs to the key
            key = name.removesuffix(posixpath.splitext(name)[1]) if ending(name) in KNOWN else name
            row = self._open.get(key)
            spot = (info.offset_data, info.size)
            place: str | tuple[str, int] = key
            if row is not None and getattr(row, sort) != NONE:
                # the key's second image, say, is of its second row, as its second text is
                count = self._again[key, sort] = self._again.get((key, sort), 0) + 1
                place = (key, count)
                row = self._open.get(place)
            if row is None:
                row = self._open[place] = Member(key)
                self.order.append(row)
            setattr(row, sort, spot)
            row.suffix = name[len(key) :] if sort == "image" else row.suffix
            row.stamps.append((info.chksum, info.mtime))

    def count_left_out(self) -> None:
        """Once all members are there: a side file may lie before its picture."""
        keys = picture_keys(row.key + row.suffix for row in self.order if row.image != NONE)
        for name, why in self._others:
            is_side = why in (EMPTY, NO_IMAGE) and is_side_file(name, keys)
            self.left_out.add(name, SIDE if is_side else why)

    def _sort_of(self, name: str, info: tarfile.TarInfo, stream: Any) -> tuple[str, str]:
        """Which part of a row a member is, or empty and why it is none."""
        kind = ending(name)
        if is_hidden(name):
            return "", HIDDEN
        if escaped(name) != name:
            return "", NOT_UTF8
        if kind in ENDINGS:
            return "image", ""
        if kind in (TEXT, JSON):
            sort = "text" if kind == TEXT else "json"
            return (sort, "") if self.with_text else ("", "a text; --question is asked of images")
        if not info.isreg() or not info.size:
            return "", EMPTY
        if is_index(name):
            return "", INDEX
        stream.seek(info.offset_data)
        is_image = format_of(stream.read(min(HEAD_BYTES, info.size))) is not None
        return ("image", "") if is_image else ("", NO_IMAGE)


def index(stream: Any, file: SourceFile, with_text: bool) -> tuple[Index, list[int]]:
    """The rows of a shard, and how many of them the earlier pieces of the file had."""
    found = Index(with_text)
    ends = [piece.end for piece in file.pieces]
    borders: list[int] = []
    for info, found.end in headers(stream, file):
        while ends and info.offset >= ends[0]:
            borders.append(len(found.order))
            del ends[0]
        found.add(info, stream)
    found.count_left_out()
    return found, borders + [len(found.order)] * len(ends)


def is_unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    is_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    return parts[0] == "" or ".." in parts or is_drive


def headers(stream: Any, file: SourceFile) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """All headers up to the end mark, each with the offset behind its member.

    Raises DataError E1105 where a shard ends without one."""
    start = stream.read(2)
    stream.seek(0)
    if start == b"\x1f\x8b":
        raise DataError("E1105", f"{file.name}: compressed; a tar shard must be plain.")
    try:
        tar = tarfile.TarFile(fileobj=stream)
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # a list of every header is not needed
            # what is behind a size below 0 is anywhere
            if info.size < 0 or (info.offset_data + info.size > file.size and info.isreg()):
                raise tarfile.ReadError("cut member")
            yield info, tar.offset
        # a damaged header ends tarfile's loop without a word: only the end mark says it is whole
        stream.seek(tar.offset)
        mark = stream.read(BLOCK)
        rest = any(any(block) for block in iter(lambda: stream.read(READ_AHEAD), b""))
    except BROKEN as error:
        raise DataError(
            "E1105", f"{file.name}: not a complete tar file ({type(error).__name__})."
        ) from error
    if mark != bytes(BLOCK):
        raise DataError("E1105", f"{file.name}: cut or damaged: it ends without tar's end mark.")
    if rest:
        raise DataError("E1105", f"{file.name}: there is data after tar's end mark.")
