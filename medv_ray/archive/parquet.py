"""Parquet files as rows: footer, ids, and chunk after chunk with memory bounded by a few pages.

Image cells are a struct {bytes, path} as Hugging Face writes it, plain binary, or a path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as types

from medv_ray.archive.columns import Columns, find_columns, make_row
from medv_ray.archive.pictures import named_image
from medv_ray.archive.sources import Archive, ArchiveSettings, Chunk, Row, SourceFile, file_path
from medv_ray.errors import DataError

STREAM_BYTES = 2**20  # read-ahead of one column
BATCH_BYTES = 8 * 2**20  # aimed at, decoded at once
CHUNK_BYTES = 128 * 2**20  # images of one chunk, by the row group's average
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 1000
BROKEN = (OSError, pa.ArrowException, UnicodeDecodeError)


class Group(NamedTuple):
    """One row group, by the footer."""

    first: int
    rows: int
    average: int
    """Bytes of an image cell, decompressed."""
    bomb: bool


class Footer(NamedTuple):
    """What the planner needs of a file."""

    groups: tuple[Group, ...]
    columns: Columns
    image_kind: str


def open_parquet(archive: Archive, file: SourceFile) -> pq.ParquetFile:
    """Raises DataError E1105 when it is no readable parquet file."""
    filesystem, path = file_path(archive, file)
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    try:
        return pq.ParquetFile(
            filesystem.open_input_file(path),
            buffer_size=STREAM_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except BROKEN as error:
        raise DataError(
            "E1105", f"{file.name}: not a complete parquet file ({type(error).__name__})."
        ) from error


def read_footer(settings: ArchiveSettings, file: SourceFile, opened: pq.ParquetFile) -> Footer:
    """Row groups and columns. Raises DataError E1101 and E1109 for missing or mistyped columns."""
    schema = opened.schema_arrow
    columns = find_columns(settings, schema.names, file.name)
    kind = image_kind(schema.field(columns.image).type, columns.image, file.name)
    for name in (columns.question, columns.answer, columns.id):
        if name is not None:
            check_cell_type(schema.field(name).type, name, columns, file.name)
    groups, first = [], 0
    leaf = f"{columns.image}.bytes" if kind == "struct" else columns.image
    for number in range(opened.metadata.num_row_groups):
        group = opened.metadata.row_group(number)
        size, packed = 0, 0
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema == leaf:
                size, packed = column.total_uncompressed_size, column.total_compressed_size
        bomb = size > BOMB_BYTES and size > BOMB_RATIO * max(packed, 1)
        average = size // max(group.num_rows, 1)
        groups.append(Group(first, group.num_rows, average, bomb))
        first += group.num_rows
    return Footer(tuple(groups), columns, kind)


def image_kind(kind: pa.DataType, name: str, file: str) -> str:
    """`struct`, `binary` or `path`. Raises DataError E1109."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]:
        return "struct"
    if is_bytes(kind):
        return "binary"
    if is_text(kind):
        return "path"
    raise DataError(
        "E1109", f"{file}: column {name!r} is {kind}; an image is bytes, {{bytes, path}} or a path."
    )


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    )


def check_cell_type(kind: pa.DataType, name: str, columns: Columns, file: str) -> None:
    """Questions are text; ids text or whole numbers; answers text or numbers."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    good = is_text(kind) or types.is_null(kind)
    good = good or (name == columns.id and types.is_integer(kind))
    good = good or (name == columns.answer and types.is_primitive(kind))
    if not good:
        raise DataError("E1109", f"{file}: column {name!r} is {kind}, which is no text.")


def read_ids(opened: pq.ParquetFile, column: str, limit: int) -> Iterator[list[Any]]:
    """The cells of the id column, batch by batch."""
    left = limit
    for batch in opened.iter_batches(columns=[column], batch_size=8192, use_threads=False):
        cells = cells_of(batch.column(0).slice(0, left))
        left -= len(cells)
        yield cells
        if left <= 0:
            return


def cells_of(array: pa.Array) -> list[Any]:
    """Python values; text that is not UTF-8 stays bytes."""
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not is_text(array.type):
        return array.to_pylist()  # type: ignore[no-any-return]
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [as_text(cell) for cell in array.cast(pa.large_binary()).to_pylist()]


def as_text(cell: bytes | None) -> str | bytes | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell


class Cursor:
    """A place in one row group that only moves forward; the next chunk goes on from there."""

    def __init__(self, archive: Archive, number: int, group: int) -> None:
        file = archive.files[number]
        self.settings = archive.settings
        self.opened = open_parquet(archive, file)
        self.footer = read_footer(archive.settings, file, self.opened)
        self.group = self.footer.groups[group]
        columns = self.footer.columns
        image = columns.image
        leaves = [f"{image}.bytes", f"{image}.path"]
        names = leaves if self.footer.image_kind == "struct" else [image]
        names += [n for n in (columns.id, columns.question, columns.answer) if n is not None]
        fitting = BATCH_BYTES // max(self.group.average, 1)
        rows = max(1, min(archive.settings.chunk_rows, fitting))
        self.batches = self.opened.iter_batches(
            batch_size=rows, row_groups=[group], columns=names, use_threads=False
        )
        self.position = self.group.first
        self.batch: pa.RecordBatch | None = None

    def take(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches that cover rows [start, stop) of the file, each with its first row's number."""
        while self.position < stop:
            if self.batch is None or not self.batch.num_rows:
                self.batch = next(self.batches)
            begin = max(start - self.position, 0)
            end = min(stop - self.position, self.batch.num_rows)
            rest, first = self.batch.slice(end), self.position + begin
            part = self.batch.slice(begin, end - begin) if end > begin else None
            self.batch, self.position = rest, self.position + end
            if part is not None:
                yield first, part


