"""Records of JSON, JSON lines, CSV and parquet files, one at a time and in order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.data.vqa.entries import Record
from medv_ray.errors import DataError

READ_CHARACTERS = 2**20
MAX_RECORD_CHARACTERS = 2**26
BATCH_ROWS = 64
_SPACE = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


def json_records(path: Path) -> Iterator[Record | None]:
    """Entries of a JSON list, without holding the list, or the lines of a .jsonl file.

    None for an entry that is no object. Raises DataError E1105.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            found = _lines(file) if path.suffix == ".jsonl" else _entries(file, path.name)
            for value in found:
                yield value if isinstance(value, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} is no complete JSON list ({kind}).") from None


def _lines(file: TextIO) -> Iterator[Any]:
    for line in file:
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            yield value


def _entries(file: TextIO, name: str) -> Iterator[Any]:
    buffer, place, number = file.read(READ_CHARACTERS).lstrip(), 1, 0
    if not buffer.startswith("["):
        raise DataError("E1105", f"{name} does not hold a JSON list.")
    while True:
        place = _SPACE.match(buffer, place).end()  # type: ignore[union-attr]  # matches nothing too
        if buffer[place : place + 1] == "]":
            return
        value, end = None, len(buffer)
        try:
            value, end = _DECODER.raw_decode(buffer, place)
        except ValueError:
            if len(buffer) - place > MAX_RECORD_CHARACTERS:
                raise DataError("E1105", f"{name} is no JSON at entry {number}.") from None
        if end < len(buffer):  # else more may belong to it
            yield value
            place, number = end, number + 1
            continue
        more = file.read(READ_CHARACTERS)
        if not more:
            raise DataError("E1105", f"{name} ends inside entry {number}.")
        buffer, place = buffer[place:] + more, 0


def csv_records(path: Path) -> Iterator[Record | None]:
    """Rows of a CSV with a header; None for a row with too many or too few cells.

    Raises DataError E1105.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                whole = None not in row and None not in row.values()
                yield row if whole else None
    except (OSError, ValueError, csv.Error) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} is no readable CSV ({kind}).") from None


def parquet_records(path: Path) -> Iterator[Record | None]:
    """Rows of a parquet file, BATCH_ROWS in memory. Raises DataError E1105."""
    try:
        opened = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} is no complete parquet file ({kind}).") from None


READERS = {
    ".json": json_records,
    ".jsonl": json_records,
    ".csv": csv_records,
    ".parquet": parquet_records,
}


def records_of(path: Path) -> Iterator[Record | None]:
    """By the file's ending. Raises DataError E1115 for another one."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        endings = ", ".join(READERS)
        raise DataError("E1115", f"{path.name} has none of the endings {endings}.")
    return reader(path)
