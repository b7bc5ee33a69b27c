"""What the footer of a parquet file says: its columns, its row groups, and how to cut them.

Image cells are a struct {bytes, path} as Hugging Face writes it, plain binary, text (a path or
base64), or a list of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as types

from medv_ray.archive.chunks import CHUNK_BYTES, Draft, SourceFile
from medv_ray.archive.group_cuts import GroupCuts
from medv_ray.archive.pictures import named_in
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import Archive, file_path
from medv_ray.archive.store import TROUBLE, reason_of
from medv_ray.errors import DataError
from medv_ray.tables.arrow_cells import cells_of, is_bytes, is_list, is_text
from medv_ray.tables.columns import ANSWER_TYPE, Columns, find

STREAM_BYTES = 2**20  # read-ahead of one column
BATCH_BYTES = 8 * 2**20  # aimed at, decoded at once
BATCH_ROWS = 4096
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 1000
TEXTS, NAMES = "text", "text, number, date or bytes"
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
    columns = find(settings.asked, schema.names, file.name)
    kind = "none"
    if columns.image is not None:
        kind = image_kind(schema.field(columns.image).type, columns.image, file.name)
    if columns.question is not None:
        check_cell_type(schema.field(columns.question).type, columns.question, file.name, TEXTS)
    if columns.id is not None:
        try:
            check_cell_type(schema.field(columns.id).type, columns.id, file.name, NAMES)
        except DataError:
            if settings.id_column is not None:
                raise
            columns = columns._replace(id=None)  # nobody asked for it
    if columns.choices is not None:
        held = schema.field(columns.choices).type
        if not (is_list(held) or is_text(held) or is_bytes(held) or types.is_null(held)):
            if settings.choices_column is not None:
                said = f"{file.name}: column {columns.choices!r} is {held}; choices are lists."
                raise DataError("E1109", said)
            columns = columns._replace(choices=None)  # nobody asked for it
    if columns.answer_type is not None:
        try:
            check_cell_type(schema.field(ANSWER_TYPE).type, ANSWER_TYPE, file.name, TEXTS)
        except DataError:
            columns = columns._replace(answer_type=None)  # nor for this
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
    """`struct`, `binary`, `text` or `list`. Raises DataError E1109."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if is_list(kind):
        image_kind(kind.value_type, name, file)
        return "list"
    held = field_kind(kind, "bytes")
    if held is not None and (is_bytes(held) or is_text(held) or types.is_null(held)):
        return "struct"
    if held is None and field_kind(kind, "path") is not None:
        return "list"  # of one
    if is_bytes(kind):
        return "binary"
    if is_text(kind) or types.is_null(kind):
        return "text"
    message = "an image is bytes, {bytes, path}, a path, base64, or a list of these"
    raise DataError("E1109", f"{file}: column {name!r} is {kind}; {message}.")


def field_kind(kind: pa.DataType, name: str) -> pa.DataType | None:
    """The type of a struct's field; None where there is none."""
    if not types.is_struct(kind) or kind.get_field_index(name) < 0:
        return None
    held = kind.field(name).type
    return held.value_type if types.is_dictionary(held) else held


def check_cell_type(kind: pa.DataType, name: str, file: str, what: str) -> None:
    """Questions are text; ids text, numbers, dates or bytes. Raises DataError E1109."""
    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    good = is_text(kind) or types.is_null(kind) or is_bytes(kind)
    if what == NAMES:
        good = good or (types.is_primitive(kind) and not types.is_boolean(kind))
        good = good or types.is_decimal(kind)
    if not good:
        raise DataError("E1109", f"{file}: column {name!r} is {kind}, which is no {what}.")


def read_column(opened: pq.ParquetFile, column: str, limit: int) -> Iterator[list[Any]]:
    """The first `limit` cells of a column of ids or paths, batch by batch."""
    left = limit
    for batch in opened.iter_batches(columns=[column], batch_size=8192, use_threads=False):
        cells = cells_of(batch.column(0).slice(0, left))
        left -= len(cells)
        yield cells
        if left <= 0:
            return


def named_files(opened: pq.ParquetFile, footer: Footer, limit: int) -> Iterator[str]:
    """The paths in the first `limit` image cells that stand for files.

    Rows that do not decode name none: they are quarantined when they are read.
    """
    image = footer.columns.image
    if image is None:
        return
    kind = opened.schema_arrow.field(image).type
    while types.is_dictionary(kind) or is_list(kind):
        kind = kind.value_type
    named: Callable[[pq.ParquetFile, Footer, int, int], Iterator[str]] = named_in_text
    if field_kind(kind, "bytes") is not None:
        path = field_kind(kind, "path")
        if path is None or not is_text(path):
            return
        if not any_path(opened, footer):
            return
        named = named_beside_bytes
    elif not (is_text(kind) or types.is_struct(kind)):
        return
    for number, group in enumerate(footer.groups):
        left = min(group.rows, limit - group.first)
        if left <= 0 or group.bomb:
            continue
        try:
            yield from named(opened, footer, number, left)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the system's, not the decoder's


