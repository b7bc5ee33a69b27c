import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.compact import merge, small_parts
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.manifest import identity_changes
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.archive.survey import survey
from medv_ray.errors import DataError, RunError

IDENTITY = {"settings": {"sampler": {"steps": 64, "gen_length": 64}}, "model": "sha256:abc"}


class Crash(Exception):
    pass


@pytest.fixture
def planned(make):
    make.parquet("a.parquet", rows=20, id=[*(f"id{r}" for r in range(19)), "id\0"])
    make.parquet("b.parquet", rows=10, id=["x" * 600, *(f"b{r}" for r in range(9))])
    return make.plan(id_column="id")


def refused(code: str, run) -> RunError:
    with pytest.raises(RunError) as caught:
        run()
    assert caught.value.code == code
    return caught.value


def test_a_job_from_rows_to_summary(make, planned, out, committed_ids):
    summary = make.job(planned, out)
    assert (summary.rows, summary.answered, summary.quarantined) == (30, 28, 2)
    assert summary.reasons == {"bad_id": 2}
    assert summary.exit_code == 0
    ids = committed_ids(out)
    assert len(set(ids)) == 30
    store = Store(out)
    assert json.loads(store.read("metrics.json"))["quarantined"] == 2
    quarantine = pq.read_table(pa.BufferReader(store.read("quarantine/quarantine.parquet")))
    assert quarantine.to_pylist()[0] | {"chunk": ""} == {
        "id": "a:19", "file": 0, "row": 19, "image_paths": None, "frame": None,
        "code": "E1104", "reason": "bad_id", "chunk": "",
    }  # fmt: skip
    manifest = json.loads(store.read("run.json"))
    assert [file[0] for file in manifest["files"]] == ["a.parquet", "b.parquet"]
    assert not [f.name for f in store.listing() if f.name.endswith(".tmp")]
    assert len(store.listing("rows")) == 1


def test_a_second_run_has_nothing_to_do(make, planned, tmp_path):
    out = str(tmp_path / "run")
    make.job(planned, out)
    with Run.open(out, planned, IDENTITY) as run:
        assert run.todo() == []
        assert run.finish().answered == 28


@pytest.mark.parametrize("stop_after", [0, 1, 3, 7])
def test_a_stopped_job_resumes_where_it_was(make, planned, tmp_path, stop_after, committed_ids):
    out = str(tmp_path / "run")
    assert make.job(planned, out, stop_after=stop_after) is None
    assert len(committed_ids(out)) == len([r for c in planned.chunks[:stop_after] for r in c.rows])
    with Run.open(out, planned, IDENTITY) as run:
        assert [c.key for c in run.todo()] == [c.key for c in planned.chunks[stop_after:]]
    assert make.job(planned, out).answered == 28
    assert len(set(committed_ids(out))) == 30


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_step_of_a_commit(make, planned, tmp_path, monkeypatch, step, committed_ids):
    """Every file operation of write and commit may be the last one before the power goes."""
    out = tmp_path / "run"
    make.job(planned, out, stop_after=2)
    with Run.open(str(out), planned, IDENTITY) as run:
        chunk = run.todo()[0]
        records = make.records(planned, chunk)
        left = [step]

        def counted(real):
            def change(*args, **kwargs):
                if not left[0]:
                    raise Crash
                left[0] -= 1
                return real(*args, **kwargs)

            return change

        for name in ("replace", "fsync", "write"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))
        try:
            part = write_part(run.store, chunk, records)
            run.commit(part)
        except Crash:
            assert step < 5
        else:
            assert step >= 5
        monkeypatch.undo()
    reader = committed_ids(out)
    assert len(reader) == len(set(reader))
    assert len(reader) in (8, 12)
    assert make.job(planned, out).answered == 28
    assert len(set(committed_ids(out))) == 30
    assert not list(out.rglob("*.tmp"))


KILLED = """
import pickle, sys, time
from medv_ray.archive.run import Run
from medv_ray.archive.rows import write_part
from medv_ray.archive.reading import read_rows
planned = pickle.load(open(sys.argv[1], "rb"))
with Run.open(sys.argv[2], planned, {}) as run:
    for chunk in run.todo():
        rows = read_rows(planned.archive, chunk)
        records = [{"id": r.id, "row": r.row, "status": "answered"} for r in rows]
        run.commit(write_part(run.store, chunk, records))
        print("x", flush=True)
        time.sleep(0.02)
"""


