"""Text tables (csv, tsv, jsonl, json): their records with their byte spans, and read by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from medv_ray.errors import DataError
from medv_ray.formats import HEAD_BYTES
from medv_ray.tables.csv_text import csv_record, read_head, scan_csv
from medv_ray.tables.encoding import Lines, Text, find_text
from medv_ray.tables.json_text import json_values, scan_json
from medv_ray.tables.record import CELL_BYTES, IsRow, Names, Record, Style

CSV_ENDINGS = (".csv", ".tsv")
ENDINGS = (*CSV_ENDINGS, ".jsonl", ".ndjson", ".json")


class Table(NamedTuple):
    """A table that is being read."""

    style: Style
    header: Names
    """Of a csv, as it stands there; the keys of JSON stand in each record."""
    records: Iterator[Record]


class Reading(NamedTuple):
    """Settings of a reader."""

    encoding: str | None = None
    """None: by the mark at the beginning, else UTF-8, and a file that is not is refused."""
    cell_bytes: int = CELL_BYTES


def is_csv(name: str) -> bool:
    return name.lower().endswith(CSV_ENDINGS)


def open_table(opened: Any, file: str, reading: Reading, is_row: IsRow) -> Table:
    """All records of an open binary file, in order.

    Raises DataError E1105 for one that is no table as a whole, E1120 for another encoding; while it
    is read too.
    """
    text = find_text(opened.read(HEAD_BYTES), reading.encoding, file)
    lines = Lines(opened, text, file, lenient=reading.encoding is not None)
    style = Style(text.encoding)
    if is_csv(file):
        head = read_head(lines, file, is_row)
        style = Style(text.encoding, head.separator, head.skip_blanks)
        return Table(
            style, head.names, scan_csv(lines, file, style, head.names, reading.cell_bytes)
        )
    return Table(style, (), scan_json(lines, file, is_row))


def read_again(
    file: str, style: Style, header: Names, data: bytes
) -> tuple[dict[str, Any], DataError | None]:
    """The cells of one record from its bytes, as `open_table` found them."""
    text = data.decode(style.encoding, Text(style.encoding).errors)
    return csv_record(text, style, header) if is_csv(file) else json_values(text)[1:]
