"""The way back from pseudonyms: which id and which pictures each one stands for.

It lies in `private/mapping` of a run folder (files 0600, the folder 0700), and only where it was
asked for. It is written by chunks, each before its chunk is committed, and needs no ledger: a
pseudonym has one meaning, so what a dead attempt wrote is right as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medv_ray.archive.pseudonyms import FOLDER, Pseudonyms, write_private
from medv_ray.archive.store import Store
from medv_ray.errors import RunError, SettingsError

MAPPING = f"{FOLDER}/mapping"
COLUMNS = pa.schema(
    [
        pa.field("pseudonym", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("image_paths", pa.list_(pa.string())),
    ]
)


def write_chunk(
    store: Store, source_key: str, records: Sequence[dict[str, Any]], pseudonyms: Pseudonyms
) -> None:
    """Have a chunk's rows in the mapping. Raises RunError E1503, E1511."""
    rows = [
        {
            "pseudonym": pseudonyms.of_id(record["id"]),
            "id": record["id"],
            "image_paths": record["image_paths"],
        }
        for record in records
    ]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    write_private(store, f"{MAPPING}/part-{source_key}.parquet", _render(table))


def merge_mapping(store: Store, committed: Collection[str]) -> None:
    """Put the parts of chunks that are committed (by source key) into one file. A kill at any point
    leaves rows twice at worst, and they say the same."""
    parts = [
        file.name
        for file in store.listing(MAPPING)
        if file.name.removeprefix(f"{MAPPING}/part-").removesuffix(".parquet") in committed
    ]
    if not parts:
        return
    merged = pa.concat_tables(store.each(lambda name: _read(store, name), parts))
    write_private(store, f"{MAPPING}/merged-{uuid4().hex[:16]}.parquet", _render(merged))
    store.each(store.delete, parts)


def read_mapping(folder: str) -> pa.Table:
    """The mapping in a folder, each pseudonym once; COLUMNS.

    Raises SettingsError E1001 where there is none, RunError E1506 for damage.
    """
    store = Store(folder)
    names = [file.name for file in store.listing() if file.name.endswith(".parquet")]
    if not names:
        raise SettingsError("E1001", "--mapping: the folder (RUN/private/mapping) has no mapping.")
    table = pa.concat_tables(_read(store, name) for name in names)
    names_of = table.column("pseudonym")
    first = pc.index_in(names_of, value_set=pc.unique(names_of))
    _, places = np.unique(first.to_numpy(), return_index=True)
    return table.take(pa.array(places))


def restore(rows: pa.Table, mapping: pa.Table) -> pa.Table:
    """The rows with their ids and picture names in place of pseudonyms.

    Raises RunError E1506 for a row that the mapping lacks.
    """
    known = mapping.column("pseudonym").combine_chunks()
    index = pc.index_in(rows.column("id"), value_set=known)
    if index.null_count:
        raise RunError("E1506", f"the mapping lacks {index.null_count} rows.")
    found = mapping.take(index)
    for name in ("id", "image_paths"):
        place = rows.column_names.index(name)
        column = found.column(name).cast(rows.field(name).type)
        rows = rows.set_column(place, rows.field(name), column)
    return rows


def _render(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read(store: Store, name: str) -> pa.Table:
    data = pa.BufferReader(store.read(name))
    try:
        return pq.ParquetFile(data, page_checksum_verification=True).read(use_threads=False)
    except (OSError, pa.ArrowException):
        raise RunError("E1506", "a file of the mapping is damaged.") from None
