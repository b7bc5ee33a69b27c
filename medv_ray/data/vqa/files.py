"""Records of csv, JSON and parquet files, one at a time and in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.data.vqa.entries import Read
from medv_ray.errors import DataError
from medv_ray.tables import columns
from medv_ray.tables.arrow_cells import batch_records
from medv_ray.tables.columns import Asked
from medv_ray.tables.records import ENDINGS, Reading, open_table

BATCH_ROWS = 64
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 1000
"""A larger row group that unpacks to over so many times its file is not read, as in archives."""
PARQUET = (".parquet", ".pq")
READABLE = (*ENDINGS, *PARQUET)


def text_records(path: Path, reading: Reading, asked: Asked) -> Iterator[Read]:
    """Records of a csv, tsv, jsonl or json file. Raises DataError E1105, E1120."""
    try:
        with pa.OSFile(os.fsencode(path)) as file:
            table = open_table(file, path.name, reading, partial(columns.is_row, asked))
            for record in table.records:
                yield Read(record.line, record.values, record.error, table.header)
    except OSError as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} cannot be read ({kind}).") from None


def parquet_records(path: Path) -> Iterator[Read]:
    """Rows of a parquet file by number, BATCH_ROWS in memory. Raises DataError E1105, E1112."""
    number = 0
    try:
        opened = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        groups = range(opened.metadata.num_row_groups)
        largest = max((opened.metadata.row_group(n).total_byte_size for n in groups), default=0)
        if largest > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
            said = f"a row group of {path.name} unpacks to {largest} bytes"
            raise DataError("E1112", f"{said}, over {BOMB_RATIO} times the file.")
        for batch in opened.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for row in batch_records(batch):
                yield Read(number, row)
                number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} is no complete parquet file ({kind}).") from None


def records_of(path: Path, reading: Reading, asked: Asked) -> Iterator[Read]:
    """By the file's ending. Raises DataError E1115 for another one."""
    ending = path.suffix.lower()
    if ending in PARQUET:
        return parquet_records(path)
    if ending in ENDINGS:
        return text_records(path, reading, asked)
    raise DataError("E1115", f"{path.name} has none of the endings {', '.join(READABLE)}.")
