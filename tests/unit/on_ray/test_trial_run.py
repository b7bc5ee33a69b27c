"""One folder of trials: who may write there, and what a time is."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.settings import ArchiveSettings
from medv_ray.engine import Answer, Request
from medv_ray.errors import DataError, RunError
from medv_ray.evaluation.grids import grid
from medv_ray.evaluation.trials import speed
from medv_ray.on_ray import trial_run
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.predictor import ReloadingPredictor
from medv_ray.on_ray.sampled_rows import Rows, open_rows
from medv_ray.on_ray.trial_run import Answers, Asker, TrialRun
from medv_ray.settings import SamplerSettings
from tests.integration import stub

CLOCK = {"now": 0.0}
ANSWER = Answer("yes", (1,), (1.0,), (0,), forward_passes=4, seconds=9.0, finish="stop")
ARMS = grid("steps", SamplerSettings(gen_length=4, block_length=4, steps=4))


class Compiles:
    """An arm's first call takes 100 s, each other a second a row and step."""

    def __init__(self) -> None:
        self.counters = SimpleNamespace()
        self.asked: list[Request] = []
        self.seen: set[int] = set()
        CLOCK["now"] += 50  # loading

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        self.asked += requests
        assert requests[0].sampler is not None
        steps = requests[0].sampler.steps
        CLOCK["now"] += len(requests) * steps + (0 if steps in self.seen else 100)
        self.seen.add(steps)
        if len(requests) > 1 and any("full" in one.question for one in requests):
            raise MemoryError
        return [ANSWER for _ in requests]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_run, "time", SimpleNamespace(perf_counter=lambda: CLOCK["now"]))


def opened(folder: Path, questions: Sequence[str]) -> tuple[ScoreSettings, Rows]:
    stub.write_archive(folder / "in.parquet", questions)
    settings = stub.settings(folder)
    return settings, open_rows(settings.archive, "test", 0)


def asker(made: Compiles, together: int = 4) -> Answers:
    return lambda _: Asker(ReloadingPredictor(lambda: made), together)


def test_the_first_call_of_an_arm_is_in_no_time(tmp_path: Path) -> None:
    settings, rows = opened(tmp_path, [f"q{i}" for i in range(8)])
    run = TrialRun(tmp_path / "run", settings, rows, 0, asker(Compiles()))
    run.run(ARMS, range(8))
    exact, *others = ARMS
    assert {t.seconds for t in run.of(exact).values()} == {4.0}
    assert [speed(run.of(arm), run.of(exact)) for arm in others] == [4.0, 2.0]
    run.close()
    lines = (tmp_path / "run" / "trials.jsonl").read_bytes().splitlines()
    assert len(lines) == 8 * len(ARMS), "the first call is not among the trials"


def test_loading_the_model_again_is_in_no_time(tmp_path: Path) -> None:
    settings, rows = opened(tmp_path, [*["full"] * 4, *["q"] * 12])
    run = TrialRun(
        tmp_path / "run", settings, rows, 0, lambda _: Asker(ReloadingPredictor(Compiles), 4)
    )
    run.run(ARMS, range(16))
    run.close()
    for arm in ARMS:
        found = {trial.seconds for trial in run.of(arm).values()}
        assert found == {0.0, float(arm.sampler.steps)}
        assert all(trial.answer == "yes" for trial in run.of(arm).values())


def test_choices_are_not_scored(tmp_path: Path) -> None:
    image, choices = stub.png(0), ["yes", "no"]
    row = {"id": "a", "image": image, "question": "q?", "answer": "yes", "choices": choices}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    settings = stub.settings(tmp_path)
    rows = open_rows(ArchiveSettings(archive=str(tmp_path / "in.parquet")), "test", 0)
    made = Compiles()
    run = TrialRun(tmp_path / "run", settings, rows, 0, asker(made))
    run.run(ARMS, [0])
    run.close()
    assert {one.choices for one in made.asked} == {()}


def test_who_is_locked_out_writes_nothing(tmp_path: Path) -> None:
    settings, rows = opened(tmp_path, ["q"])
    out = tmp_path / "run"
    out.mkdir()
    with (out / "trials.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="E1501"):
            TrialRun(out, settings, rows, 0, asker(Compiles()))
    assert [path.name for path in out.iterdir()] == ["trials.jsonl"]
    # an error lets go of the lock
    TrialRun(out, settings, rows, 0, asker(Compiles())).close()
    loaded: list[ScoreSettings] = []
    with pytest.raises(RunError, match="E1502") as held:
        TrialRun(out, settings, rows, 1, loaded.append)  # type: ignore[arg-type]
    assert not loaded, "no model is loaded for a folder that is refused"
    TrialRun(out, settings, rows, 0, asker(Compiles())).close()
    assert held.value.code == "E1502"


def test_trials_of_unknown_settings_are_left_alone(tmp_path: Path) -> None:
    settings, rows = opened(tmp_path, ["q"])
    out = tmp_path / "run"
    run = TrialRun(out, settings, rows, 0, asker(Compiles()))
    run.run(ARMS, [0])
    run.close()
    (out / "trials.json").unlink()
    before = (out / "trials.jsonl").read_bytes()
    with pytest.raises(RunError, match="E1506: trials.jsonl has no trials.json beside it"):
        TrialRun(out, settings, rows, 0, asker(Compiles()))
    assert (out / "trials.jsonl").read_bytes() == before
