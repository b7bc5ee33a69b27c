"""Rows of a parquet file, chunk after chunk, with memory bounded by a few pages.

A cursor stays in its row group between chunks: the next chunk goes on where the last one ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from medv_ray.archive.chunks import Chunk, Row, SourceFile
from medv_ray.archive.columns import make_row, pick
from medv_ray.archive.parquet import (
    BATCH_BYTES,
    BATCH_ROWS,
    BOMB_RATIO,
    BROKEN,
    STREAM_BYTES,
    Footer,
    open_parquet,
    read_footer,
)
from medv_ray.archive.pictures import give_images, inside
from medv_ray.archive.sources import Archive, check_unchanged, file_path
from medv_ray.archive.store import is_local
from medv_ray.errors import DataError
from medv_ray.tables.arrow_cells import cells_of, is_bytes, value_of

BASE64_RATIO = 1.5  # of text to the bytes that it stands for, line ends included


class Cursor:
    """A position in one row group that only moves forward; the next chunk goes on from there."""

    def __init__(self, archive: Archive, number: int, group: int, exact: bool = False) -> None:
        file = archive.files[number]
        self.settings = archive.settings
        self.opened = open_parquet(archive, file)
        self.footer = read_footer(archive.settings, file, self.opened)
        self.group = self.footer.groups[group]
        columns = self.footer.columns
        image = columns.image
        leaves = [f"{image}.bytes", f"{image}.path"]
        names = leaves if self.footer.image_kind == "struct" else []
        whole = None if self.footer.image_kind == "struct" else image
        names += columns.cells if whole is None else [*columns.cells, whole]
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(self.group.average, 1)))
        if exact:  # so small that a damaged page costs no row before it
            rows = min(rows, max(1, self.group.rows // 100_000))
        self.batches = self.opened.iter_batches(
            batch_size=rows, row_groups=[group], columns=names, use_threads=False
        )
        self.position = self.group.first
        self.batch: pa.RecordBatch | None = None

    def take(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches that cover rows [start, stop) of the file, each with its first row's number."""
        while self.position < stop:
            if self.batch is None or not self.batch.num_rows:
                self.batch = next(self.batches, None)
                if self.batch is None:
                    raise pa.ArrowInvalid("fewer rows than the footer says")
            begin = max(start - self.position, 0)
            end = min(stop - self.position, self.batch.num_rows)
            rest, first = self.batch.slice(end), self.position + begin
            part = self.batch.slice(begin, end - begin) if end > begin else None
            self.batch, self.position = rest, self.position + end
            if part is not None:
                yield first, part


class _Open(threading.local):
    """What the last chunk of this thread left behind."""

    def __init__(self) -> None:
        self.cursor: Cursor | None = None
        self.at: tuple[object, ...] = ()
        self.damaged: dict[tuple[object, ...], int] = {}  # first row that does not decode


_open = _Open()


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its image. Rows behind a damaged page carry E1105.

    Raises DataError E1107, or OSError, when the file cannot be read at the moment.
    """
    file = archive.files[chunk.file]
    assert isinstance(chunk.rows, range)
    at = (archive.uri, archive.settings, file, chunk.group)
    done, stop = chunk.rows.start, chunk.rows.stop
    problem: DataError | None = None
    for exact in (False, True):
        if done < _open.damaged.get(at, stop):
            try:
                for row in decode(archive, chunk, at, done, exact):
                    yield row
                    done = row.row + 1
                return
            except BROKEN as error:
                _open.cursor = None
                check_readable(archive, file, error)
            except DataError as error:
                _open.cursor = None
                if error.code == "E1107":
                    raise
                problem = error
                break
    if problem is None:
        if len(_open.damaged) > 64:
            _open.damaged.clear()
        first = _open.damaged.setdefault(at, done)
        problem = DataError("E1105", f"{file.name}: rows from {first} on do not decode.")
    for row_number in range(done, stop):
        yield make_row(archive, chunk, row_number, {"error": problem}, has_id=False)


def decode(
    archive: Archive, chunk: Chunk, at: tuple[object, ...], start: int, exact: bool
) -> Iterator[Row]:
    """Rows of a chunk from `start` on; raises where they do not decode."""
    assert isinstance(chunk.rows, range)
    if _open.cursor is None or _open.at != at or _open.cursor.position > start:
        _open.cursor = None
        _open.cursor, _open.at = Cursor(archive, chunk.file, chunk.group[0], exact), at
    cursor = _open.cursor
    if cursor.group.bomb:
        name = archive.files[chunk.file].name
        raise DataError("E1112", f"{name}: image cells unpack to over {BOMB_RATIO} times.")
    for first, batch in cursor.take(start, chunk.rows.stop):
        yield from batch_rows(archive, chunk, cursor.footer, first, batch)


def check_readable(archive: Archive, file: SourceFile, error: Exception) -> None:
    """Tell damage from a failing disk or network: return when the file's bytes can be read.

    Raises `error`, another OSError, or DataError E1107 when the file is not the planned one.
    """
    if isinstance(error, OSError) and error.errno:
        raise error  # the system's, not the decoder's
    check_unchanged(archive, file)
    if is_local(archive.uri):
        return
    filesystem, path = file_path(archive, file)
    with filesystem.open_input_stream(path) as opened:
        while opened.read(STREAM_BYTES):
            pass


def batch_rows(
    archive: Archive, chunk: Chunk, footer: Footer, first: int, batch: pa.RecordBatch
) -> Iterator[Row]:
    """Rows of one decoded batch."""
    columns = footer.columns
    cells = {name: cells_of(batch.column(name)) for name in columns.cells}
    limit = archive.settings.max_image_bytes
    image = Images(batch.column(columns.image), footer.image_kind) if columns.image else None
    last: Row | None = None
    for offset in range(batch.num_rows):
        picked = pick(columns, {name: column[offset] for name, column in cells.items()})
        row = make_row(archive, chunk, first + offset, picked, has_id=columns.id is not None)
        try:
            cell = picked["image"] if image is None else image.cell(offset, limit)
        except DataError as error:
            row.refuse(row.error or error)
            row.image_name = None if image is None else inside(archive, image.name(offset))
        else:
            give_images(archive, row, cell)
        if last is not None and row.images == last.images:
            row.images = last.images  # repeats share one object
        last = row if row.images else last
        yield row


class Images:
    """The image cells of a batch; a large one is not copied before its size is known."""

    def __init__(self, array: pa.Array, kind: str) -> None:
        if types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        self._array, self._kind = array, kind
        self._held = self._names = None
        if kind == "binary":
            self._held = array
        elif kind == "struct":
            self._held = pc.struct_field(array, "bytes")
            if array.type.get_field_index("path") >= 0:
                self._names = cells_of(pc.struct_field(array, "path"))
        elif kind == "text":
            self._names = cells_of(array)

    def name(self, offset: int) -> Any:
        """The path of a picture, where its column has one that is text."""
        name = self._names[offset] if self._names is not None else None
        return name if isinstance(name, str) else None

    def cell(self, offset: int, limit: int) -> Any:
        """As `tables.cells.pictures_of` takes it. Raises DataError E1112."""
        if self._held is not None:
            name, held = self.name(offset), self._held[offset]
            if not held.is_valid:
                return name
            if is_bytes(self._held.type) and held.as_buffer().size > limit * BASE64_RATIO:
                message = f"the image has {held.as_buffer().size} bytes; at most {limit}."
                raise DataError("E1112", message)
            return {"bytes": value_of(held), "path": name}
        return value_of(self._array[offset]) if self._names is None else self._names[offset]
