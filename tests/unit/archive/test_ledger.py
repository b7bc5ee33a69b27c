import json
import os
import random
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest

from medv_ray.archive.ledger import FILE, Ledger, PartFile, object_name, parse, render
from medv_ray.archive.store import Store, Stored
from medv_ray.errors import RunError


def commit(number: int, part: str | None = None, rows: int = 32) -> dict:
    return {
        "op": "commit",
        "key": f"{number:032x}",
        "source_key": f"{number + 10**9:032x}",
        "part": part or f"rows/part-{number:016x}.parquet",
        "sha256": f"{number:064x}",
        "size": 7000,
        "rows": rows,
        "answered": rows - 1,
        "abstained": 0,
        "quarantined": 1,
    }


def filled(store, count: int) -> Ledger:
    ledger = Ledger.load(store, repair=True)
    for number in range(count):
        ledger.append(commit(number))
    return ledger


def state(ledger: Ledger):
    needed = {
        name: sum(ledger.commits[key].rows for key in held) for name, held in ledger.held.items()
    }
    assert ledger.rows == needed
    return ledger.commits, ledger.files, {k: set(v) for k, v in ledger.held.items()}, ledger.number


@pytest.fixture
def store(out) -> Store:
    made = Store(out)
    made.make()
    return made


def test_what_was_appended_is_loaded(store):
    ledger = filled(store, 6)
    assert state(Ledger.load(store)) == state(ledger)
    assert ledger.counts() == {"rows": 192, "answered": 186, "abstained": 0, "quarantined": 6}


def test_the_folder_of_a_new_ledger_is_durable_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("medv_ray.files.sync", synced.append)
    filled(Store(str(tmp_path)), 2)
    assert synced == [str(tmp_path)]


def test_records_appended_together_are_those_appended_one_by_one(store):
    ledger = Ledger.load(store, repair=True)
    ledger.append(commit(0), commit(1))
    ledger.append(commit(2))
    ledger.append()
    assert [ledger.commits[commit(n)["source_key"]].number for n in range(3)] == [1, 2, 3]
    assert state(Ledger.load(store)) == state(ledger)


def test_merges_and_drops_are_loaded(store):
    ledger = filled(store, 6)
    names = [f"rows/part-{n:016x}.parquet" for n in range(3)]
    ledger.append(ledger.merge_record(names, "rows/merged-a.parquet", PartFile("aa", 9000)))
    ledger.forget_records(names)
    assert set(ledger.files) == {
        "rows/merged-a.parquet", *(f"rows/part-{n:016x}.parquet" for n in (3, 4, 5))
    }  # fmt: skip
    again = [f"rows/part-{5:016x}.parquet", "rows/merged-a.parquet"]
    ledger.append(ledger.merge_record(again, "rows/merged-b.parquet", PartFile("bb", 9500)))
    ledger.forget_records(again)
    ledger.append({"op": "drop", "source_keys": [commit(1)["source_key"], commit(3)["source_key"]]})
    ledger.append(
        commit(2, part="rows/part-again.parquet")
    )  # a later commit of a source_key counts
    loaded = Ledger.load(store)
    assert state(loaded) == state(ledger)
    assert loaded.held == {
        "rows/merged-b.parquet": {commit(0)["source_key"], commit(5)["source_key"]},
        f"rows/part-{4:016x}.parquet": {commit(4)["source_key"]},
        "rows/part-again.parquet": {commit(2)["source_key"]},
    }


def test_old_records_that_a_crash_left_behind_change_nothing(store):
    ledger = filled(store, 4)
    names = [f"rows/part-{n:016x}.parquet" for n in range(3)]
    ledger.append(ledger.merge_record(names, "rows/merged-a.parquet", PartFile("aa", 9000)))
    assert state(Ledger.load(store)) == state(ledger)  # the crash came before forget_records


class Objects(Store):
    """An object store in memory."""

    local = False

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.vanish: list[str] = []

    def listing(self, prefix: str) -> list[Stored]:
        found = [Stored(n, len(d), 0) for n, d in sorted(self.held.items()) if n.startswith(prefix)]
        for name in self.vanish:
            self.held.pop(name, None)
        return found

    def read(self, name: str) -> bytes:
        if name not in self.held:
            raise FileNotFoundError(name)
        return self.held[name]

    def write(self, name: str, data: bytes) -> None:
        self.held[name] = data

    def delete(self, name: str) -> None:
        self.held.pop(name, None)


def test_a_crash_after_merging_what_was_merged_hides_no_row():
    store = Objects()
    ledger = filled(store, 4)
    names = [f"rows/part-{n:016x}.parquet" for n in range(3)]
    ledger.append(ledger.merge_record(names, "rows/merged-a.parquet", PartFile("aa", 9000)))
    ledger.forget_records(names)
    again = ["rows/merged-a.parquet", f"rows/part-{3:016x}.parquet"]
    ledger.append(ledger.merge_record(again, "rows/merged-b.parquet", PartFile("bb", 9500)))
    while True:  # the crash came before, in, or after forget_records
        loaded = Ledger.load(store)
        assert state(loaded) == state(ledger)
        assert {c.part for c in loaded.commits.values()} == {"rows/merged-b.parquet"}
        if not again:
            return
        ledger.forget_records([again.pop(0)])