class _Open(threading.local):
    """The cursor that the last chunk of this thread left behind."""

    cursor: Cursor | None = None
    at: tuple[object, ...] = ()
    bad_from: dict[tuple[object, ...], int]

    def __init__(self) -> None:
        self.bad_from = {}


_open = _Open()


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk, each with its image."""
    file = archive.files[chunk.file]
    assert isinstance(chunk.rows, range)
    at = (archive.uri, archive.settings, file, chunk.group)
    start, stop = chunk.rows.start, chunk.rows.stop
    done = start
    try:
        if _open.bad_from.get(at, stop) <= start:
            raise DataError("E1105", f"{file.name}: damaged before row {stop}.")
        if _open.cursor is None or _open.at != at or _open.cursor.position > start:
            _open.cursor = None
            _open.cursor, _open.at = Cursor(archive, chunk.file, chunk.group[0]), at
        cursor = _open.cursor
        if cursor.group.bomb:
            raise DataError("E1112", f"{file.name}: image cells unpack to over {BOMB_RATIO} times.")
        for first, batch in cursor.take(start, stop):
            for row in batch_rows(archive, chunk, cursor.footer, first, batch):
                yield row
                done = row.row + 1
    except (*BROKEN, StopIteration, DataError) as error:
        _open.cursor = None
        if not isinstance(error, DataError):
            if len(_open.bad_from) > 64:
                _open.bad_from.clear()
            _open.bad_from[at] = done
            error = DataError("E1105", f"{file.name}: rows from {done} on do not decode.")
        for row_number in range(done, stop):
            yield make_row(archive, chunk, row_number, {"error": error}, has_id=False)


def batch_rows(
    archive: Archive, chunk: Chunk, footer: Footer, first: int, batch: pa.RecordBatch
) -> Iterator[Row]:
    """Rows of one decoded batch."""
    columns = footer.columns
    cells = {
        name: cells_of(batch.column(column))
        for name, column in (
            ("id", columns.id),
            ("question", columns.question),
            ("reference", columns.answer),
        )
        if column is not None
    }
    image = batch.column(columns.image)
    held, paths = image_cells(image, footer.image_kind)
    last: bytes | None = None
    for offset in range(batch.num_rows):
        values = {name: column[offset] for name, column in cells.items()}
        row = make_row(archive, chunk, first + offset, values, has_id=columns.id is not None)
        row.image_name = paths[offset] if paths is not None else None
        if row.error is None:
            try:
                row.image = image_of(archive, held, offset, row.image_name)
            except DataError as error:
                row.error = error
        if row.image is not None and row.image == last:
            row.image = last  # repeats share one object
        last = row.image or last
        yield row


def image_cells(image: pa.Array, kind: str) -> tuple[pa.Array | None, list[str | None] | None]:
    """Bytes and names of a batch of image cells."""
    if types.is_dictionary(image.type):
        image = image.cast(image.type.value_type)
    if kind == "path":
        return None, cells_of(image)
    if kind == "binary":
        return image, None
    names = [image.type.field(i).name for i in range(image.type.num_fields)]
    held = pc.struct_field(image, "bytes")
    if "path" not in names:
        return held, None
    return held, cells_of(pc.struct_field(image, "path"))


def image_of(archive: Archive, held: pa.Array | None, offset: int, name: object) -> bytes | None:
    """One image's bytes: the cell's own, or the file that it names."""
    limit = archive.settings.max_image_bytes
    cell = held[offset] if held is not None else None
    if cell is not None and cell.is_valid:
        buffer = cell.as_buffer()
        if buffer.size > limit:
            raise DataError("E1112", f"the image has {buffer.size} bytes; at most {limit}.")
        return buffer.to_pybytes()  # type: ignore[no-any-return]
    return named_image(archive, name)
