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
from pyarrow import json as arrow_json
from pyarrow import parquet as pq

from medv_ray.archive.store import TROUBLE, reason_of, resolve, writing
from medv_ray.errors import DataError, SettingsError

SEPARATOR = " | "
"""Between the values of a list in a csv cell."""
JSON_ROWS = 4096
MOST_LIST_BYTES = 2**28
"""Of a JSON file that is one list: it is parsed whole."""
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
        kind = column.type
        if name in _LONG or _is_bytes(kind):
            continue
        if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            column = _joined(column)
        elif pa.types.is_nested(kind):
            texts = [None if v is None else _json(v) for v in column.to_pylist()]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
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
                lines = "".join(_json(row) + "\n" for row in batch.to_pylist())
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
    name = posixpath.basename(target)
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


def read_table(path: str) -> pa.Table:
    """A csv, tsv, jsonl, json or parquet file, columns of bytes left out; cells of csv are text.

    Raises DataError E1105 for one that is not readable, SettingsError E1001 for another ending.
    """
    filesystem, target = resolve(path)
    name = posixpath.basename(target)
    end = posixpath.splitext(name)[1].lower()
    readers = {
        ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_jsonl,
        ".parquet": _read_parquet, ".pq": _read_parquet,
    }  # fmt: skip
    if end not in readers:
        raise SettingsError("E1001", f"--join: a file of {', '.join(readers)}.")
    try:
        with filesystem.open_input_file(target) as file:
            return _without_bytes(readers[end](file, end))
    except (ValueError, *TROUBLE) as error:
        kind = reason_of(error)
        raise DataError("E1105", f"--join: {name[:80]} cannot be read ({kind}).") from None


def _read_csv(file: Any, end: str) -> pa.Table:
    """The separator is the one that the header line has most of."""
    line = file.read(2**16).split(b"\n")[0].decode(errors="replace")
    parse = arrow_csv.ParseOptions(
        delimiter="\t" if end == ".tsv" else max(",;\t", key=line.count), newlines_in_values=True
    )
    file.seek(0)
    header = arrow_csv.open_csv(file, parse_options=parse).schema.names
    file.seek(0)
    options = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
    )
    return arrow_csv.read_csv(file, parse_options=parse, convert_options=options)


def _read_jsonl(file: Any, end: str) -> pa.Table:
    first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    file.seek(0)
    if end == ".json" and first == b"[":
        if file.size() > MOST_LIST_BYTES:
            raise ValueError("too large to be parsed whole")
        return pa.Table.from_pylist(json.loads(file.read()))
    table = arrow_json.read_json(file)
    times = [n for n, f in enumerate(table.schema) if pa.types.is_temporal(f.type)]
    if not times:
        return table
    schema = table.schema  # Arrow makes times of texts that look so; the texts are wanted
    for index in times:
        schema = schema.set(index, pa.field(schema.names[index], pa.string()))
    file.seek(0)
    return arrow_json.read_json(file, parse_options=arrow_json.ParseOptions(explicit_schema=schema))


def _read_parquet(file: Any, _: str) -> pa.Table:
    opened = pq.ParquetFile(file)
    wanted = [field.name for field in opened.schema_arrow if not _is_bytes(field.type)]
    return opened.read(wanted)


def _without_bytes(table: pa.Table) -> pa.Table:
    return table.select([field.name for field in table.schema if not _is_bytes(field.type)])


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, pictures say, at any depth."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
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
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value
