"""What the driver of a training job reads of its workers."""

import errno
import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medv_ray.archive.lock import NAME, Lock
from medv_ray.archive.store import Store
from medv_ray.errors import RunError
from medv_ray.on_ray import actor, job_meters
from medv_ray.on_ray import train as on_ray_train
from medv_ray.on_ray.cluster import Cluster
from medv_ray.on_ray.preflight import Capacity, Node
from medv_ray.on_ray.train import few_updates, last_event, train
from medv_ray.settings import SamplerSettings
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.job import (
    LOCK,
    MANIFEST,
    NOTE,
    PARTIAL,
    TrainSettings,
    ValidationSettings,
)
from medv_ray.training.validation import Validator
from medv_ray.training.watch import ValidationEvent
from tests.unit.training import tiny
from tests.unit.training.test_run import state

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (None, None),
        ("", None),
        ('{"step": 1', None),
        ('{"step": 1}\n', 1),
        ('{"step": 1}\n{"step": 2}\n{"st', 2),
        ('{"step": 1}\n\0\0\n', None),
        ('{"step": 1}\n{"step": 1, "kind": "validation"}\n', 1),
        ('{"step": 1, "kind": "validation"}\n', None),
        ("7\n", None),
        ('{"step": 1}\n{"stfp": 2}\n', None),
    ],
)
def test_the_last_event_is_the_last_whole_line(
    tmp_path: Path, text: str | None, step: int | None
) -> None:
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    assert last_event(tmp_path).get("step") == step


def test_the_last_event_of_a_long_file_and_of_a_kind(tmp_path: Path) -> None:
    look = '{"step": 7, "kind": "validation", "samples": ["' + "x" * 20_000 + '"]}\n'
    (tmp_path / "events.jsonl").write_text('{"step": 1}\n' * 9000 + '{"step": 7}\n' + look)
    assert last_event(tmp_path) == {"step": 7}
    assert last_event(tmp_path, "validation")["step"] == 7
    assert "kind" not in last_event(tmp_path)


@pytest.mark.parametrize("half", ["", '{"step": 9, "loss'])
@pytest.mark.parametrize(
    ("samples", "text"), [(100, "a" * 200), (60, "\u8089" * 200), (1, "b" * 2**18)]
)
def test_the_last_event_behind_and_in_lines_of_any_length(
    tmp_path: Path, samples: int, text: str, half: str
) -> None:
    steps = [{"step": number} for number in range(1, 9)]
    looks = [
        {"step": number, "kind": "validation", "samples": [text] * 2 * samples} for number in (3, 8)
    ]
    kept = [*steps[:3], looks[0], *steps[3:], looks[1]]
    lines = "".join(f"{json.dumps(one)}\n" for one in kept)
    (tmp_path / "events.jsonl").write_text(lines + half)
    assert last_event(tmp_path) == {"step": 8}
    assert last_event(tmp_path, "validation") == looks[1]
    more = '{"step": 9}\n' * 20_000  # further back than is looked at first
    (tmp_path / "events.jsonl").write_text(lines + more + half)
    assert last_event(tmp_path) == {"step": 9}
    assert last_event(tmp_path, "validation") == looks[1]
    assert last_event(tmp_path, "other") == {}


def test_samples_have_a_limit() -> None:
    assert ValidationSettings(every=1, samples=100).samples == 100
    with pytest.raises(ValueError, match="less than or equal to 100"):
        ValidationSettings(every=1, samples=101)


@pytest.mark.parametrize(("rows", "said"), [(79, "9.88 updates"), (80, ""), (3, "0.375 updates")])
def test_an_epoch_of_few_updates_is_told(tmp_path: Path, rows: int, said: str) -> None:
    stage = tiny.settings(tmp_path, batch_size=8).stage
    warning = few_updates(stage, rows)
    assert bool(warning) == bool(said)
    assert said in warning
    assert "\n" not in warning