@pytest.mark.integration
def test_a_killed_driver_loses_no_commit_and_blocks_nobody(make, tmp_path, committed_ids):
    make.parquet(rows=100)
    planned = make.plan()
    (tmp_path / "plan").write_bytes(pickle.dumps(planned))
    out = str(tmp_path / "run")
    said = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "plan"), out],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        said += len([process.stdout.readline() for _ in range(3)])
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(committed_ids(out)) >= 4 * said
    assert make.job(planned, out, identity={}).answered == 100
    assert len(set(committed_ids(out))) == 100


def test_a_chunk_that_comes_back_twice_counts_once(make, planned, out, committed_ids):
    with Run.open(out, planned, IDENTITY) as run:
        chunk = run.todo()[0]
        records = make.records(planned, chunk)
        parts = [write_part(run.store, chunk, records) for _ in range(2)]
        assert [run.commit(part) for part in [*parts, parts[0]]] == [True, False, False]
    assert len(committed_ids(out)) == 4
    assert len(Store(out).listing("rows")) == 1


def test_a_part_on_another_machines_disk_is_explained(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        chunk = run.todo()[0]
        part = write_part(Store(str(tmp_path / "elsewhere")), chunk, make.records(planned, chunk))
        assert "share" in str(refused("E1511", lambda: run.commit(part)))
        assert len(run.todo()) == len(planned.chunks)


def test_uncommitted_parts_of_dead_writers_are_removed(make, planned, out):
    make.job(planned, out, stop_after=1)
    with Run.open(out, planned, IDENTITY) as run:
        part = write_part(run.store, run.todo()[0], make.records(planned, run.todo()[0]))
        if run.store.local:
            write_part(run.store, run.todo()[1], make.records(planned, run.todo()[1]))
            run.store.reveal(part.hidden, part.name)  # the crash comes before the ledger line
    with Run.open(out, planned, IDENTITY) as run:
        assert len(run.todo()) == len(planned.chunks) - 1
    assert len(Store(out).listing("rows")) == 1


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({**IDENTITY, "model": "sha256:def"}, 'model: "sha256:abc" -> "sha256:def"'),
        (
            {**IDENTITY, "settings": {"sampler": {"steps": 32, "gen_length": 64}}},
            "settings.sampler.steps: 64 -> 32",
        ),
        ({**IDENTITY, "torch": "2.13.0"}, 'torch: (not set) -> "2.13.0"'),
        ({"settings": IDENTITY["settings"]}, 'model: "sha256:abc" -> (not set)'),
    ],
)
def test_a_changed_identity_is_refused_by_name(make, planned, tmp_path, identity, said):
    out = str(tmp_path / "run")
    make.job(planned, out, stop_after=2)
    error = refused("E1502", lambda: make.job(planned, out, identity))
    assert said in str(error)
    assert error.exit_code == 3
    assert make.job(planned, out).answered == 28  # the refusal changed nothing


def test_a_changed_input_is_refused_by_name(make, planned, tmp_path):
    out = tmp_path / "run"
    make.job(planned, out, stop_after=2)
    (make.archive / "b.parquet").touch()
    assert "input file 'b.parquet' changed" in str(
        refused("E1502", lambda: make.job(make.plan(), out))
    )
    (make.archive / "b.parquet").unlink()
    make.parquet("c.parquet", rows=3, id=["x", "y", "z"])
    said = str(refused("E1502", lambda: make.job(make.plan(), out)))
    assert "'c.parquet' added" in said
    assert "'b.parquet' removed" in said
    assert "archive.limit: null -> 3" in str(
        refused("E1502", lambda: make.job(make.plan(limit=3), out))
    )
    assert "archive.chunk_rows: 4 -> 5" in str(
        refused("E1502", lambda: make.job(make.plan(chunk_rows=5), out))
    )


def test_allow_mixed_keeps_what_is_done_and_says_so(make, planned, out, committed_ids):
    make.job(planned, out, stop_after=2)
    other = {**IDENTITY, "model": "sha256:def"}
    mixed = make.plan("other settings", id_column="id")
    with Run.open(out, mixed, other, allow_mixed=True) as run:
        assert len(run.todo()) == len(planned.chunks) - 2
    assert make.job(mixed, out, other).answered == 28  # now this is the run's identity
    manifest = json.loads(Store(out).read("run.json"))
    assert [m["model"] for m in manifest["mixed_with"]] == ["sha256:abc"]
    assert len(set(committed_ids(out))) == 30


