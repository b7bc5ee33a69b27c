"""Tar shards: members `key.jpg` with `key.txt` or `key.json` beside them. Nothing is extracted.

Headers are read once, at planning; a chunk then finds its members by offset.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medv_ray.archive.chunks import CHUNK_BYTES, Chunk, Cut, Draft, Row, SourceFile
from medv_ray.archive.columns import make_row
from medv_ray.archive.sources import IMAGE_ENDINGS, Archive, ending, file_path
from medv_ray.errors import DataError
from medv_ray.tables.json_text import strict_json

TEXT_ENDINGS = (".txt", ".json")
MAX_TEXT_BYTES = 2**20
READ_AHEAD = 2**18
BLOCK = 512


@dataclass(slots=True)
class Member:
    """The members of one key: a row."""

    key: str
    image: tuple[int, int] | None = None
    """Offset and bytes."""
    text: tuple[int, int] | None = None
    is_json: bool = False
    code: str = ""
    """The error of a member that is refused."""

    def at(self) -> tuple[Any, ...]:
        """As a chunk carries it."""
        none = (-1, 0)
        return (self.key, *(self.image or none), *(self.text or none), self.is_json, self.code)


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Index a shard by its headers. Raises DataError E1105 for one that is cut or compressed."""
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    result = Draft()
    with_text = archive.settings.question is None
    filesystem, path = file_path(archive, file)
    with filesystem.open_input_file(path) as opened:
        stream = io.BufferedReader(opened, READ_AHEAD)
        members, result.ignored = index(stream, file, with_text)
        members = members[:limit]
        ids = [row_id(member.key, read_text(stream, member.at())) for member in members]
    result.rows = len(members)
    result.ids = iter([ids])
    begin, size = 0, 0
    for row, member in enumerate(members):
        more = member.image[1] if member.image else 0
        full = row - begin == archive.settings.chunk_rows
        if full or (row > begin and size + more > CHUNK_BYTES):
            result.cuts.append(cut(members, begin, row))
            begin, size = row, 0
        size += more
    if members:
        result.cuts.append(cut(members, begin, len(members)))
    return result


def cut(members: list[Member], begin: int, end: int) -> Cut:
    return Cut(range(begin, end), at=tuple(member.at() for member in members[begin:end]))


def index(stream: Any, file: SourceFile, with_text: bool) -> tuple[list[Member], int]:
    """The rows of a shard in the order of their first member, and how many members are no part."""
    rows: dict[str, Member] = {}
    extra: list[Member] = []
    ignored = 0
    order: list[Member] = []
    for info in headers(stream, file):
        kind = ending(info.name)
        if info.isdir():
            continue
        wanted = kind in IMAGE_ENDINGS or (with_text and kind in TEXT_ENDINGS)
        if not info.isreg() or info.issparse() or is_unsafe(info.name):
            if wanted or not info.isreg():
                extra.append(Member(info.name, code="E1106"))
                order.append(extra[-1])
            continue
        if not wanted:
            ignored += 1
            continue
        key = info.name[: -len(kind)].removeprefix("./")
        row = rows.get(key)
        spot = (info.offset_data, info.size)
        taken = row is not None and (row.image if kind in IMAGE_ENDINGS else row.text)
        if row is None or taken:
            row = Member(key)
            order.append(row)
            if not taken:
                rows[key] = row
        if kind in IMAGE_ENDINGS:
            row.image = spot
        else:
            row.text, row.is_json = spot, kind == ".json"
    return order, ignored


def is_unsafe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or ":" in parts[0]


def headers(stream: Any, file: SourceFile) -> Iterator[tarfile.TarInfo]:
    """All headers up to the end mark. Raises DataError E1105 where a shard ends without one."""
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
            yield info
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


def read_text(stream: Any, at: tuple[Any, ...]) -> dict[str, Any]:
    """The cells of a row's text member: question, id, answer; or error."""
    _, _, _, offset, size, is_json, code = at
    if code:
        return {"error": DataError(code, "the tar member is a link, a device, or named outwards.")}
    if offset < 0:
        return {}
    if size > MAX_TEXT_BYTES:
        return {"error": DataError("E1109", f"the text member has {size} bytes.")}
    stream.seek(offset)
    data = stream.read(size)
    if not is_json:
        return {"question": data.removeprefix(b"\xef\xbb\xbf")}
    try:
        record = strict_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        return {"error": DataError("E1109", "the text member is no valid JSON object.")}
    return {name: record.get(name) for name in ("question", "id", "answer")}


def row_id(key: str, cells: dict[str, Any]) -> Any:
    """The id of a row: the one in its JSON, or its key with ':' between folders."""
    if "error" in cells:
        return None
    return cells["id"] if cells.get("id") is not None else key.replace("/", ":")


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its image."""
    file = archive.files[chunk.file]
    filesystem, path = file_path(archive, file)
    limit = archive.settings.max_image_bytes
    with filesystem.open_input_file(path) as opened:
        for number, at in zip(chunk.rows, chunk.at, strict=True):
            cells = read_text(opened, at)
            told = {
                "id": row_id(at[0], cells),
                "question": cells.get("question"),
                "reference": cells.get("answer"),
            }
            if "error" in cells:
                told["error"] = cells["error"]
            row = make_row(archive, chunk, number, told, has_id=True)
            row.image_name = at[0]
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