@pytest.mark.parametrize("best", [False, True])
def test_a_stage_that_ended_early_is_whole_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], best: bool
) -> None:
    chosen = ValidationSettings(
        every=1, patience=1, answers=False, export="best" if best else "last"
    )
    settings = tiny.settings(tmp_path).model_copy(update={"validation": chosen})
    step = {"total_steps": 6, "epoch": 0.5, "loss": 0.5, "lr": 0.1}
    look = {"total_steps": 6, "epoch": 0.5, "rows": 5, "loss": 0.7, "samples": [],
            "kind": "validation"}  # fmt: skip
    exported: list[Any] = []

    def work(given: TrainSettings, identity: dict[str, Any]) -> None:
        events = [{"step": 3, **step}, {"step": 3, **look, "ended": True}]
        (Path(given.out) / "events.jsonl").write_text(
            "".join(f"{json.dumps(one)}\n" for one in events)
        )

    cluster = Cluster(Capacity((Node(4, 0),), elastic=False))
    monkeypatch.setattr(on_ray_train, "running_ray", lambda address: nullcontext(cluster))
    monkeypatch.setattr(on_ray_train, "run_workers", work)
    monkeypatch.setattr(on_ray_train, "TELL_S", 0.01)
    monkeypatch.setattr(
        on_ray_train, "export", lambda settings, folder, **given: exported.append(given)
    )
    told: list[str] = []
    done = train(settings, tell=lambda stage, event: told.append(str(event)))
    assert done.whole
    assert (done.step, done.num_steps, done.ended_early) == (3, 6, True)
    assert done.validation == {"step": 3, "rows": 5, "loss": 0.7}
    assert exported == [{"best": best}]
    assert told[-1].startswith("validation after step 3  loss 0.7000  none was better for long")
    assert (Path(settings.out) / "curves.svg").is_file()
    said = capsys.readouterr().err
    assert "an epoch has 4.75 updates" in said
    assert "it is done" not in said
    (Path(settings.out) / "model").mkdir()
    chosen = chosen.model_copy(update={"patience": 9})
    assert train(settings.model_copy(update={"validation": chosen})).ended_early
    assert len(exported) == 1
    said = capsys.readouterr().err
    assert "validation.patience ended the stage after step 3 of 6; it is done" in said
    assert "--new-run" in said


def looks(out: Path) -> list[dict[str, Any]]:
    """Validations of a run, without what the clock says."""
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.get("kind") == "validation"]
    return [{name: v for name, v in one.items() if name != "seconds"} for one in found]


