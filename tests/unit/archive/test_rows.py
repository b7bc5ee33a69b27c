import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medv_ray.archive.rows import Part, quarantine_record, read_part, read_run, write_part
from medv_ray.archive.store import Store
from medv_ray.errors import RunError
from medv_ray.schema import ANSWER_SCHEMA


@pytest.fixture
def one(make, tmp_path):
    """A plan of one chunk, a store, and the chunk's records."""
    make.parquet(rows=4, id=["a", "\0", "c", "d"])
    planned = make.plan(id_column="id")
    store = Store(str(tmp_path / "run"))
    return store, planned.chunks[0], make.records(planned, planned.chunks[0])


def test_a_part_has_the_schema_and_its_counts(one):
    store, chunk, records = one
    records[2] |= {"status": "abstained", "reason": "low_confidence", "confidence": 0.25}
    part = write_part(store, chunk, records)
    assert (part.rows, part.answered, part.abstained, part.quarantined) == (4, 2, 1, 1)
    assert part.hidden.endswith(".tmp")
    assert not store.exists(part.name)
    table = read_part(store, part.hidden, part.sha256)
    assert table.schema.equals(ANSWER_SCHEMA)
    assert table.column("row").to_pylist() == [0, 1, 2, 3]
    assert table.column("id").to_pylist() == ["a", "a:1", "c", "d"]
    assert table.column("code").to_pylist() == [None, "E1104", None, None]
    assert set(table.column("chunk").to_pylist()) == {chunk.key}
    assert Part(**part.to_json()) == part


def test_records_come_in_any_order_and_lie_by_row(one):
    store, chunk, records = one
    part = write_part(store, chunk, records[::-1])
    assert read_part(store, part.hidden, part.sha256).column("row").to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", ["lost", "twice", "foreign", "status", "no reason"])
def test_the_row_contract_is_checked_before_writing(one, fault):
    store, chunk, records = one
    if fault == "lost":
        del records[1]
    elif fault == "twice":
        records[1] = records[0]
    elif fault == "foreign":
        records[1]["row"] = 17
    elif fault == "status":
        records[0]["status"] = "skipped"
    else:
        records[1]["reason"] = None
    with pytest.raises(RunError) as caught:
        write_part(store, chunk, records)
    assert caught.value.code == "E1510"
    assert not store.listing()


def test_two_attempts_at_a_chunk_do_not_share_a_file(one):
    store, chunk, records = one
    assert write_part(store, chunk, records).hidden != write_part(store, chunk, records).hidden


def test_a_quarantine_record_says_why(make):
    make.parquet(rows=1, id=["a\0b"])
    row = make.rows(make.plan(id_column="id"))[0]
    record = quarantine_record(row, row.error)
    assert record["status"] == "quarantined"
    assert (record["code"], record["reason"]) == ("E1104", "bad_id")
    assert record["question"] == "what is a.parquet 0?"


def test_no_flipped_bit_of_a_part_goes_unnoticed(make, tmp_path):
    make.parquet(rows=8)
    out = tmp_path / "run"
    make.job(make.plan(), out)
    (path,) = [p for p in (out / "rows").iterdir() if p.suffix == ".parquet"]
    whole = path.read_bytes()
    picks = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        data[picks.randrange(len(data))] ^= 1 << picks.randrange(8)
        path.write_bytes(data)
        with pytest.raises(RunError) as caught:
            list(read_run(str(out)))
        assert caught.value.code == "E1506"
        assert "rows/" in str(caught.value)


def test_page_checksums_are_written_too(one):
    """Readers that know nothing of the ledger notice damage as well."""
    store, chunk, records = one
    path = Path(store.path(write_part(store, chunk, records).hidden))
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC|checksum"):
        pq.read_table(path, page_checksum_verification=True)


def test_columns_of_a_run_can_be_chosen(make, tmp_path):
    make.parquet(rows=8)
    make.job(make.plan(), tmp_path / "run")
    (table,) = read_run(str(tmp_path / "run"), ["row", "answer"])
    assert table.column_names == ["row", "answer"]
    assert table.column("row").to_pylist() == list(range(8))