def test_records_that_a_merge_takes_away_while_they_are_read():
    store = Objects()
    ledger = filled(store, 4)
    names = [f"rows/part-{n:016x}.parquet" for n in range(3)]
    ledger.append(ledger.merge_record(names, "rows/merged-a.parquet", PartFile("aa", 9000)))
    store.vanish = [object_name(commit(number)) for number in range(3)]
    assert state(Ledger.load(store)) == state(ledger)


@pytest.fixture
def folder(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_a_torn_last_line_is_dropped_at_every_length(folder):
    filled(folder, 3)
    path = folder.path(FILE)
    whole = Path(path).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(lines[2])):
        with open(path, "wb") as file:
            file.write(lines[0] + lines[1] + lines[2][:cut])
        assert len(Ledger.load(folder).commits) == 2
    repaired = Ledger.load(folder, repair=True)
    repaired.append(commit(7))
    assert len(Ledger.load(folder).commits) == 3


def test_no_flipped_bit_goes_unnoticed(folder):
    ledger = filled(folder, 20)
    path = folder.path(FILE)
    whole = Path(path).read_bytes()
    picks = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[picks.randrange(len(data))] ^= 1 << picks.randrange(8)
        with open(path, "wb") as file:
            file.write(data)
        if data[-1:] == b"\n":
            with pytest.raises(RunError) as caught:
                Ledger.load(folder)
            assert caught.value.code == "E1506"
        else:
            assert state(Ledger.load(folder)) == state(ledger)


def test_a_last_line_without_its_own_newline_counts_and_gets_it(folder):
    ledger = filled(folder, 3)
    path = Path(folder.path(FILE))
    whole = path.read_bytes()
    for last in (b"\x0b", b"\0", b"\x8a", b"z"):
        path.write_bytes(whole[:-1] + last)
        assert state(Ledger.load(folder)) == state(ledger)
        assert path.read_bytes() == whole[:-1] + last  # a reader changes nothing
        repaired = Ledger.load(folder, repair=True)
        assert path.read_bytes() == whole
        repaired.append(commit(7))
        assert len(Ledger.load(folder).commits) == 4
    path.write_bytes(whole[:-1])  # cut there, it is a line that a crash left
    assert len(Ledger.load(folder, repair=True).commits) == 2
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])


def test_a_full_disk_leaves_the_ledger_as_it_was(folder, monkeypatch):
    ledger = filled(folder, 2)
    before = Path(folder.path(FILE)).read_bytes()
    real = os.write

    def short(handle, data):
        if len(data) > 50:
            return real(handle, data[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(RunError) as caught:
        ledger.append(commit(2))
    assert caught.value.code == "E1503"
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    assert Path(folder.path(FILE)).read_bytes() == before
    ledger.append(commit(3))
    assert state(Ledger.load(folder)) == state(ledger)


def test_a_large_ledger_loads_in_seconds(folder):
    with open(folder.path(FILE), "wb") as file:
        for number in range(20_000):
            file.write(render({**commit(number), "number": number + 1}))
    start = time.process_time()
    assert len(Ledger.load(folder).commits) == 20_000
    assert time.process_time() - start < 1.2  # 10^6 chunks within a minute


def test_a_large_ledger_needs_under_a_kilobyte_a_chunk(folder):
    with open(folder.path(FILE), "wb") as file:
        for number in range(4_000):
            file.write(render({**commit(number), "number": number + 1}))
    tracemalloc.start()
    Ledger.load(folder)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 4_000 * 1024


@pytest.mark.parametrize(
    "odd",
    [b"", b"[]", b"\xff", b"[" * 5000, b'{"op": "commit"}', b'{"op": "drop", "number": 4}',
     {"op": "commit", "rows": "x"}, {"op": "commit", "number": "4"}, {"op": "new"},
     {"op": "merge", "parts": 3}],
)  # fmt: skip
def test_records_of_another_form_are_told(folder, odd):
    ledger = filled(folder, 3)
    line = odd if isinstance(odd, bytes) else json.dumps({**commit(3), "number": 4, **odd}).encode()
    with open(folder.path(FILE), "ab") as file:
        file.write(b"%08x " % zlib.crc32(line) + line + b"\n")
    with pytest.raises(RunError, match="E1506: ledger record 4 is none that is known"):
        Ledger.load(folder)
    assert len(ledger.commits) == 3


def test_lines_hold_their_own_checksum():
    line = render(commit(1))
    assert parse(line, 1) == commit(1)
    with pytest.raises(RunError, match="record 7"):
        parse(line.replace(b"answered", b"answereD"), 7)
    assert object_name(commit(1)) == f"ledger/{1:032x}.json"
