"""The pick, the table, and what is kept on the way: with a model whose answers are made up."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medv_ray.cli import score_settings
from medv_ray.cli.tuning import conclusion
from medv_ray.engine import Answer, Request
from medv_ray.errors import DataError, RunError
from medv_ray.evaluation import sweep_plots
from medv_ray.evaluation.agreement import rows_needed
from medv_ray.evaluation.plots import Panel
from medv_ray.on_ray import trial_run
from medv_ray.on_ray.predictor import ReloadingPredictor
from medv_ray.on_ray.sweep import Labelled, Sample, by_label, labelled, sweep
from medv_ray.on_ray.trial_run import Answers, Asker
from medv_ray.on_ray.tune import TuneSettings, tune
from medv_ray.settings import SamplerSettings
from tests.integration import stub

CLOCK = {"now": 0.0}


class Made:
    """Question `q7`: a threshold below 0.9 differs in every twentieth row, a cache in none. Time
    goes with the passes; a cached pass takes a quarter."""

    def __init__(self) -> None:
        self.counters = SimpleNamespace(decodes=0)
        self.asked = 0

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer | DataError:
        self.asked += 1
        if "bad" in request.question:
            return DataError("E1303", "too long.")
        if "end" in request.question:
            raise KeyboardInterrupt
        number, sampler = int(request.question[1:]), request.sampler
        assert sampler is not None
        is_threshold = sampler.rule == "threshold"
        passes = round(10 * sampler.threshold) if is_threshold else sampler.steps
        CLOCK["now"] += passes * (0.25 if sampler.cache != "none" else 1.0)
        differs = is_threshold and sampler.threshold < 0.9 and number % 20 == 0
        return Answer(
            text="no" if differs else "yes", token_ids=(1,), token_confidence=(1.0,),
            token_step=(0,), forward_passes=passes, seconds=9.0, finish="stop",
        )  # fmt: skip

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_run, "time", SimpleNamespace(perf_counter=lambda: CLOCK["now"]))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the panels; drawing them takes a second."""
    names: list[str] = []

    def chart(title: str, panels: Sequence[Panel]) -> str:
        names.extend(panel.y_label for panel in panels)
        assert all(len(line.x) == len(line.y) for panel in panels for line in panel.series)
        return "<svg/>"

    monkeypatch.setattr(sweep_plots, "chart", chart)
    return names


def prepare(folder: Path, questions: Sequence[str]) -> tuple[Any, Answers, Made]:
    stub.write_archive(folder / "in.parquet", questions)
    made = Made()
    sampler = {"gen_length": 16, "block_length": 16, "steps": 16}
    who = Asker(ReloadingPredictor(lambda: made), 1)
    return stub.settings(folder, sampler=sampler), lambda _: who, made


QUESTIONS = [f"q{i}" for i in range(400)]


def test_the_fastest_that_holds_is_picked(tmp_path: Path) -> None:
    settings, who, made = prepare(tmp_path, QUESTIONS)
    told: list[str] = []
    asked = TuneSettings(agree=0.95, rows=160, verify=40)
    found = tune(settings, asked, told.append, who)
    # threshold 0.9 with a cache: 9 cheap passes, and it never differs; below 0.9 it does
    assert found["pick"] == "dual-32-threshold-0.9"
    assert found["speed"] == pytest.approx(16 / (9 * 0.25))
    fates = {one["name"]: one["fate"] for one in found["candidates"]}
    assert fates["turbo"].startswith("differs in")
    assert any("dropped turbo" in line for line in told)
    assert fates["dual-16" if "dual-16" in fates else "dual-8"] == "left: a faster one holds"
    assert found["verified"]["agreement"]["n"] == 40
    assert found["verified"]["agreement"]["mean"] == 1.0
    few = found | {"archive_rows": 190}
    assert "--verify 40: only 30 further rows are there." in conclusion(few)
    won = found["candidates"][0]
    assert won["name"] == found["pick"]
    assert (won["same"], won["compared"], won["fate"]) == (160, 160, "holds")
    assert won["lower_bound"] >= 0.95
    assert found["exact"]["closed"]["mean"] == 1.0
    assert "160 of 400 rows" in conclusion(found)[0]
    # what it wrote is what `medv score` takes
    out = Path(settings.out)
    flags = {"out": "r", "archive": {"archive": "a"}, "model": {"path": str(tmp_path / "model")}}
    score = score_settings(out / "tune.json", flags, [])
    assert score.sampler == SamplerSettings(**won["settings"])
    assert (score.sampler.rule, score.sampler.threshold, score.sampler.cache) == (
        "threshold", 0.9, "dual",
    )  # fmt: skip
    assert json.loads((out / "results.json").read_bytes()) == json.loads(json.dumps(found))
    assert "PICKED" in (out / "table.md").read_text()
    # the same line asks nothing again; more rows ask what is new
    before = made.asked
    assert tune(settings, asked, answers=who)["pick"] == found["pick"]
    assert made.asked == before
    more = tune(settings, TuneSettings(agree=0.95, rows=180), answers=who)
    assert more["pick"] == found["pick"]
    assert made.asked > before


