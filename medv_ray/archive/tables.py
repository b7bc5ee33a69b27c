"""Question tables: csv, jsonl, and json in a list or as LLaVA's conversations.

A row is found again by its byte span: a chunk is read without reading what is before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from medv_ray.archive.chunks import Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import find_columns, make_row
from medv_ray.archive.pictures import named_image
from medv_ray.archive.records import ENCODING, TURNS, parse, scan
from medv_ray.archive.sources import Archive, ArchiveSettings, file_path
from medv_ray.errors import DataError

MAX_COLUMNS = 64
WINDOW = 4096  # rows inside which questions on one image are brought together


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Read the table once and group its rows by image inside windows."""
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    result = Draft()
    found: dict[str, None] = {}  # names of columns, in the order of their first use
    ids: list[Any] = []
    window: list[tuple[str, int, int, int]] = []  # image, row, offset, length
    borders, proof = set(file.borders()), hashlib.sha256()
    for names, span in scan(archive, file):
        if limit is not None and result.rows >= limit:
            break
        if result.rows in borders:
            result.cuts += cuts(window, archive.settings.chunk_rows)
            window = []
            begin = sum(piece.rows for piece in result.proofs)
            result.proofs.append(Piece(result.rows - begin, 0, "", proof.hexdigest()))
            proof = hashlib.sha256()
        proof.update(f"{names} {span.cells}\n".encode(errors="surrogatepass"))
        if len(found) < MAX_COLUMNS:
            found.update(dict.fromkeys(names))
        image = span.cells.get("image")
        name = image if isinstance(image, str) else ""
        if name:
            result.images.add(name)
        ids.append(span.cells.get("id"))
        window.append((name, result.rows, span.offset, span.length))
        result.rows += 1
        if len(window) == WINDOW:
            result.cuts += cuts(window, archive.settings.chunk_rows)
            window = []
    result.cuts += cuts(window, archive.settings.chunk_rows)
    begin = sum(piece.rows for piece in result.proofs)
    result.proofs.append(Piece(result.rows - begin, 0, "", proof.hexdigest()))
    header = tuple(found)
    if header:
        check_header(archive.settings, header, file.name)
    result.cuts = [cut._replace(header=header) for cut in result.cuts]
    if has_id(archive.settings, header):
        result.ids = iter([ids])
    return result


def cuts(window: list[tuple[str, int, int, int]], chunk_rows: int) -> Iterator[Cut]:
    """Chunks of a window's rows, rows of one image side by side."""
    ordered = sorted(window)
    for first in range(0, len(ordered), chunk_rows):
        mine = ordered[first : first + chunk_rows]
        rows = tuple(row for _, row, _, _ in mine)
        yield Cut(rows, at=tuple((offset, length) for *_, offset, length in mine))


def has_id(settings: ArchiveSettings, header: tuple[str, ...]) -> bool:
    return settings.id_column is not None or "id" in header


def check_header(settings: ArchiveSettings, header: tuple[str, ...], file: str) -> None:
    """Raises DataError E1101 for a missing column: of JSON, one that no record has."""
    names = list(header)
    if any(turns in names for turns in TURNS):
        names += [n for n in (settings.question_column,) if n not in names]
    find_columns(settings, names, file)


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its image; rows of one image share one object."""
    file = archive.files[chunk.file]
    filesystem, path = file_path(archive, file)
    with_id = has_id(archive.settings, chunk.header)
    last: tuple[str, bytes] | None = None
    with filesystem.open_input_file(path) as opened:
        for row_number, (offset, length) in zip(chunk.rows, chunk.at, strict=True):
            opened.seek(offset)
            text = opened.read(length).decode(**ENCODING)
            cells = parse(archive.settings, file.name, chunk.header, text)
            row = make_row(archive, chunk, row_number, cells, with_id)
            name = cells.get("image")
            row.image_name = name if isinstance(name, str) else None
            if row.error is None and last is not None and last[0] == name:
                row.image = last[1]
            elif row.error is None:
                try:
                    row.image = named_image(archive, one_image(name))
                    last = (str(name), row.image)
                except DataError as error:
                    row.refuse(error)
            yield row


def one_image(value: Any) -> Any:
    """The only element of a list; anything else as it is. Raises DataError E1109 for several."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise DataError("E1109", f"the row names {len(value)} images; a row has one.")
    return value[0] if value else None
