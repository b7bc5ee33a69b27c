"""Tar shards: members `key.jpg` with `key.txt` or `key.json` beside them. Nothing is extracted.

Headers are read once, at planning (`tar_index`); a chunk then finds its members by offset.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

from medv_ray.archive.chunks import CHUNK_BYTES, Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import make_row, pick
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import Archive, file_path
from medv_ray.archive.tar_index import READ_AHEAD, Member, index
from medv_ray.errors import DataError
from medv_ray.tables import columns
from medv_ray.tables.cells import check_marks
from medv_ray.tables.json_text import json_values

MAX_TEXT_BYTES = 2**20


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
    cuts: list[Cut] = []
    begin, size = 0, 0
    for row, member in enumerate(members):
        more = member.image[1]
        full = row - begin == settings.chunk_rows or row in ends
        if full or (row > begin and size + more > CHUNK_BYTES):
            if row > begin:
                cuts.append(cut(members, begin, row))
            begin, size = row, 0
        size += more
    if members[begin:]:
        cuts.append(cut(members, begin, len(members)))
    result.cuts = cuts
    return result


def cut(members: list[Member], begin: int, end: int) -> Cut:
    return Cut(range(begin, end), at=tuple(member.at() for member in members[begin:end]))


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
            limit = f"the limit is {MAX_TEXT_BYTES}"
            raise DataError("E1109", f"the text member has {size} bytes; {limit}.")
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
        columns.check_more(settings.asked, (), name)
        return
    names = tuple(reader.names)
    asked, found = settings.asked, columns.resolve(settings.asked, names)
    missing = {}
    if asked.question is not None and not (found.question or found.turns or reader.num_texts):
        missing["question"] = settings.question_column
    if asked.id not in (None, columns.NO_COLUMN) and found.id is None:
        missing["id"] = str(asked.id)
    if asked.answer is not None and found.answer is None:
        missing["answer"] = asked.answer
    if asked.choices not in (None, columns.NO_COLUMN) and found.choices is None:
        missing["choices"] = str(asked.choices)
    if missing:
        raise columns.no_column(name, missing, names)
    columns.check_more(asked, names, name)


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
