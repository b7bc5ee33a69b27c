"""Question tables: csv, tsv, jsonl, and json as a list, as an object or as lines.

A row is found again by its byte span: a chunk is read without reading what is before it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from medv_ray.archive.chunks import Chunk, Cut, Draft, Piece, Row, SourceFile
from medv_ray.archive.columns import make_row, pick
from medv_ray.archive.pictures import give_images, named_in
from medv_ray.archive.sources import Archive, file_path
from medv_ray.errors import DataError
from medv_ray.tables import columns
from medv_ray.tables.record import Style
from medv_ray.tables.records import open_table, read_again

MAX_COLUMNS = 64
"""Names that are kept of a table whose records have names of their own; those that are asked for
are kept whenever they come."""
WINDOW = 4096  # rows inside which questions on one image are brought together


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Read the table once and group its rows by image inside windows.

    Raises DataError E1101, E1105, E1109, E1120 for a table that cannot be read as a whole.
    """
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    asked = archive.settings.asked
    result = Draft()
    made: list[Cut] = []
    found: Counter[str] = Counter()  # names of columns, in the order of their first use
    names: tuple[str, ...] | None = None
    ids: list[Any] = []
    window: list[tuple[str, int, int, int]] = []  # image, row, offset, length
    borders, proof = set(file.borders()), hashlib.sha256()
    filesystem, path = file_path(archive, file)
    with filesystem.open_input_file(path) as opened:
        table = open_table(
            opened, file.name, archive.settings.reading, partial(columns.is_row, asked)
        )
        for record in table.records:
            if limit is not None and result.rows >= limit:
                break
            chosen = columns.resolve(asked, record.names)
            if record.names != names:
                names = record.names
                known = names if len(found) < MAX_COLUMNS else (chosen.image, *chosen.cells)
                found |= Counter(name for name in known if name is not None)
            cells = pick(chosen, record.values)
            if result.rows in borders:
                made += cuts(window, archive.settings.chunk_rows)
                window = []
                close_piece(result, proof)
                proof = hashlib.sha256()
            cells.pop("answer_type", None)  # no answer hangs on it
            proof.update(f"{record.names} {cells} {record.error!r}\n".encode(errors="replace"))
            named = named_in(cells["image"])
            result.images.update(named)
            ids.append(cells["id"])
            at = (named or ("",))[0], result.rows, record.offset, record.length
            window.append(at)
            result.rows += 1
            if len(window) == WINDOW:
                made += cuts(window, archive.settings.chunk_rows)
                window = []
    made += cuts(window, archive.settings.chunk_rows)
    close_piece(result, proof)
    header = tuple(found.elements())
    if header:
        columns.find(asked, header, file.name)
    header, style = table.header or header, tuple(table.style)
    result.cuts = [cut._replace(header=header, style=style) for cut in made]
    if columns.resolve(asked, tuple(found)).id is not None:
        result.ids = iter([ids])
    return result


def close_piece(result: Draft, proof: Any) -> None:
    """The rows since the last piece are one; the digest `proof` is of their cells."""
    begin = sum(piece.rows for piece in result.proofs)
    result.proofs.append(Piece(result.rows - begin, 0, "", proof.hexdigest()))


def cuts(window: list[tuple[str, int, int, int]], chunk_rows: int) -> Iterator[Cut]:
    """Chunks of a window's rows, rows of one image side by side."""
    ordered = sorted(window)
    for first in range(0, len(ordered), chunk_rows):
        mine = ordered[first : first + chunk_rows]
        rows = tuple(row for _, row, _, _ in mine)
        yield Cut(rows, at=tuple((offset, length) for *_, offset, length in mine))


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its pictures; rows of one picture share one object."""
    file = archive.files[chunk.file]
    asked, style = archive.settings.asked, Style(*chunk.style)
    with_id = columns.resolve(asked, chunk.header).id is not None
    filesystem, path = file_path(archive, file)
    last_cell: Any = None
    last: Row | None = None
    with filesystem.open_input_file(path) as opened:
        for number, (offset, length) in zip(chunk.rows, chunk.at, strict=True):
            opened.seek(offset)
            values, error = read_again(file.name, style, chunk.header, opened.read(length))
            cells = pick(columns.resolve(asked, tuple(values)), values)
            if error is not None:
                cells["error"] = error
            row = make_row(archive, chunk, number, cells, with_id)
            give_images(archive, row, cells["image"], last if cells["image"] == last_cell else None)
            if row.images:
                last_cell, last = cells["image"], row
            yield row
