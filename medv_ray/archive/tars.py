"""Tar shards: members `key.jpg` with `key.txt` or `key.json` beside them. Nothing is extracted.

Headers are read once, at planning; a chunk then finds its members by offset.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medv_ray.archive.chunks import CHUNK_BYTES, Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import make_row, pick
from medv_ray.archive.left_out import (
    EMPTY,
    HIDDEN,
    INDEX,
    NO_IMAGE,
    NOT_UTF8,
    LeftOut,
    is_hidden,
    is_index,
)
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import Archive, file_path
from medv_ray.archive.store import escaped
from medv_ray.errors import DataError
from medv_ray.formats import ENDINGS, HEAD_BYTES, ending, format_of
from medv_ray.tables import columns
from medv_ray.tables.cells import check_marks
from medv_ray.tables.json_text import json_values

TEXT, JSON = ".txt", ".json"
MAX_TEXT_BYTES = 2**20
READ_AHEAD = 2**18
BLOCK = 512
NONE = (-1, 0)
KNOWN = {*ENDINGS, TEXT, JSON}


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
        self._open: dict[str, Member] = {}

    def add(self, info: tarfile.TarInfo, stream: Any) -> None:
        """One member: part of a row, or left out."""
        if info.isdir():
            return
        name = info.name.removeprefix("./")
        sort, why = self._sort_of(name, info, stream)
        if why == HIDDEN or (not sort and info.isreg()):
            self.left_out.add(name, why)
        elif not info.isreg() or info.issparse() or is_unsafe(info.name):
            self.order.append(Member(escaped(info.name), code="E1106"))
        else:
            # an ending that is none, as in 1.2.840.113, belongs to the key
            key = name.removesuffix(posixpath.splitext(name)[1]) if ending(name) in KNOWN else name
            row = self._open.get(key)
            spot = (info.offset_data, info.size)
            taken = row is not None and getattr(row, sort) != NONE
            if row is None or taken:
                row = Member(key)
                self.order.append(row)
                if not taken:
                    self._open[key] = row
            setattr(row, sort, spot)
            row.suffix = name[len(key) :] if sort == "image" else row.suffix
            row.stamps.append((info.chksum, info.mtime))

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


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Index a shard by its headers.

    Raises DataError E1105 for one that is cut or compressed, E1101 for one without questions or
    without a column that was asked for.
    """
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    result, settings = Draft(), archive.settings
    filesystem, path = file_path(archive, file)
    with filesystem.open_input_file(path) as opened:
        stream = io.BufferedReader(opened, READ_AHEAD)
        found, borders = index(stream, file, settings.question is None)
        members = found.order[:limit]
        result.left_out = found.left_out
        ends = [*(min(border, len(members)) for border in borders), len(members)]
        reader = Reader(settings, stream)
        ids = []
        for begin, end in zip([0, *ends], ends, strict=False):
            proof = hashlib.sha256()
            for member in members[begin:end]:
                ids.append(row_id(settings, member.key, reader.cells(member.at())))
                proof.update(f"{member.at()} {member.stamps} ".encode())
                proof.update(reader.read)
            result.proofs.append(Piece(end - begin, 0, "", proof.hexdigest(), found.end))
        if settings.question is None and members:
            check_columns(settings, file.name, reader)
        if settings.fingerprint == "full":
            prove_content(result, file, opened)
    result.rows = len(members)
    if settings.id_column != columns.NO_COLUMN:
        result.ids = iter([ids])
    begin, size = 0, 0
    for row, member in enumerate(members):
        more = member.image[1]
        full = row - begin == settings.chunk_rows or row in ends
        if full or (row > begin and size + more > CHUNK_BYTES):
            if row > begin:
                result.cuts.append(cut(members, begin, row))
            begin, size = row, 0
        size += more
    if members[begin:]:
        result.cuts.append(cut(members, begin, len(members)))
    return result


def cut(members: list[Member], begin: int, end: int) -> Cut:
    return Cut(range(begin, end), at=tuple(member.at() for member in members[begin:end]))


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
    return found, borders + [len(found.order)] * len(ends)


def prove_content(result: Draft, file: SourceFile, opened: Any) -> None:
    """Under `fingerprint=full`, a piece is proved by all bytes up to its end."""
    ends = [piece.end for piece in file.pieces] + [result.proofs[-1].end]
    digest, position = hashlib.sha256(), 0
    opened.seek(0)
    for number, end in enumerate(ends):
        while position < end and (block := opened.read(min(2**20, end - position))):
            digest.update(block)
            position += len(block)
        result.proofs[number] = result.proofs[number]._replace(proof=digest.hexdigest())


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
            if info.offset_data + info.size > file.size and info.isreg():
                raise tarfile.ReadError("cut member")
            yield info, tar.offset
        # a damaged header ends tarfile's loop without a word: only the end mark says it is whole
        stream.seek(tar.offset)
        mark = stream.read(BLOCK)
        rest = any(any(block) for block in iter(lambda: stream.read(READ_AHEAD), b""))
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError, MemoryError) as error:
        raise DataError(
            "E1105", f"{file.name}: not a complete tar file ({type(error).__name__})."
        ) from error
    if mark != bytes(BLOCK):
        raise DataError("E1105", f"{file.name}: cut or damaged: it ends without tar's end mark.")
    if rest:
        raise DataError("E1105", f"{file.name}: there is data after tar's end mark.")


