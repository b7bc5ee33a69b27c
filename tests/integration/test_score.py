"""The scoring job through Ray Data, with a predictor that does what its questions say."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from medv_ray.archive.rows import read_run
from medv_ray.archive.store import Store
from medv_ray.errors import CheckpointError, RunError
from medv_ray.on_ray.score import Outcome, Resume, score
from tests.integration import processes, stub

pytestmark = pytest.mark.usefixtures("local_ray")
SLOW = "sleep:0.02 what is this?"
CALM = "tests.integration.stub:load_calm"
ALONE = {"max_actors": 1}  # where a second actor, some seconds of imports, would show nothing


def rows_of(folder: Path) -> dict[str, str]:
    """id -> status, after making sure that no id comes twice."""
    table = [row for part in read_run(str(folder / "run")) for row in part.to_pylist()]
    found = {row["id"]: row["reason"] or row["status"] for row in table}
    assert len(found) == len(table), "a row came out twice"
    return found


def go(
    folder: Path, resume: Resume | None = None, factory: str = stub.STUB, **more: Any
) -> Outcome:
    return score(stub.settings(folder, **more), resume, factory=factory)


@pytest.mark.slow
def test_a_node_with_another_model_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["what?"])
    monkeypatch.setattr("medv_ray.model.weights.digest", lambda path: "0" * 64)  # in the driver
    with pytest.raises(RunError, match="E1502: a worker's node has another model"):
        go(tmp_path)


@pytest.fixture
def soon() -> Iterator[Callable[[Callable[[], bool], Callable[[], None]], None]]:
    """Do something from another thread once a condition holds."""
    threads = []

    def start(condition: Callable[[], bool], act: Callable[[], None]) -> None:
        def wait() -> None:
            deadline = time.monotonic() + 60
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.02)
            act()

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def committed(folder: Path) -> int:
    ledger = folder / "run" / "ledger.jsonl"
    return ledger.read_text().count("commit") if ledger.exists() else 0


def cpus_come_free() -> bool:
    """Actors of a failed pass must end while its error is still held: the next pass needs them."""
    deadline = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU", 0)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(free == 2)


def test_rows_are_accounted_for_and_only_quarantined_ones_are_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    questions = [SLOW, "bad", "", "raise:once", "memory:once", *[SLOW] * 55]
    stub.write_archive(tmp_path / "in.parquet", questions)
    outcome = go(tmp_path)
    assert outcome.exit_code == 0
    assert outcome.summary is not None
    assert (outcome.summary.rows, outcome.summary.answered, outcome.summary.quarantined) == (
        60,
        56,
        4,
    )
    assert outcome.session.counters["answers"] >= 56
    assert outcome.session.deaths == 0
    found = rows_of(tmp_path)
    assert len(found) == 60
    assert [found[f"r{i:05d}"] for i in range(1, 5)] == [
        "prompt_too_long", "empty_question", "internal_error", "out_of_memory",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [name.split()[0] for name in manifest["processors"]] == ["CPU"]
    again = go(tmp_path)
    assert again.session.rows == 0
    assert again.summary == outcome.summary
    with pytest.raises(RunError, match=r"settings\.seed: 0 -> 1") as caught:
        go(tmp_path, seed=1)
    assert caught.value.exit_code == 3
    said = capfd.readouterr()
    assert said.err == ""
    assert all(json.loads(line)["total"] == 60 for line in said.out.splitlines())

    later = go(tmp_path, Resume(retry_quarantined=True), CALM)
    assert later.session.rows == 8
    found = rows_of(tmp_path)
    assert len(found) == 60
    assert {row: end for row, end in found.items() if end != "answered"} == {
        "r00001": "prompt_too_long", "r00002": "empty_question",
    }  # fmt: skip


@pytest.mark.slow
def test_crashing_rows_are_quarantined_and_no_other_row(tmp_path: Path) -> None:
    questions = [SLOW] * 48
    questions[11], questions[30] = "abort", "segfault"
    stub.write_archive(tmp_path / "in.parquet", questions)
    outcome = go(tmp_path)
    assert outcome.exit_code == 0
    assert outcome.session.deaths <= 6
    crashed = {i for i, reason in rows_of(tmp_path).items() if reason == "worker_crash"}
    assert crashed == {"r00011", "r00030"}


def test_a_killed_actor_costs_nothing(tmp_path: Path, soon: Any) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["sleep:0.1 what is this?"] * 96)

    def kill_one() -> None:
        os.kill(processes.actors(os.getpid())[0], signal.SIGKILL)

    soon(lambda: committed(tmp_path) >= 2, kill_one)
    outcome = go(tmp_path)
    assert outcome.session.deaths == 1
    assert set(rows_of(tmp_path).values()) == {"answered"}
    assert len(rows_of(tmp_path)) == 96


@pytest.mark.slow
def test_a_lost_supervisor_costs_nothing(
    tmp_path: Path, soon: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["sleep:0.1 what is this?"] * 96)

    def kill_it() -> None:
        below = processes.descendants(os.getpid())
        # the last one: an earlier job's may not be gone yet
        *_, pid = sorted(p for p in below if processes.command(p).startswith("ray::Supervisor"))
        os.kill(pid, signal.SIGKILL)

    soon(lambda: committed(tmp_path) >= 2, kill_it)
    outcome = go(tmp_path)
    assert outcome.exit_code == 0
    assert "a node of Ray's was lost" in capsys.readouterr().err
    assert set(rows_of(tmp_path).values()) == {"answered"}
    assert len(rows_of(tmp_path)) == 96


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "kind", "word"),
    [
        ("load_broken", CheckpointError, "E1402: no tensor 'lm_head.weight'"),
        ("load_dying", RunError, "E1508: A worker died 3 times"),
    ],
)
def test_a_model_that_does_not_load_ends_the_job(
    tmp_path: Path, factory: str, kind: type[Exception], word: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stub.write_archive(tmp_path / "in.parquet", [SLOW] * 8)  # a chunk: one actor
    with pytest.raises(kind, match=word):
        go(tmp_path, factory=f"tests.integration.stub:{factory}")
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


def test_a_pool_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", [SLOW] * 16)
    with pytest.raises(RunError, match="E1505: 3 actors"):
        go(tmp_path, pool={"max_actors": 3})


@pytest.mark.slow
def test_a_shard_that_vanishes_is_named_and_scored_later(tmp_path: Path) -> None:
    first, second = tmp_path / "in" / "a.parquet", tmp_path / "in" / "b.parquet"
    stub.write_archive(first, [f"move:{second}", *[SLOW] * 31])
    stub.write_archive(second, ["what?"] * 8, first_row=500)
    settings = stub.settings(tmp_path, pool={"max_actors": 1})
    archive = settings.archive.model_copy(update={"archive": str(tmp_path / "in")})
    settings = settings.model_copy(update={"archive": archive})
    outcome = score(settings, factory=stub.STUB)
    assert outcome.exit_code == 1
    assert outcome.session.skipped_files == ["b.parquet"]
    assert outcome.summary is not None
    assert (outcome.summary.answered, outcome.summary.not_scored) == (32, 8)
    second.with_suffix(".moved").rename(second)
    assert score(settings, factory=stub.STUB).exit_code == 0
    assert len(rows_of(tmp_path)) == 40


@pytest.mark.slow
def test_an_error_of_an_actor_reaches_the_user_and_a_resume_finishes(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", [*[SLOW] * 40, "fatal:once", *[SLOW] * 23])
    with pytest.raises(RunError, match="E1508: nothing works"):
        go(tmp_path)
    before = committed(tmp_path)
    assert 0 < before < 8
    outcome = go(tmp_path, factory=CALM)
    assert outcome.exit_code == 0
    assert outcome.session.rows == 64 - 8 * before
    assert set(rows_of(tmp_path).values()) == {"answered"}


@pytest.mark.slow
def test_ctrl_c_stops_between_chunks_and_the_same_command_goes_on(
    tmp_path: Path, soon: Any
) -> None:
    stub.write_archive(tmp_path / "in.parquet", [SLOW] * 320)
    soon(lambda: committed(tmp_path) >= 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    outcome = go(tmp_path)
    assert outcome.session.stopped
    assert outcome.exit_code == 1
    assert 16 <= outcome.committed < 320
    assert not list((tmp_path / "run").rglob("*.tmp")), "a finished chunk was not committed"
    done = go(tmp_path, pool=ALONE)
    assert done.exit_code == 0
    assert done.session.rows == 320 - outcome.committed


@pytest.mark.slow
def test_a_full_disk_under_an_actor(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", [SLOW] * 32)
    with pytest.raises(RunError, match="E1503") as caught:
        go(tmp_path, factory="tests.integration.stub:load_on_a_full_disk", pool=ALONE)
    assert caught.value.exit_code == 5
    assert cpus_come_free()
    assert go(tmp_path, pool=ALONE).exit_code == 0
    assert len(rows_of(tmp_path)) == 32


@pytest.mark.slow
def test_a_full_disk_under_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.write_archive(tmp_path / "in.parquet", [SLOW] * 32)
    calls = []

    def full(self: Store, hidden: str, name: str) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise RunError("E1503", os.strerror(errno.ENOSPC))
        os.replace(self.path(hidden), self.path(name))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "reveal", full)
        with pytest.raises(RunError, match="E1503") as caught:
            go(tmp_path, pool=ALONE)
    assert caught.value.exit_code == 5
    assert cpus_come_free()
    assert go(tmp_path, pool=ALONE).exit_code == 0
    assert len(rows_of(tmp_path)) == 32


@pytest.mark.slow
def test_decoding_in_front_of_the_model_changes_no_row(tmp_path: Path, soon: Any) -> None:
    """One actor decodes and one answers; a decoder is killed, and the rest is scored without."""
    questions = [SLOW, "bad", "", "raise", *["sleep:0.1 what?"] * 60]
    for name in ("split", "whole"):
        stub.write_archive(tmp_path / name / "in.parquet", questions)
    plain = go(tmp_path / "whole", pool={**ALONE, "decode_actors": 0})

    def kill_one() -> None:
        os.kill(processes.decoding_actors(os.getpid())[0], signal.SIGKILL)

    soon(lambda: committed(tmp_path / "split") >= 1, kill_one)
    outcome = go(tmp_path / "split", pool={**ALONE, "decode_actors": 1})
    assert outcome.exit_code == 0
    assert outcome.session.deaths <= 1
    assert outcome.session.reasons == plain.session.reasons
    assert rows_of(tmp_path / "split") == rows_of(tmp_path / "whole")
    assert outcome.session.counters["images"] == plain.session.counters["images"]
    again = go(tmp_path / "split", pool={**ALONE, "decode_actors": 0})
    assert (again.exit_code, again.session.rows) == (0, 0)