def test_a_worker_validates_and_a_stop_meanwhile_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Driver and worker in one process, without Ray."""

    def workers(settings: TrainSettings, identity: dict[str, Any]) -> None:
        on_ray_train.work({"settings": settings.model_dump(mode="json"), "identity": identity})

    cluster = Cluster(Capacity((Node(4, 0),), elastic=False))
    monkeypatch.setattr(on_ray_train, "running_ray", lambda address: nullcontext(cluster))
    monkeypatch.setattr(on_ray_train, "run_workers", workers)
    monkeypatch.setattr(on_ray_train, "preempted", lambda: False)
    monkeypatch.setattr(on_ray_train, "draw", lambda out, stage: True)
    monkeypatch.setattr(on_ray_train, "export", lambda settings, folder, best: folder.mkdir())
    monkeypatch.setattr(on_ray_train, "TELL_S", 0.01)
    monkeypatch.setattr(actor, "die_with_parent", lambda: None)
    sampler = SamplerSettings(gen_length=4, block_length=4, steps=2)
    chosen = ValidationSettings(every=1, rows=3, sampler=sampler)
    made = tiny.settings(tmp_path, max_steps=3).model_copy(update={"validation": chosen})
    whole = made.model_copy(update={"out": str(tmp_path / "whole")})
    told: list[Any] = []
    done = train(whole, tell=lambda stage, event: told.append(event))
    assert (done.step, done.whole) == (3, True)
    assert done.validation is not None
    assert (done.validation["step"], done.validation["rows"]) == (3, 3)
    assert 0 <= done.validation["accuracy"] <= 1
    assert [event.step for event in told if isinstance(event, ValidationEvent)][-1] == 3

    real = Validator.__call__

    def stopped(self: Validator, step: int, num_steps: int) -> ValidationEvent:
        if step == 1:  # a second one would end this process
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, num_steps)

    cut = made.model_copy(update={"out": str(tmp_path / "cut")})
    with monkeypatch.context() as patch:
        patch.setattr(Validator, "__call__", stopped)
        done = train(cut)
    assert (done.step, done.whole) == (2, False)  # the step after it is the last one
    assert "stopping after this step" in capsys.readouterr().err
    assert train(cut).whole
    assert looks(Path(cut.out)) == looks(Path(whole.out))
    assert [one["step"] for one in looks(Path(cut.out))] == [1, 2, 3]
    assert state(cut) == state(whole)


def test_a_run_that_starts_over_keeps_its_lock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path)
    out = run.begin(settings, check(settings))
    old = [out / "events.jsonl", out / "checkpoints" / "step-3" / "0.safetensors"]
    for file in old:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    seen = []

    def look(settings: TrainSettings, identity: dict[str, Any], new_run: bool, *_: object) -> None:
        run.begin(settings, identity, new_run)
        with pytest.raises(RunError, match="written by process"):
            Lock(Store(settings.out)).acquire()
        seen.extend(file.name for file in out.iterdir())
        (out / "events.jsonl").write_text('{"step": 1, "total_steps": 6, "loss": 0.5}\n')

    monkeypatch.setattr(on_ray_train, "run_on_ray", look)
    assert not train(settings, new_run=True).whole
    assert sorted(seen) == sorted([LOCK, MANIFEST])
    Lock(Store(settings.out)).acquire()  # it was let go


def test_a_job_without_room_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So other settings may be tried in the same folder."""
    cluster = Cluster(Capacity((Node(0.5, 0),), elastic=False))
    monkeypatch.setattr(on_ray_train, "running_ray", lambda address: nullcontext(cluster))
    settings = tiny.settings(tmp_path)
    with pytest.raises(RunError, match="E1505"):
        train(settings)
    assert [file.name for file in Path(settings.out).iterdir()] == [LOCK]
    stage = settings.stage.model_copy(update={"lr": 0.5})
    with pytest.raises(RunError, match="E1505"):
        train(settings.model_copy(update={"stage": stage}))


def test_a_note_of_a_worker_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_ray_train, "TELL_S", 0.01)
    settings = tiny.settings(tmp_path)
    Path(settings.out).mkdir()
    (Path(settings.out) / NOTE).write_text("checkpoints of steps [6] are not whole")
    seen: list[int] = []
    with on_ray_train.reporting(
        settings, lambda stage, event: seen.append(event.step), "room for 1"
    ):
        time.sleep(0.3)
    said = capsys.readouterr().err
    assert said.count("not whole") == 1
    assert 1 <= said.count("room for 1") <= 4
    assert seen == []