def named_in_text(opened: pq.ParquetFile, footer: Footer, number: int, left: int) -> Iterator[str]:
    """Of a row group of paths, or of base64, which is too much to be read twice."""
    for array in read_group(opened, footer, number, [str(footer.columns.image)]):
        cells = cells_of(array.slice(0, max(left, 0)))
        left -= len(cells)
        found = [named_in(cell) for cell in cells]
        yield from chain.from_iterable(found)
        if left <= 0 or (any(cells) and not any(found)):
            return


def named_beside_bytes(
    opened: pq.ParquetFile, footer: Footer, number: int, left: int
) -> Iterator[str]:
    """Of a row group of structs {bytes, path}: the paths of those without bytes.

    Bytes are read only where some are missing and some are not."""
    leaves, path, held = leaves_of(opened, footer)
    if not any(map(has_text, read_group(opened, footer, number, [path]))):
        return
    # what is damaged raises here; below it would end the process
    next(read_group(opened, footer, number, [held], 1), None)
    facts = opened.metadata.row_group(number).column(leaves.index(held))
    nulls = facts.statistics.null_count if facts.is_stats_set else None
    if nulls == 0:
        return
    wanted = [path] if nulls == facts.num_values else [path, held]
    for array in read_group(opened, footer, number, wanted):
        for cell in cells_of(array.slice(0, max(left, 0))):
            yield from named_in(cell)
        left -= len(array)


def any_path(opened: pq.ParquetFile, footer: Footer) -> bool:
    """Whether a struct {bytes, path} of the file has a path, or may have one: files of many small
    row groups are looked through at once, in a tenth of the time."""
    path = leaves_of(opened, footer)[1]
    groups = [number for number, group in enumerate(footer.groups) if not group.bomb]
    try:
        batches = opened.iter_batches(BATCH_ROWS, groups, [path], use_threads=False)
        return any(has_text(batch.column(0)) for batch in batches)
    except BROKEN:
        return True  # looked at group by group


def leaves_of(opened: pq.ParquetFile, footer: Footer) -> tuple[list[str], str, str]:
    """The names of all leaf columns, and of an image struct's path and bytes."""
    leaves = [opened.schema.column(leaf).path for leaf in range(len(opened.schema))]
    of_image = [leaf for leaf in leaves if leaf.startswith(f"{footer.columns.image}.")]
    path, held = (
        next(leaf for leaf in of_image if leaf.endswith(end)) for end in (".path", ".bytes")
    )
    return leaves, path, held


def read_group(
    opened: pq.ParquetFile, footer: Footer, number: int, leaves: list[str], rows: int | None = None
) -> Iterator[pa.Array]:
    """The image column of a row group, or some leaves of it, batch by batch."""
    average = max(footer.groups[number].average, 1)
    rows = rows or max(1, min(BATCH_ROWS, BATCH_BYTES // average))
    for batch in opened.iter_batches(rows, [number], leaves, use_threads=False):
        yield batch.column(0)


def has_text(array: pa.Array) -> bool:
    """Whether the only leaf of an array has a cell that is not null."""
    while is_list(array.type) or types.is_struct(array.type):
        array = array.flatten() if is_list(array.type) else pc.struct_field(array, 0)
    return bool(len(array) > array.null_count)


def draft(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Chunks of at most `chunk_rows` rows inside row groups; fewer where images are large."""
    if not file.size:
        raise DataError("E1105", f"{file.name}: the file is empty.")
    try:
        opened = open_parquet(archive, file)
    except BROKEN as error:
        message = f"{file.name}: not a complete parquet file, or no access ({reason_of(error)})."
        raise DataError("E1105", message) from error
    footer = read_footer(archive.settings, file, opened)
    cuts = GroupCuts()
    result = Draft(cuts=cuts)
    for group in footer.groups:
        step = max(1, min(archive.settings.chunk_rows, CHUNK_BYTES // max(group.average, 1)))
        stop = group.first + group.rows
        if limit is not None:
            stop = min(stop, limit)
        cuts.add(group.first, stop, step)
        result.rows = max(result.rows, stop)
    if footer.columns.id is not None:
        result.ids = read_column(opened, footer.columns.id, result.rows)
    result.images.update(named_files(opened, footer, result.rows))
    return result