class Reader:
    """Reads the text members of rows."""

    def __init__(self, settings: ArchiveSettings, stream: Any) -> None:
        self.settings, self.stream = settings, stream
        self.read = b""
        """What the last row's members hold."""
        self.names: dict[str, None] = {}
        """Columns of the json members so far."""
        self.num_texts = self.num_jsons = 0

    def cells(self, at: tuple[Any, ...]) -> dict[str, Any]:
        """The cells of a row: question, id, reference; or error. The json goes before the text.

        One that cannot be used harms no row that has a text, where no column of it is asked for.
        """
        self.read = b""
        if at[-1]:
            text = "the tar member is a link, a device, or named outwards."
            return {"error": DataError(at[-1], text)}
        try:
            cells = self._columns(at[5], at[6], at[3] >= 0) if at[5] >= 0 else {}
            asked = cells.get("question") is not None or "dialogue" in cells
            if at[3] >= 0 and not asked:
                cells["question"] = self._member(at[3], at[4]).removeprefix(b"\xef\xbb\xbf")
                self.num_texts += 1
        except DataError as error:
            return {"error": error}
        return cells

    def _columns(self, offset: int, size: int, has_text: bool) -> dict[str, Any]:
        """The cells of a json member, or a warning."""
        asked = self.settings.asked
        is_needed = not has_text or asked._replace(image="image", id=None) != columns.Asked()
        is_needed = is_needed or asked.id not in (None, columns.NO_COLUMN)
        try:
            cells = self._json(offset, size)
            if isinstance(cells.get("dialogue"), DataError):
                raise cells["dialogue"]
        except DataError:
            if is_needed:
                raise
            return {"warnings": ("json_unusable",)}
        return cells

    def _member(self, offset: int, size: int) -> bytes:
        if size > MAX_TEXT_BYTES:
            raise DataError("E1109", f"the text member has {size} bytes.")
        self.stream.seek(offset)
        data: bytes = self.stream.read(size)
        self.read += data
        return data

    def _json(self, offset: int, size: int) -> dict[str, Any]:
        data = self._member(offset, size)
        self.num_jsons += 1
        try:
            names, values, error = json_values(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise DataError("E1304", "the text member is not UTF-8.") from None
        if error is not None:
            raise error
        self.names.update(dict.fromkeys(names))
        return pick(columns.resolve(self.settings.asked, names), values)


def check_columns(settings: ArchiveSettings, name: str, reader: Reader) -> None:
    """Raises DataError E1101 for a shard without questions, or without a column asked for."""
    if not reader.num_texts and not reader.num_jsons:
        raise DataError(
            "E1101",
            f"{name}: no member holds a question (key.txt, key.json); give --question TEXT.",
        )
    if not reader.names:
        return
    names = tuple(reader.names)
    asked, found = settings.asked, columns.resolve(settings.asked, names)
    missing = {}
    if not (found.question or found.turns or reader.num_texts):
        missing["question"] = settings.question_column
    if asked.id not in (None, columns.NO_COLUMN) and found.id is None:
        missing["id"] = str(asked.id)
    if asked.answer is not None and found.answer is None:
        missing["answer"] = asked.answer
    if missing:
        raise columns.no_column(name, missing, names)


def row_id(settings: ArchiveSettings, key: str, cells: dict[str, Any]) -> Any:
    """The id of a row: the one in its JSON, or its key with ':' between folders."""
    if "error" in cells:
        return None
    if settings.id_column is not None or cells.get("id") is not None:
        return cells.get("id")
    return key.replace("/", ":")


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its image."""
    file = archive.files[chunk.file]
    filesystem, path = file_path(archive, file)
    limit = archive.settings.max_image_bytes
    with filesystem.open_input_file(path) as opened:
        reader = Reader(archive.settings, opened)
        with_id = archive.settings.id_column != columns.NO_COLUMN
        for number, at in zip(chunk.rows, chunk.at, strict=True):
            cells = reader.cells(at)
            cells["id"] = row_id(archive.settings, at[0], cells)
            row = make_row(archive, chunk, number, cells, with_id)
            row.warnings += cells.get("warnings", ())
            row.image_name = at[0] + at[-2]
            if row.error is None:
                try:
                    check_marks(row.marks, 1)
                except DataError as error:
                    row.error = error
            if row.error is None:
                offset, size = at[1], at[2]
                if offset < 0:
                    row.error = DataError("E1111", "the key has a text member but no image.")
                elif size > limit:
                    row.error = DataError("E1112", f"the image has {size} bytes; at most {limit}.")
                else:
                    opened.seek(offset)
                    row.image = opened.read(size)
                    if len(row.image) != size:
                        raise DataError("E1107", f"{file.name} is shorter than it was.")
            yield row