@pytest.mark.parametrize("error", [None, RunError("E1508", "gone")])
def test_a_stage_that_has_ended_has_no_step_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RunError | None
) -> None:
    """However it ended: the driver may live on, and an alert looks at the steps to go."""
    shown: list[tuple[str, float]] = []
    keep = SimpleNamespace(add=lambda name, value, labels: shown.append((name, value)))
    monkeypatch.setattr(job_meters, "RayMeters", lambda *_: keep)
    cluster = Cluster(Capacity((Node(4, 0),), elastic=False))
    monkeypatch.setattr(on_ray_train, "running_ray", lambda address: nullcontext(cluster))
    monkeypatch.setattr(on_ray_train, "begin", lambda *_: None)
    settings = tiny.settings(tmp_path)
    Path(settings.out).mkdir()
    events = Path(settings.out) / "events.jsonl"
    line = '{"step": %d, "total_steps": 9, "loss": 0.5, "tokens_per_s": 7.0}\n'
    events.write_text(line % 2)  # of an earlier process

    def train_on(*_: object) -> None:
        time.sleep(0.3)
        assert {name for name, _ in shown} == {"medv_train_step", "medv_train_open_steps"}
        events.write_text(line % 3)
        if error is not None:
            raise error

    monkeypatch.setattr(on_ray_train, "TELL_S", 0.01)
    monkeypatch.setattr(on_ray_train, "run_workers", train_on)
    with nullcontext() if error is None else pytest.raises(RunError):
        on_ray_train.run_on_ray(settings, {"survey": {"rows": 100}}, False, None, lambda *_: None)
    assert ("medv_train_tokens_per_second", 7.0) in shown
    assert shown[-2:] == [("medv_train_open_steps", 0), ("medv_train_tokens_per_second", 0)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "x"), "E1503"),
        (NotADirectoryError(errno.ENOTDIR, "x", "/home/someone"), "E1511"),
        (ConnectionResetError(errno.ECONNRESET, "x"), None),
        (RuntimeError("a peer is gone"), None),
    ],
)
def test_an_error_of_the_disk_ends_the_job_and_one_of_a_peer_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str | None
) -> None:
    def train_worker(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "train_worker", train_worker)
    monkeypatch.setattr(actor, "die_with_parent", lambda: None)
    settings = tiny.settings(tmp_path)
    Path(settings.out).mkdir()
    with pytest.raises(type(error)):
        on_ray_train.work({"settings": settings.model_dump(mode="json"), "identity": {}})
    failed = Path(settings.out) / on_ray_train.FAILED
    if code is None:
        assert not failed.exists()
    else:
        said = json.loads(failed.read_text())
        assert said["code"] == code
        assert "someone" not in said["detail"]


@pytest.mark.parametrize("full_first", [True, False])
def test_a_full_disk_is_told_over_what_follows_from_it(tmp_path: Path, full_first: bool) -> None:
    """Of two workers one meets the full disk, the other only that something was not written."""
    words = [RunError("E1503", "full"), RunError("E1511", "by another worker")]
    for error in words if full_first else words[::-1]:
        on_ray_train.fail(tmp_path, error)
    assert [file.name for file in tmp_path.iterdir()] == [on_ray_train.FAILED]
    assert json.loads((tmp_path / on_ray_train.FAILED).read_text())["code"] == "E1503"
    on_ray_train.fail(tmp_path, RunError("E1602", "later"))
    assert json.loads((tmp_path / on_ray_train.FAILED).read_text())["code"] == "E1503"


def test_a_full_disk_under_the_driver_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left", "/home/someone")

    monkeypatch.setattr(on_ray_train, "run_on_ray", full)
    with pytest.raises(RunError, match="E1503: the run folder could not be written") as caught:
        train(settings)
    assert caught.value.exit_code == 5
    assert "someone" not in str(caught.value)


def test_what_a_kill_leaves_of_a_beginning_is_no_hindrance(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    Path(settings.out).mkdir()
    (Path(settings.out) / PARTIAL).write_text('{"ide')
    (Path(settings.out) / NAME).touch()
    run.begin(settings, check(settings))
    assert run.read_run(Path(settings.out))


def test_a_stage_whose_model_is_there_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path)
    out = run.begin(settings, check(settings))
    (out / "events.jsonl").write_text('{"step": 6, "total_steps": 6, "loss": 0.5}\n')

    def started(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(on_ray_train, "running_ray", started)
    with pytest.raises(AssertionError, match="Ray was started"):  # told, but no model yet
        train(settings)
    (out / "model").mkdir()
    assert train(settings).whole
