"""`medv run-batch`: the same answers without a server, and the same command again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import medv_ray.serving.batch.job as module
from medv_ray.cli import app as command_line
from medv_ray.cli.batches import progress_lines
from medv_ray.errors import MedvError, RunError
from medv_ray.serving.batch.journal import Progress
from medv_ray.serving.batch.offline import BatchRun, answer_file
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from tests.unit.serving.batch.requests import line, read, write
from tests.unit.serving.client import MODEL, ask

IDENTITY = {"model": "x", "settings": {}}


def lines(number: int) -> list[Any]:
    rows = [line(f"r{i}") for i in range(number)]
    for one in rows:
        one["body"] |= {"model": MODEL, "max_tokens": 2}
    return rows


@pytest.fixture
def load(service: Service) -> Callable[[], Any]:
    """The service, which other tests need still."""
    kept = {name: getattr(service, name) for name in dir(service) if not name.startswith("__")}
    return lambda: SimpleNamespace(**{**kept, "close": lambda: None})


def test_a_file_from_its_first_line_to_its_last(
    app: App, load: Callable[[], Any], tmp_path: Path
) -> None:
    rows: list[Any] = [*lines(3), "{bad", {**lines(1)[0], "custom_id": "m", "method": "GET"}]
    rows += [{**lines(1)[0], "custom_id": "none", "body": {"model": "gpt-4", "messages": []}}]
    run = BatchRun(str(write(tmp_path / "in.jsonl", rows)), str(tmp_path / "out.jsonl"))
    loaded = []

    def counted() -> Any:
        loaded.append(1)
        return load()

    told: list[Progress] = []
    done = answer_file(run, IDENTITY, counted, told.append)
    assert [one.total for one in told] == [6] * len(told)
    assert (told[-1].completed, told[-1].failed) == (3, 3)
    assert (done.status, done.total, done.completed, done.failed) == ("completed", 6, 3, 3)
    answers = read(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in answers] == ["r0", "r1", "r2"]
    plain = ask(app, rows[1]["body"]).json()
    assert answers[1]["response"]["body"]["choices"] == plain["choices"]
    errors = read(tmp_path / "out.errors.jsonl")
    assert [one["error"]["code"] for one in errors] == ["E1715", "E1715", "E1701"]
    assert [one["error"]["line"] for one in errors] == [4, 5, 6]
    before = (tmp_path / "out.jsonl").read_bytes()
    assert answer_file(run, IDENTITY, counted) == done  # nothing is left
    assert len(loaded) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_the_same_command_goes_on(
    load: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_S", 0.0)
    run = BatchRun(str(write(tmp_path / "in.jsonl", lines(12))), str(tmp_path / "out.jsonl"))
    real = module.Job._commit

    def killed(self: module.Job, **changes: Any) -> None:
        real(self, **changes)
        if self._progress.completed >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Job, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        answer_file(run, IDENTITY, load)
    monkeypatch.setattr(module.Job, "_commit", real)
    assert 4 <= len(read(tmp_path / "out.jsonl")) < 12
    for identity in ({**IDENTITY, "model": "y"}, {**IDENTITY, "settings": {"seed": 1}}):
        with pytest.raises(RunError, match="E1502.* changed since this run began"):
            answer_file(run, identity, load)
    done = answer_file(run, IDENTITY, load)
    assert (done.completed, done.failed) == (12, 0)
    assert [one["custom_id"] for one in read(tmp_path / "out.jsonl")] == [
        f"r{i}" for i in range(12)
    ]
    assert not (tmp_path / "out.errors.jsonl").exists()
    write(tmp_path / "in.jsonl", lines(13))
    with pytest.raises(RunError, match="E1502.*input changed"):
        answer_file(run, IDENTITY, load)


def test_a_model_that_is_lost_stops_the_run(tmp_path: Path, load: Callable[[], Any]) -> None:
    """No line is taken for wrong where nothing can answer any more."""

    def lost() -> Any:
        made = load()
        made.is_over = True

        def model(name: str) -> Any:
            raise RunError("E1708", "this replica is ending.")

        made.model = model
        return made

    run = BatchRun(str(write(tmp_path / "in.jsonl", lines(2))), str(tmp_path / "out.jsonl"))
    with pytest.raises(RunError, match="E1708"):
        answer_file(run, IDENTITY, lost)
    assert (tmp_path / "out.errors.jsonl").read_bytes() == b""
    assert answer_file(run, IDENTITY, load).completed == 2


def test_what_can_not_be_run(tmp_path: Path) -> None:
    write(tmp_path / "there.jsonl", ["x"])
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n \n")
    for given, out, code in (
        ("nothing.jsonl", "out", "E1001"), ("empty.jsonl", "out", "E1001"),
        ("there.jsonl", "there.jsonl", "E1507"),
    ):  # fmt: skip
        run = BatchRun(str(tmp_path / given), str(tmp_path / out))
        with pytest.raises(MedvError) as refused:
            run.check()
        assert refused.value.code == code
        assert str(tmp_path) not in str(refused.value)


def test_by_its_command(tmp_path: Path) -> None:
    rows: list[Any] = [*lines(2), "{bad"]
    asked = write(tmp_path / "in.jsonl", rows)
    sizes = ("gen_length", "block_length", "steps")
    given = [word for name in sizes for word in ("--set", f"sampler.{name}=4")]
    command = ["run-batch", str(asked), str(tmp_path / "out.jsonl"), *given]
    done = CliRunner().invoke(command_line, command, standalone_mode=False)
    assert done.return_value == 1, "lines failed"
    assert [one["custom_id"] for one in read(tmp_path / "out.jsonl")] == ["r0", "r1"]
    assert len(read(tmp_path / "out.errors.jsonl")) == 1


def test_how_far_it_has_come_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    done = Progress(began=0, time=1, total=8, completed=1, failed=1)
    progress_lines()(done)
    assert capsys.readouterr() == ("", ""), "not for a file that is soon done"
    progress_lines(0)(done)
    out, said = capsys.readouterr()
    assert out == ""
    assert json.loads(said) == {
        "progress": 0.25, "lines": 2, "total": 8, "answered": 1, "errors": 1
    }  # fmt: skip
