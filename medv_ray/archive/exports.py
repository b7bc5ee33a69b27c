"""Rows of a run as csv, jsonl or parquet, and a user's table read for a join.

Source for the cells that a spreadsheet would run: OWASP, "CSV Injection".
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv
from pyarrow import parquet as pq

from medv_ray.archive.kinds import PARQUET_ENDINGS
from medv_ray.archive.store import TROUBLE, reason_of, resolve, writing
from medv_ray.errors import DataError, SettingsError
from medv_ray.tables.arrow_cells import batch_records, cells_of, is_bytes, is_text
from medv_ray.tables.columns import Asked, is_row
from medv_ray.tables.encoding import known_encoding
from medv_ray.tables.ids import id_text
from medv_ray.tables.records import ENDINGS as TABLE_ENDINGS
from medv_ray.tables.records import Reading, is_csv, open_table

SEPARATOR = " | "
"""Between the values of a list in a csv cell."""
JSON_ROWS = 4096
_RUN = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LONG = ("token_ids", "token_confidence", "token_step")


def write_csv(path: str, tables: Iterator[pa.Table]) -> int:
    """A csv file of text and numbers; the number of rows. Lists of tokens are left out.

    Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers, and text
    that is one, stay as they are. Raises RunError E1503, E1511.
    """
    count = 0
    with _new(path) as file:
        writer = None
        for table in tables:
            plain = csv_cells(table)
            writer = writer or arrow_csv.CSVWriter(file, plain.schema)
            writer.write_table(plain)
            count += table.num_rows
        if writer is not None:
            writer.close()
    return count


def csv_cells(table: pa.Table) -> pa.Table:
    """The table with single, guarded values only."""
    columns, names = [], []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if is_text(column.type):  # the writer knows one type of text
            column = column.cast(pa.string())
        kind = column.type
        if name in _LONG or _is_bytes(kind):
            continue
        if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            column = _joined(column)
        elif pa.types.is_nested(kind):
            texts = [None if v is None else _json(v) for v in _cells(column)]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        if pa.types.is_string(column.type):
            column = guarded(column)
        columns.append(column)
        names.append(guarded(pa.chunked_array([[name]], pa.string()))[0].as_py())
    return pa.table(columns, names)


def guarded(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """string[N] with an apostrophe in front of what a spreadsheet would take for a formula."""
    runs = pc.match_substring_regex(text, _RUN)
    number = pc.match_substring_regex(text, _NUMBER)
    mark = pc.binary_join_element_wise("'", text, "")
    return pc.if_else(pc.and_not(runs, number), mark, text)


def _joined(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """list<string>[N] as string[N]; a null inside is empty."""
    whole = lists.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    offsets = whole.offsets.to_numpy()
    inner = pc.fill_null(whole.values, "")
    filled = pa.ListArray.from_arrays(pa.array(offsets), inner)
    text = pc.binary_join(filled, SEPARATOR)
    return pa.chunked_array([pc.if_else(whole.is_valid(), text, None)])


def write_jsonl(path: str, tables: Iterator[pa.Table]) -> int:
    """A line of JSON a row; the number of rows. Raises RunError E1503, E1511."""
    count = 0
    with _new(path) as file:
        for table in tables:
            for batch in _without_bytes(table).to_batches(JSON_ROWS):
                lines = "".join(_json(row) + "\n" for row in batch_records(batch))
                file.write(lines.encode())
            count += table.num_rows
    return count


def write_parquet(path: str, tables: Iterator[pa.Table]) -> int:
    """All columns as they are; the number of rows. Raises RunError E1503, E1511."""
    count = 0
    with _new(path) as file:
        writer = None
        for table in tables:
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            count += table.num_rows
        if writer is not None:
            writer.close()
    return count


@contextmanager
def _new(path: str) -> Iterator[Any]:
    """A file that is there as a whole or not at all. Raises RunError E1503, E1511."""
    filesystem, target = resolve(path)
    local = "://" not in path
    hidden = f"{target}.tmp" if local else target
    name = "the export"  # its own name is the user's, and may be a patient's
    try:
        with writing(name, 0), filesystem.open_output_stream(hidden) as file:
            yield file
        if local:
            with writing(name, 0):
                os.replace(hidden, target)
    except BaseException:
        if local and os.path.exists(hidden):
            os.unlink(hidden)
        raise


def read_table(path: str, on: str = "id", encoding: str | None = None) -> pa.Table:
    """A csv, tsv, jsonl, json or parquet file, read as `medv score` reads it; cells of csv are
    text. Columns of bytes are left out, but for `on`. A record that is none is a row of nulls.

    Raises DataError E1105 for one that is not readable, E1120 for another encoding, SettingsError
    E1001 for another ending or an encoding that is none.
    """
    filesystem, target = resolve(path)
    name = posixpath.basename(target)
    end = posixpath.splitext(name)[1].lower()
    if end not in (*TABLE_ENDINGS, *PARQUET_ENDINGS):
        known = ", ".join((*TABLE_ENDINGS, *PARQUET_ENDINGS))
        raise SettingsError("E1001", f"--join: a file of {known}.")
    try:
        reading = Reading(None if encoding is None else known_encoding(encoding))
    except ValueError as error:
        raise SettingsError("E1001", f"--encoding: {error}.") from None
    try:
        with filesystem.open_input_file(target) as file:
            if end in PARQUET_ENDINGS:
                return _read_parquet(file, on)
            return _read_text(file, name, reading, on)
    except DataError:
        raise
    except (ValueError, *TROUBLE) as error:
        kind = reason_of(error)
        raise DataError("E1105", f"--join: {name[:80]} cannot be read ({kind}).") from None


def _read_text(file: Any, name: str, reading: Reading, on: str) -> pa.Table:
    """Columns in the order of their first use."""
    asked = Asked("image", "question", None, None)
    table = open_table(file, name, reading, lambda names: on in names or is_row(asked, names))
    names: dict[str, None] = {n: None for n in table.header if n}
    rows, bad = [], None
    for record in table.records:
        names.update({n: None for n in record.names if n})
        rows.append(record.values)
        bad = bad or record.error
    if bad is not None and not any(rows):
        raise DataError("E1105", f"--join: {name[:80]} has no row that can be read ({bad.code}).")
    columns = [_column([row.get(n) for row in rows], is_csv(name)) for n in names]
    return pa.table(columns, list(names))


def _column(values: list[Any], is_text: bool) -> pa.Array:
    """Values of one kind as they are; of several, texts of JSON."""
    try:
        return pa.array(values, pa.string() if is_text else None)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        texts = [v if v is None or isinstance(v, str) else _json(v) for v in values]
        known = [None if t is None else t.encode(errors="replace").decode() for t in texts]
        return pa.array(known, pa.string())


def _read_parquet(file: Any, on: str) -> pa.Table:
    opened = pq.ParquetFile(file)
    wanted = [
        field.name
        for field in opened.schema_arrow
        if field.name == on or _is_uuid(field.type) or not _is_bytes(field.type)
    ]
    table = opened.read(wanted)
    for number, field in enumerate(table.schema):
        if _is_uuid(field.type):
            texts = pa.array(list(map(id_text, _cells(table.column(number)))), pa.string())
            table = table.set_column(number, field.name, texts)
    return table


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """Python values; 16 bytes a cell are UUIDs."""
    kind = getattr(column.type, "storage_type", column.type)
    return [cell for chunk in column.chunks for cell in cells_of(chunk.cast(kind))]


def keys_of(column: pa.ChunkedArray) -> pa.Array:
    """The ids that the cells of a column are, compared as those of rows are; null for none."""

    def key(cell: Any) -> str | None:
        try:
            return id_text(cell)
        except DataError:
            return None

    return normal_keys(pa.array(list(map(key, _cells(column))), pa.string()))


def normal_keys(texts: Any) -> Any:
    """string[N] in the form in which ids are compared."""
    return pc.utf8_trim_whitespace(pc.utf8_normalize(texts, "NFC"))


def _is_uuid(kind: pa.DataType) -> bool:
    kind = getattr(kind, "storage_type", kind)
    return bool(pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16)


def _without_bytes(table: pa.Table) -> pa.Table:
    return table.select([field.name for field in table.schema if not _is_bytes(field.type)])


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, pictures say, at any depth."""
    kind = getattr(kind, "storage_type", kind)
    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    if is_bytes(kind):
        return True
    return any(_is_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _json(value: Any) -> str:
    """NaN and infinity, which are no JSON, as null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):  # Arrow's maps are lists of pairs
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value