def test_too_few_rows_leave_exact_and_say_how_many_it_takes(tmp_path: Path) -> None:
    settings, who, _ = prepare(tmp_path, QUESTIONS[:40])
    told: list[str] = []
    found = tune(settings, TuneSettings(agree=0.99, rows=40), told.append, who)
    assert "40 rows are too few" in told[0]
    assert (found["pick"], found["speed"], found["verified"]) == ("exact", 1.0, None)
    alpha = 0.05 / len(found["candidates"])
    assert found["need"]["rows"] == found["bound"]["least_rows"] == rows_needed(1.0, 0.99, alpha)
    fates = {one["fate"] for one in found["candidates"]}
    assert "left: the rows are too few for any" in fates
    assert not any("holds" in fate for fate in fates)
    config = json.loads((Path(settings.out) / "tune.json").read_bytes())
    assert config["sampler"]["preset"] == "exact"
    assert any("would need" in line for line in conclusion(found))


def test_quarantined_rows_are_counted_and_not_compared(tmp_path: Path) -> None:
    settings, who, _ = prepare(tmp_path, [*QUESTIONS[:100], *["bad"] * 20])
    found = tune(settings, TuneSettings(agree=0.8, rows=120), answers=who)
    assert found["quarantined"] == {"E1303": 20}
    assert {one["compared"] for one in found["candidates"] if one["fate"] == "holds"} == {100}
    assert "quarantined, not compared: E1303 20" in conclusion(found)
    # where the first rows are all bad, speed is told by those that come later
    rare, who, _ = prepare(tmp_path / "a", [*["bad"] * 80, *QUESTIONS[1:20]])
    found = tune(rare, TuneSettings(agree=0.3, rows=99), answers=who)
    assert found["quarantined"] == {"E1303": 80}
    assert found["pick"] == "dual-32-threshold-0.5"
    only, who, _ = prepare(tmp_path / "b", ["bad"] * 30)
    with pytest.raises(DataError, match="E1110: none of 30 rows has an answer"):
        tune(only, TuneSettings(rows=30), answers=who)


def test_trials_go_on_where_they_stopped(tmp_path: Path) -> None:
    settings, who, made = prepare(tmp_path, QUESTIONS[:30])
    made.answer = lambda requests: Made.answer(made, requests)  # type: ignore[method-assign]
    asked = TuneSettings(agree=0.5, rows=30)
    whole = tune(settings, asked, answers=who)
    journal = Path(settings.out) / "trials.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    first: dict[int, str] = {}
    for line in lines:
        arm, *_, visit = json.loads(line)
        first.setdefault(visit, arm)
    assert len(set(first.values())) > 4, "none has the same turn at every row"
    journal.write_bytes(b"".join(lines[:100]) + lines[100][:9])  # as a crash leaves it
    before = made.asked
    assert tune(settings, asked, answers=who)["pick"] == whole["pick"]
    warmed = len(whole["candidates"]) + 1
    assert made.asked - before == len(lines) - 100 + warmed
    changed = settings.model_copy(update={"seed": 1})
    with pytest.raises(RunError, match="E1502: the trials there are of another settings"):
        tune(changed, asked, answers=who)
    with journal.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="E1501: another process tries"):
            tune(settings, asked, answers=who)
    journal.write_bytes(b"{}\n" + lines[0])
    with pytest.raises(RunError, match="E1506: trials.jsonl is damaged"):
        tune(settings, asked, answers=who)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    settings, who, _ = prepare(tmp_path, QUESTIONS[:3])
    Path(settings.out).mkdir()
    (Path(settings.out) / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="E1507: run holds other files"):
        tune(settings, TuneSettings(rows=3), answers=who)
    with pytest.raises(RunError, match="E1507"):
        sweep("steps", [Labelled("a", settings)], Path(settings.out), Sample(), answers=who)
    assert [path.name for path in Path(settings.out).iterdir()] == ["notes.txt"]