def test_allow_mixed_with_changed_input_redoes_what_changed(make, out, committed_ids):
    make.parquet("a.parquet", rows=8)
    make.parquet("b.parquet", rows=8)
    make.job(make.plan(), out)
    make.parquet("b.parquet", rows=6, question=[f"new {r}?" for r in range(6)])
    planned = make.plan()
    with Run.open(out, planned, IDENTITY, allow_mixed=True) as run:
        assert {chunk.file for chunk in run.todo()} == {1}
    assert make.job(planned, out).rows == 14
    assert committed_ids(out) == sorted([f"a:{r}" for r in range(8)] + [f"b:{r}" for r in range(6)])
    questions = [q for t in read_run(out) for q in t.column("question").to_pylist()]
    assert sum(q.startswith("new") for q in questions) == 6


def test_new_run_starts_over(make, planned, out, committed_ids):
    make.job(planned, out)
    other = make.plan("other settings", id_column="id")
    identity = {**IDENTITY, "model": "sha256:def"}
    with Run.open(out, other, identity, new_run=True) as run:
        assert len(run.todo()) == len(planned.chunks)
        assert committed_ids(out) == []
    assert make.job(other, out, identity).answered == 28


def test_two_jobs_on_one_folder(make, planned, out):
    with Run.open(out, planned, IDENTITY):
        error = refused("E1501", lambda: Run.open(out, planned, IDENTITY))
        assert error.exit_code == 4
    Run.open(out, planned, IDENTITY).close()


def test_a_job_that_was_taken_over_cannot_commit(make, planned, tmp_path):
    out = str(tmp_path / "run")
    with Run.open(out, planned, IDENTITY) as run:
        chunk = run.todo()[0]
        part = write_part(run.store, chunk, make.records(planned, chunk))
        os.unlink(run.store.path("lock"))
        with Run.open(out, planned, IDENTITY) as other:
            refused("E1501", lambda: run.commit(part))
            assert len(other.todo()) == len(planned.chunks)


@pytest.mark.parametrize("late", ["processor", "merge"])
def test_a_job_that_was_taken_over_changes_nothing(make, planned, tmp_path, monkeypatch, late):
    out = str(tmp_path / "run")
    with Run.open(out, planned, IDENTITY) as run:
        for chunk in run.todo():
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
        if late == "processor":
            os.unlink(run.store.path("lock"))
        else:  # while the merged file is written

            def take_over(store, name, data, write=Store.write):
                write(store, name, data)
                os.unlink(store.path("lock"))

            monkeypatch.setattr(Store, "write", take_over)
        before = {file.name: file for file in run.store.listing() if file.name != "lock"}
        refused(
            "E1501", lambda: run.note_processor("a CPU") if late == "processor" else run.finish()
        )
        after = {file.name: file for file in run.store.listing()}
        assert before.items() <= after.items()
    monkeypatch.undo()
    with Run.open(out, planned, IDENTITY) as other:
        assert other.finish().exit_code == 0


def test_a_changed_question_is_named_and_not_shown():
    asked = [{"archive": {"question": q, "limit": n}} for q, n in (("a lump?", 1), ("no?", 2))]
    assert identity_changes(*asked) == ["archive.question changed", "archive.limit: 1 -> 2"]


@pytest.mark.parametrize("content", ["notes.txt", "rows/part-1.parquet", "ledger.jsonl", "sub/x"])
def test_a_folder_that_is_no_run_is_left_alone(make, planned, tmp_path, content):
    out = str(tmp_path / "run")
    store = Store(out)
    store.make()
    store.write(content, b"precious")
    for options in ({}, {"new_run": True}, {"allow_mixed": True, "take_over": True}):
        error = refused("E1507", lambda options=options: make.job(planned, out, **options))
        assert str(make.root) not in str(error)
    assert store.read(content) == b"precious"


