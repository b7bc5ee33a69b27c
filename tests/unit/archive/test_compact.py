import os
import threading
import time

import pytest

from medv_ray.archive import compact as compacting
from medv_ray.archive.compact import compact
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store


class Crash(Exception):
    pass


def rows_of(out) -> list[tuple[int, int]]:
    found = []
    for table in read_run(str(out)):
        found += zip(table.column("file").to_pylist(), table.column("row").to_pylist(), strict=True)
    return found


def commit_all(make, planned, out):
    """All chunks committed, last first, and nothing merged."""
    with Run.open(out, planned, {}) as run:
        for chunk in reversed(run.todo()):
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))


@pytest.fixture
def planned(make):
    make.parquet("a.parquet", rows=20)
    make.parquet("b.parquet", rows=20)
    return make.plan()


def test_parts_become_one_sorted_file(make, planned, out):
    commit_all(make, planned, out)
    store = Store(out)
    compact(store, Ledger.load(store))
    ledger = Ledger.load(store)
    (name,) = ledger.files
    assert [f.name for f in store.listing("rows")] == [name]
    assert len(ledger.commits) == 10
    assert rows_of(out) == [(f, r) for f in (0, 1) for r in range(20)]
    compact(store, ledger)  # one file: nothing to merge
    assert [f.name for f in store.listing("rows")] == [name]


def test_an_object_store_is_asked_several_things_at_a_time(make, planned, out, monkeypatch):
    """One after the other, 2,000 parts of a merge take ten minutes, and nothing is committed."""
    commit_all(make, planned, out)
    store = Store(out)
    asked: dict[str, set[int]] = {}

    def noted(real):
        def ask(self, name):
            asked.setdefault(real.__name__, set()).add(threading.get_ident())
            time.sleep(0.01)
            return real(self, name)

        return ask

    monkeypatch.setattr(Store, "read", noted(Store.read))
    monkeypatch.setattr(Store, "delete", noted(Store.delete))
    compact(store, Ledger.load(store))
    monkeypatch.undo()
    assert len(rows_of(out)) == 40
    few = {threading.get_ident()}
    assert all(who == few if store.local else len(who - few) > 1 for who in asked.values())
    assert asked.keys() == {"read", "delete"}


def test_merged_files_stay_below_the_target(make, planned, tmp_path, monkeypatch):
    out = str(tmp_path / "run")
    commit_all(make, planned, out)
    store = Store(out)
    ledger = Ledger.load(store)
    sizes = [part.size for part in ledger.files.values()]
    monkeypatch.setattr(compacting, "TARGET_BYTES", 4 * max(sizes) + 1)
    compact(store, ledger)
    assert 1 < len(ledger.files) < 10
    assert sorted(rows_of(out)) == [(f, r) for f in (0, 1) for r in range(20)]


def steps(store: Store, monkeypatch, stop_at: int) -> None:
    """Let `stop_at` changes to the store happen, then crash."""
    left = [stop_at]

    def counted(real):
        def change(*args, **kwargs):
            if not left[0]:
                raise Crash
            left[0] -= 1
            return real(*args, **kwargs)

        return change

    monkeypatch.setattr(Store, "write", counted(Store.write))
    monkeypatch.setattr(Store, "delete", counted(Store.delete))
    monkeypatch.setattr(Ledger, "_append_lines", counted(Ledger._append_lines))
    monkeypatch.setattr(os, "replace", counted(os.replace))


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 5, 7])
def test_a_crash_at_any_step_loses_and_doubles_nothing(make, planned, out, monkeypatch, stop_at):
    planned = make.plan(chunk_rows=8)  # six parts: each takes some requests of an object store
    commit_all(make, planned, out)
    whole = sorted(rows_of(out))
    store = Store(out)
    steps(store, monkeypatch, stop_at)
    with pytest.raises(Crash):
        compact(store, Ledger.load(store))
    monkeypatch.undo()
    assert sorted(rows_of(out)) == whole  # a reader of the crashed run
    summary = make.job(planned, out, identity={})
    assert summary.answered == 40
    assert rows_of(out) == [(f, r) for f in (0, 1) for r in range(20)]
    assert len(store.listing("rows")) == 1


def test_a_reader_survives_a_merge_under_its_feet(make, planned, tmp_path):
    out = str(tmp_path / "run")
    commit_all(make, planned, out)
    reader = read_run(out)
    found = [next(reader) for _ in range(3)]
    store = Store(out)
    compact(store, Ledger.load(store))
    found += list(reader)
    rows = [(row["file"], row["row"]) for table in found for row in table.to_pylist()]
    assert sorted(rows) == [(f, r) for f in (0, 1) for r in range(20)]


def test_merging_while_the_job_runs(make, tmp_path, monkeypatch, committed_ids):
    monkeypatch.setattr("medv_ray.archive.run.MERGE_AFTER", 4)
    make.parquet(rows=100)
    planned = make.plan()
    out = tmp_path / "run"
    assert make.job(planned, out, stop_after=11) is None
    assert len(list((out / "rows").iterdir())) <= 5
    assert len(committed_ids(out)) == 44
    assert make.job(planned, out).answered == 100
    assert len(set(committed_ids(out))) == 100


def test_a_reader_gets_a_chunk_once_that_is_tried_again_meanwhile(make, tmp_path):
    make.parquet(rows=16, id=["a\0b", *map(str, range(15))])
    planned, out = make.plan(id_column="id"), str(tmp_path / "run")
    make.job(planned, out, {}, stop_after=3)
    reader = read_run(out)
    found = [next(reader)]
    with Run.open(out, planned, {}, retry_quarantined=True) as run:
        chunk = run.todo()[0]
        assert 0 in chunk.rows
        run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
        compact(run.store, run.ledger)
    found += list(reader)
    rows = [row for table in found for row in table.column("row").to_pylist()]
    assert sorted(rows) == list(range(12))


def test_a_merge_has_few_rows_in_memory(make, planned, out, monkeypatch):
    """However well they pack; and what is merged so is not merged again."""
    commit_all(make, planned, out)
    store, merged = Store(out), []
    monkeypatch.setattr(compacting, "MOST_ROWS", 12)
    merge = compacting.merge
    monkeypatch.setattr(
        compacting, "merge", lambda *given: (merged.append(given[2]), merge(*given))
    )
    for _ in range(2):
        compact(store, Ledger.load(store))
    assert [len(names) for names in merged] == [3, 3, 3], "of 4 rows each"
    assert sorted(rows_of(out)) == [(f, r) for f in (0, 1) for r in range(20)]
