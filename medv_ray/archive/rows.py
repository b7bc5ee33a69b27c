"""The row contract on disk: writing a chunk's answers, and reading a run back, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.store import Store, escaped
from medv_ray.errors import DataError, RunError
from medv_ray.schema import ANSWER_SCHEMA, STATUSES, is_of_blank

FOLDER = "rows"
GROUP_ROWS = 16_384
ORDER = [("file", "ascending"), ("row", "ascending")]


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk's rows, written and durable but not committed yet."""

    key: str
    source_key: str
    hidden: str
    """The name under which it was written."""
    name: str
    """The name that it gets by the commit; the same one on an object store."""
    sha256: str
    size: int
    rows: int
    answered: int
    abstained: int
    quarantined: int

    def to_json(self) -> dict[str, Any]:
        """Plain strings and numbers; `Part(**value)` is the way back."""
        return asdict(self)


def quarantine_record(row: Row, error: DataError) -> dict[str, Any]:
    """The output row of an input row that could not be answered."""
    return {
        "id": row.id,
        "row": row.row,
        "image_paths": image_paths(row),
        "frame": row.frame,
        **tile_record(row),
        "question": row.question,
        "reference": row.reference,
        "answer_type": row.answer_type,
        "status": "quarantined",
        "code": error.code,
        "reason": error.reason,
        "warnings": [*row.warnings],
    }


def tile_record(row: Row) -> dict[str, Any]:
    """The columns about a slide's tile."""
    tile = row.slide
    if tile is None or tile.name != "tile":
        return {}
    return {
        "tile_x": tile.x,
        "tile_y": tile.y,
        "tile_width": tile.width,
        "tile_height": tile.height,
        "tile_mpp": tile.mpp,
        "tile_magnification": tile.magnification,
        "tile_tissue": None if tile.tissue < 0 else tile.tissue,
    }


def image_paths(row: Row, shard: str | None = None) -> list[str | None] | None:
    """Where a row's pictures lie inside the archive; `shard`: the tar that its names are members
    of. None for a picture that has no name, and for a row without pictures.

    A name of bytes that are no UTF-8 has them escaped.
    """
    if row.image_names in ((), (None,)) and row.image is None:
        return None
    whole = [n if shard is None or n is None else f"{shard}/{n}" for n in row.image_names]
    return [name if name is None else escaped(name) for name in whole]


def write_part(
    store: Store,
    chunk: Chunk,
    records: Sequence[dict[str, Any]],
    blanks: Sequence[pa.Field] = (),
) -> Part:
    """Write a chunk's output rows, one dict a row with names of ANSWER_SCHEMA, and of `blanks`
    where the answers have a form; durable on return.

    `file` and `chunk` are filled in here. Raises RunError E1510 unless there is exactly one record
    for every row of the chunk, E1503 when the disk is full.
    """
    check_records(chunk, records)
    ordered = sorted(records, key=lambda record: int(record["row"]))
    full = [{**record, "file": chunk.file, "chunk": chunk.key} for record in ordered]
    data = render(pa.Table.from_pylist(full, schema=pa.schema([*ANSWER_SCHEMA, *blanks])))
    attempt = uuid4().hex[:12]  # a chunk may be tried twice at the same time
    name = f"{FOLDER}/part-{chunk.key[:16]}.parquet"
    hidden = f"{FOLDER}/part-{chunk.key[:16]}-{attempt}.parquet"
    if store.local:
        hidden += ".tmp"
        store.write_hidden(hidden, data)
    else:
        name = hidden
        store.write(name, data)
    tally = [sum(record["status"] == status for record in records) for status in STATUSES]
    digest = hashlib.sha256(data).hexdigest()
    return Part(chunk.key, chunk.source_key, hidden, name, digest, len(data), len(records), *tally)


def check_records(chunk: Chunk, records: Sequence[dict[str, Any]]) -> None:
    """Every row once, with a known status, quarantined ones with a reason; else RunError E1510."""
    if sorted(record["row"] for record in records) != sorted(chunk.rows):
        raise RunError(
            "E1510", f"a chunk of {len(chunk.rows)} rows came back as {len(records)} records."
        )
    for record in records:
        if record["status"] not in STATUSES:
            raise RunError("E1510", f"unknown status {str(record['status'])[:20]!r}.")
        if record["status"] == "quarantined" and not (record["code"] and record["reason"]):
            raise RunError("E1510", "a quarantined row has no code or reason.")


def render(table: pa.Table) -> bytes:
    """A table as a parquet file with page checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", write_page_checksum=True, row_group_size=GROUP_ROWS
    )
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def read_part(
    store: Store, name: str, sha256: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """A committed file's rows; columns that it is too old to have are null.

    Raises RunError E1506 if it is not what was committed.
    """
    data = store.read(name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RunError("E1506", f"{name} does not match the checksum in the ledger.")
    opened = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    table = opened.read(columns, use_threads=False)
    wanted = [ANSWER_SCHEMA.field(name) for name in columns or ANSWER_SCHEMA.names]
    if columns is None:
        wanted += [field for field in table.schema if is_of_blank(field.name)]
    return pa.table(
        [
            table.column(field.name)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in wanted
        ],
        pa.schema(wanted),
    )


def read_run(out: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The committed rows of a run, a table at a time, each verified; also while the job runs.

    No row comes twice; of a chunk that is tried again meanwhile, the old rows or the new ones.
    Raises RunError E1506 for damage.
    """
    store = Store(out)
    done: set[str] = set()  # source keys, as a second try of a chunk has another key
    for _ in range(8):
        ledger = Ledger.load(store)
        vanished = False
        for name, source_keys in ledger.held.items():
            left = source_keys - done
            if not left:
                continue
            wanted = None if columns is None else [*columns, "chunk"]
            try:
                table = read_part(store, name, ledger.files[name].sha256, wanted)
            except FileNotFoundError:
                vanished = True  # merged away between our two looks
                continue
            done |= left
            yield only(table, {ledger.commits[source_key].key for source_key in left}, columns)
        if not vanished:
            return
    raise RunError("E1506", "files of rows/ that the ledger names are missing.")


def only(table: pa.Table, keys: set[str], columns: Sequence[str] | None) -> pa.Table:
    """The rows of the given chunks: a merged file may hold older versions of others."""
    chunk = table.column("chunk")
    if set(pc.unique(chunk).to_pylist()) != keys:
        table = table.filter(pc.is_in(chunk, value_set=pa.array(sorted(keys), pa.string())))
    return table if columns is None else table.select(list(columns))