def test_output_and_input_may_not_lie_inside_each_other(make, planned):
    make.text("1.png", "one")
    images = make.plan(archive=str(make.archive / "*.png"), question="q?")
    assert images.archive.kind == "images"
    for out in (make.archive, make.root):
        refused("E1507", lambda out=out: make.job(images, out))
    for out in (make.archive, make.archive / "run", make.root):
        refused("E1507", lambda out=out: make.job(planned, out))
    one_file = make.plan(archive=str(make.archive / "b.parquet"))
    assert make.job(one_file, make.archive / "run").rows == 10  # beside the only input file
    pattern = make.plan(archive=str(make.archive / "*.parquet"))
    assert make.job(pattern, make.archive / "run2").rows == 30
    everything = make.plan(archive=str(make.archive / "**/[ab].parquet").replace("[ab]", "*"))
    refused("E1507", lambda: make.job(everything, make.archive / "run3"))
    link = make.root / "link"
    link.symlink_to(make.archive)
    refused("E1507", lambda: make.job(planned, link / "run"))


def test_a_run_is_no_input_of_itself(make, planned, tmp_path):
    out = tmp_path / "run"
    make.job(planned, out)
    again = make.plan(archive=str(out / "rows"), question="q?", image_column="question")
    refused("E1507", lambda: make.job(again, out, new_run=True))
    assert list((out / "rows").iterdir())


@pytest.mark.parametrize("name", ["run.json", "ledger.jsonl", "rows"])
def test_damage_is_named_before_anything_is_done(make, planned, tmp_path, name):
    out = tmp_path / "run"
    make.job(planned, out, stop_after=3)
    path = out / name if name != "rows" else next((out / "rows").iterdir())
    data = bytearray(path.read_bytes())
    if name == "rows":
        data = data[:-1]
    else:
        data[40] ^= 1
    path.write_bytes(data)
    error = refused("E1506", lambda: make.job(planned, out))
    assert path.name.split(".")[0] in str(error)
    if name == "rows":
        path.unlink()
        refused("E1506", lambda: make.job(planned, out))


@pytest.mark.parametrize("lines", [0, 1, 3, 4])
def test_a_ledger_that_lost_lines_costs_no_sound_row(make, planned, tmp_path, lines, committed_ids):
    out = tmp_path / "run"
    with Run.open(str(out), planned, IDENTITY) as run:
        for done, chunk in enumerate(run.todo()[:5]):
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
            if done == 2:
                merge(run.store, run.ledger, small_parts(run.ledger))
    ledger, before = out / "ledger.jsonl", committed_ids(out)
    whole = ledger.read_bytes()
    held = {file.name: file.read_bytes() for file in (out / "rows").iterdir()}
    ledger.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
    if lines in (1, 3):  # commits whose files a merge has deleted since
        refused("E1506", lambda: make.job(planned, out))
        assert {file.name: file.read_bytes() for file in (out / "rows").iterdir()} == held
        ledger.write_bytes(whole)
        assert committed_ids(out) == before
    assert make.job(planned, out).rows == 30
    assert len(committed_ids(out)) == 30


def test_a_vanished_shard_leaves_its_rows_open(make, planned, tmp_path):
    out = str(tmp_path / "run")
    away = shutil.move(make.archive / "a.parquet", tmp_path / "away")
    with Run.open(out, planned, IDENTITY) as run:
        for chunk in run.todo():
            try:
                run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
            except DataError as error:
                run.skip(chunk, error)
        summary = run.finish()
    assert (summary.rows, summary.not_scored, summary.exit_code) == (30, 20, 1)
    assert (summary.answered, summary.quarantined) == (9, 1)
    assert json.loads(Path(out, "metrics.json").read_text())["files_not_scored"] == ["a.parquet"]
    shutil.move(away, make.archive / "a.parquet")
    summary = make.job(make.plan(id_column="id"), out)
    assert (summary.not_scored, summary.answered, summary.exit_code) == (0, 28, 0)


def test_unreadable_files_make_the_exit_code(make, tmp_path):
    make.parquet("a.parquet", rows=4)
    make.text("b.parquet", b"half")
    summary = make.job(make.plan(), tmp_path / "run")
    assert (summary.answered, summary.unreadable_files, summary.exit_code) == (4, 1, 1)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["unreadable_files"] == [{"name": "b.parquet", "code": "E1105"}]


