"""Merges committed parts into large files, so that 10^8 rows are not millions of files.

Order of events: the merged file is written and durable; one ledger record makes it count; only then
are the old files deleted. A crash in between leaves files that no record names, and the next
opening of the run removes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from uuid import uuid4

import pyarrow as pa

from medv_ray.archive import rows
from medv_ray.archive.ledger import Ledger, PartFile
from medv_ray.archive.store import Store

TARGET_BYTES = 64 * 2**20
MOST_ROWS = 2**18
"""In one file: short answers pack so well that a file of the target size holds millions of them,
and a merge has all of its rows in memory."""


def small_parts(ledger: Ledger) -> list[str]:
    """Committed files that no merge has made yet."""
    return [name for name in ledger.files if name.startswith(f"{rows.FOLDER}/part-")]


def compact(store: Store, ledger: Ledger, check: Callable[[], None] = lambda: None) -> None:
    """Merge small files until none is left to merge. A crash at any point loses nothing.

    `check` is called before a merge counts: it raises where this writer has lost the folder.
    Raises RunError E1506 for a damaged part, E1503 when the disk is full.
    """
    for names in groups(ledger):
        merge(store, ledger, names, check)


def groups(ledger: Ledger) -> Iterator[list[str]]:
    """Files to be merged with each other: parts, and merged files far below the target size."""
    rows_of = ledger.rows
    small = [
        name
        for name, part in ledger.files.items()
        if part.size < TARGET_BYTES // 2 and rows_of[name] < MOST_ROWS // 2
    ]
    small.sort(key=lambda name: min(ledger.commits[p].number for p in ledger.held[name]))
    group: list[str] = []
    size = count = 0
    for name in small:
        size, count = size + ledger.files[name].size, count + rows_of[name]
        if group and (size > TARGET_BYTES or count > MOST_ROWS):
            yield group
            group, size, count = [], ledger.files[name].size, rows_of[name]
        group.append(name)
    if len(group) > 1:
        yield group


def merge(
    store: Store, ledger: Ledger, names: list[str], check: Callable[[], None] = lambda: None
) -> None:
    """Replace committed files by one, its rows sorted by file and row."""

    def rows_of(name: str) -> pa.Table:
        table = rows.read_part(store, name, ledger.files[name].sha256)
        keys = {ledger.commits[source_key].key for source_key in ledger.held[name]}
        return rows.only(table, keys, None)

    tables = store.each(rows_of, names)
    data = rows.render(pa.concat_tables(tables, promote_options="default").sort_by(rows.ORDER))
    merged = f"{rows.FOLDER}/merged-{uuid4().hex[:16]}.parquet"
    store.write(merged, data)
    file = PartFile(hashlib.sha256(data).hexdigest(), len(data))
    check()
    ledger.append(ledger.merge_record(names, merged, file))
    store.each(store.delete, names)
    ledger.forget_records(names)