def test_a_sweep_of_steps_has_table_and_plot(tmp_path: Path, drawn: list[str]) -> None:
    settings, who, made = prepare(tmp_path, QUESTIONS[:12])
    out = Path(settings.out)
    models = [Labelled("a", settings)]
    found = sweep("steps", models, out, Sample(10), answers=who)
    assert [arm["name"] for arm in found["arms"]] == ["exact", *(f"steps-{2**k}" for k in range(4))]
    half = found["arms"][-1]
    assert (half["passes"], half["speed"], half["agreement"]["mean"]) == (8, 2.0, 1.0)
    assert (found["rows"], found["input_rows"]) == (10, 12)
    assert (out / "steps.svg").read_text() == "<svg/>"
    assert drawn == ["repeated words", "words an answer", "closed accuracy"], "what is known"
    assert "exact = steps-16" in (out / "table.md").read_text()
    before = made.asked
    assert sweep("steps", models, out, Sample(10), answers=who) == found
    assert made.asked == before
    # another grid in the same folder asks only what is new there
    sweep("latency", models, out, Sample(10), answers=who)
    assert (out / "latency.svg").exists()
    assert before < made.asked
    for name in ("modes", "blocks"):
        drawn.clear()
        sweep(name, models, tmp_path / name, Sample(3), answers=who)
        assert "closed accuracy" in drawn


def test_models_of_one_label_are_runs_of_one_recipe(tmp_path: Path, drawn: list[str]) -> None:
    settings, who, _ = prepare(tmp_path, QUESTIONS[:12])
    models = [Labelled(label, settings) for label in ("0.5", "0.5", "1")]
    found = sweep("scaling", models, Path(settings.out), Sample(), answers=who)
    assert [(one["label"], one["runs"]) for one in found["by_label"]] == [("0.5", 2), ("1", 1)]
    assert found["by_label"][0]["closed"] == {"mean": 1.0, "sd": 0.0, "least": 1.0, "most": 1.0}
    assert found["by_label"][1]["closed"]["sd"] is None
    assert drawn == ["closed accuracy"]
    # a row that only one of the models loses is counted, whichever comes last
    left = iter([False, True, False])

    def answers(_: Any) -> Asker:
        made = Made()
        if next(left):
            whole = made._one
            made._one = lambda request: (  # type: ignore[method-assign]
                DataError("E1305", "no.") if request.question == "q3" else whole(request)
            )
        return Asker(ReloadingPredictor(lambda: made), 1)

    out = tmp_path / "second"
    found = sweep("scaling", models, out, Sample(), answers=answers)
    assert found["quarantined"] == {"E1305": 1}
    assert [one["quarantined"] for one in found["arms"]] == [{}, {"E1305": 1}, {}]
    assert "E1305 1 |" in (out / "table.md").read_text()
    apart = [{"label": "x", "closed": {"mean": m}, "open": None} for m in (0.4, 0.6)]
    [line] = by_label(apart)
    assert line["closed"]["sd"] == pytest.approx(0.1414, abs=1e-4)
    assert line["open"] is None


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert labelled("0.25=run/model") == ("0.25", "run/model")
    assert labelled("run/model") == ("model", "run/model")
    assert labelled(str(tmp_path / "a=b")) == ("a=b", str(tmp_path / "a=b"))