def test_a_repaired_file_joins_the_run(make, tmp_path, committed_ids):
    out = tmp_path / "run"
    make.text("a.parquet", b"half")
    make.parquet("b.parquet", rows=8, id=[f"id{r}" for r in range(8)])
    assert make.job(make.plan(), out).unreadable_files == 1
    make.parquet("a.parquet", rows=4, id=["id7", "x", "y", "z"])  # takes an id of the other file
    planned = make.plan()
    assert survey(planned, str(out), IDENTITY).changes == ()
    summary = make.job(planned, out)
    assert (summary.rows, summary.answered, summary.quarantined) == (12, 12, 0)
    assert committed_ids(out) == sorted(["id7#b:7", "x", "y", "z", *(f"id{r}" for r in range(8))])
    make.text("a.parquet", b"half again")
    assert "'a.parquet' changed" in str(refused("E1502", lambda: make.job(make.plan(), out)))


def test_rows_that_do_not_add_up_are_a_defect(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        for chunk in run.todo()[1:]:
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
        error = refused("E1510", run.finish)
    assert "is not 30 rows" in str(error)


def test_quarantined_rows_can_be_tried_again(make, out, committed_ids):
    make.text("pics/0.png", b"here")
    make.parquet(rows=12, image=["pics/0.png"] * 6 + ["pics/1.png"] + ["pics/0.png"] * 5)
    assert make.job(make.plan(), out).quarantined == 1
    make.text("pics/1.png", b"now here too")
    planned = make.plan()
    assert "image that rows name" in str(refused("E1502", lambda: make.job(planned, out)))
    with Run.open(out, planned, IDENTITY, retry_quarantined=True) as run:
        (chunk,) = run.todo()
        assert list(chunk.rows) == [4, 5, 6, 7]
        assert len(committed_ids(out)) == 12  # the old rows stand until new ones do
        run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
        assert run.todo() == []
        assert run.finish().quarantined == 0
    assert len(set(committed_ids(out))) == 12
    assert make.job(planned, out).answered == 12
    assert {s for t in read_run(out) for s in t.column("status").to_pylist()} == {"answered"}


def test_a_row_that_stays_bad_is_tried_once_a_run(make, planned, tmp_path):
    out = str(tmp_path / "run")
    make.job(planned, out)
    summary = make.job(planned, out, retry_quarantined=True)
    assert summary.quarantined == 2
    assert make.job(planned, out, retry_quarantined=True).quarantined == 2


def test_old_rows_stand_when_their_second_try_finds_no_file(make, planned, tmp_path):
    out = str(tmp_path / "run")
    before = make.job(planned, out)
    with Run.open(out, planned, IDENTITY, retry_quarantined=True) as run:
        for chunk in run.todo():
            run.skip(chunk, DataError("E1107", "a.parquet is not there any more."))
        assert run.finish() == before


def test_the_folder_is_let_go_when_its_last_words_cannot_be_written(make, planned, tmp_path):
    run = Run.open(str(tmp_path / "run"), planned, IDENTITY)
    run._flush_events = lambda: run.store.write("run.json/x", b"")  # type: ignore[method-assign]
    refused("E1511", run.close)
    Run.open(str(tmp_path / "run"), planned, IDENTITY).close()


def test_an_output_folder_that_is_a_file(make, planned, tmp_path):
    (tmp_path / "file").write_text("x")
    said = str(refused("E1511", lambda: make.job(planned, tmp_path / "file")))
    assert str(tmp_path) not in said


def test_survey_counts_without_writing(make, planned, tmp_path):
    out = tmp_path / "run"
    said = survey(planned, str(out), IDENTITY)
    assert (said.rows, said.chunks, said.duplicates, said.done_rows) == (30, 8, 0, 0)
    assert not out.exists()
    make.job(planned, out, stop_after=3)
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    said = survey(planned, str(out), {**IDENTITY, "model": "other"})
    assert (said.done_chunks, said.done_rows) == (3, 12)
    assert said.changes == ('model: "sha256:abc" -> "other"',)
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before


def test_nothing_a_run_writes_outside_rows_holds_row_content(make, tmp_path):
    make.parquet(rows=6, id=["ID-SECRET"] * 2 + [None] * 4, question=["Q-SECRET?"] * 6)
    out = tmp_path / "run"
    make.job(make.plan(), out)
    for path in out.rglob("*"):
        if path.is_file() and path.parent.name not in ("rows", "quarantine"):
            text = path.read_text()
            assert "SECRET" not in text
            assert str(make.root) not in text


def test_a_run_folder_names_only_complete_files(make, planned, tmp_path):
    """What a reader may rely on: every file that the ledger names is whole at any time."""
    out = str(tmp_path / "run")
    with Run.open(out, planned, IDENTITY) as run:
        for chunk in run.todo():
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
            ledger = Ledger.load(Store(out))
            assert sum(t.num_rows for t in read_run(out)) == ledger.counts()["rows"]
            assert read_rows(planned.archive, chunk)


@pytest.mark.parametrize("deleted", range(9))
def test_a_kill_while_a_new_run_clears_the_folder(make, tmp_path, monkeypatch, deleted):
    for name in ("1.png", "2.png", "3.png"):
        make.text(name, name)
    out, first = str(tmp_path / "run"), make.plan(question="q?")
    make.job(first, out)
    wiped, delete = [], Store.delete

    def killed(self, name):
        if len(wiped) == deleted:
            raise KeyboardInterrupt
        wiped.append(name)
        delete(self, name)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Store, "delete", killed)
        Run.open(out, first, IDENTITY, new_run=True).close()
    again = make.plan(question="q?", out=out)
    assert make.job(again, out).answered == 3
    assert len(ids_of_rows(out)) == 3


