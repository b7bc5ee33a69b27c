"""What the footer of a parquet file says: its columns, its row groups, and how to cut them.

Image cells are a struct {bytes, path} as Hugging Face writes it, plain binary, or a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from medv_ray.archive.chunks import CHUNK_BYTES, Cut, Draft, SourceFile
from medv_ray.archive.columns import Columns, find_columns
from medv_ray.archive.sources import Archive, ArchiveSettings, file_path
from medv_ray.archive.store import TROUBLE, reason_of
from medv_ray.errors import DataError

STREAM_BYTES = 2**20  # read-ahead of one column
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 1000
BROKEN = (*TROUBLE, UnicodeDecodeError)


class Group(NamedTuple):
    """One row group, by the footer."""

    first: int
    rows: int
    average: int
    """Bytes of a row, decompressed; nearly all of it is the image."""
    bomb: bool


class Footer(NamedTuple):
    """What the planner needs of a file."""

    groups: tuple[Group, ...]
    columns: Columns
    image_kind: str


def open_parquet(archive: Archive, file: SourceFile) -> pq.ParquetFile:
    """Raises one of BROKEN when it is no readable parquet file."""
    filesystem, path = file_path(archive, file)
    return pq.ParquetFile(
        filesystem.open_input_file(path),
        buffer_size=STREAM_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def read_footer(settings: ArchiveSettings, file: SourceFile, opened: pq.ParquetFile) -> Footer:
    """Row groups and columns. Raises DataError E1101 and E1109 for missing or mistyped columns."""
    schema = opened.schema_arrow
    columns = find_columns(settings, schema.names, file.name)
    kind = image_kind(schema.field(columns.image).type, columns.image, file.name)
    for name in (columns.question, columns.answer, columns.id):
        if name is not None:
            check_cell_type(schema.field(name).type, name, columns, file.name)
    groups, first = [], 0
    for number in range(opened.metadata.num_row_groups):
        # not .column(n): pyarrow lets some damage there end the process
        group = opened.metadata.row_group(number)
        size = group.total_byte_size
        bomb = size > BOMB_BYTES and size > BOMB_RATIO * file.size
        groups.append(Group(first, group.num_rows, size // max(group.num_rows, 1), bomb))
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
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def check_cell_type(kind: pa.DataType, name: str, columns: Columns, file: str) -> None:
    """Questions are text; ids text or whole numbers; answers text or numbers."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    good = is_text(kind) or types.is_null(kind)
    good = good or (name == columns.id and types.is_integer(kind))
    good = good or (name == columns.answer and types.is_primitive(kind))
    if not good:
        raise DataError("E1109", f"{file}: column {name!r} is {kind}, which is no text.")


def read_column(opened: pq.ParquetFile, column: str, limit: int) -> Iterator[list[Any]]:
    """The first `limit` cells of a column of ids or paths, batch by batch."""
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


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Chunks of at most `chunk_rows` rows inside row groups; fewer where images are large."""
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    try:
        opened = open_parquet(archive, file)
    except BROKEN as error:
        told = f"{file.name}: not a complete parquet file, or no access ({reason_of(error)})."
        raise DataError("E1105", told) from error
    footer = read_footer(archive.settings, file, opened)
    result = Draft()
    for number, group in enumerate(footer.groups):
        step = max(1, min(archive.settings.chunk_rows, CHUNK_BYTES // max(group.average, 1)))
        stop = group.first + group.rows
        if limit is not None:
            stop = min(stop, limit)
        for first in range(group.first, stop, step):
            span = range(first, min(first + step, stop))
            result.cuts.append(Cut(span, (number, group.first)))
        result.rows = max(result.rows, stop)
    if footer.columns.id is not None:
        result.ids = read_column(opened, footer.columns.id, result.rows)
    if footer.image_kind == "path":
        cells = read_column(opened, footer.columns.image, result.rows)
        result.images = {name for batch in cells for name in batch if isinstance(name, str)}
    return result