def ids_of_rows(out) -> list[str]:
    return [name for table in read_run(out) for name in table.column("id").to_pylist()]


def test_parts_committed_together_wait_for_the_disk_once(make, planned, tmp_path, monkeypatch):
    out, synced = str(tmp_path / "run"), []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), sync(handle))[1])
    with Run.open(out, planned, IDENTITY) as run:
        todo = run.todo()
        parts = [write_part(run.store, c, make.records(planned, c)) for c in todo]
        again = write_part(run.store, todo[0], make.records(planned, todo[0]))
        run.commit(parts[0])
        synced.clear()
        assert run.commit_all([*parts[1:4], again, parts[2], parts[4]]) == [
            True, True, True, False, False, True,
        ]  # fmt: skip
        assert len(synced) == 2  # of the folder and of the ledger
        assert run.commit_all([]) == []
        assert run.open_chunks == len(todo) - 5 == len(run.todo())
        assert not Path(run.store.path(again.hidden)).exists()
        run.commit_all(parts[5:])
        assert run.open_chunks == 0
        assert run.finish().answered == 28


def test_parts_committed_together_are_merged_as_soon_as_they_are_many(
    make, planned, tmp_path, monkeypatch
):
    monkeypatch.setattr("medv_ray.archive.run.MERGE_AFTER", 4)
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        parts = [write_part(run.store, c, make.records(planned, c)) for c in run.todo(4)]
        run.commit_all(parts)
        [name] = run.ledger.files
        assert name.startswith("rows/merged-")


def test_a_chunk_that_was_skipped_and_came_after_all_is_not_missing(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        todo = run.todo()
        run.skip(todo[0], DataError("E1107", "a.parquet is not there any more."))
        run.commit_all([write_part(run.store, c, make.records(planned, c)) for c in todo])
        assert run.skipped == {}
        assert run.finish().exit_code == 0


def test_a_part_of_a_chunk_that_is_not_planned_is_not_taken(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        chunk = run.todo(1)[0]
        other = replace(chunk, key="0" * 32, source_key="1" * 32)
        part = write_part(run.store, other, make.records(planned, chunk))
        assert run.commit(part) is False
        assert run.ledger.commits == {}
        assert not run.store.exists(part.hidden)


def test_a_part_that_is_not_there_leaves_all_of_its_company_uncommitted(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        parts = [write_part(run.store, c, make.records(planned, c)) for c in run.todo(2)]
        run.store.delete(parts[1].hidden)
        refused("E1511", lambda: run.commit_all(parts))
        assert run.ledger.commits == {}
        assert run.commit(parts[0])


def test_todo_gives_the_first_open_chunks(make, planned, tmp_path):
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        keys = [chunk.key for chunk in planned.chunks]
        assert [chunk.key for chunk in run.todo(3)] == keys[:3]
        for chunk in (planned.chunks[0], planned.chunks[2]):
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
        assert [chunk.key for chunk in run.todo(2)] == [keys[1], keys[3]]
        assert run.settled()["rows"] == 8
    with Run.open(str(tmp_path / "run"), planned, IDENTITY) as run:
        assert run.open_chunks == len(keys) - 2
        assert [chunk.key for chunk in run.todo()] == [keys[1], *keys[3:]]
