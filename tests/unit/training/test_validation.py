"""Looks at the validation split: what they say, and that training does not notice them."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.engine.resolve import resolve
from medv_ray.errors import SettingsError
from medv_ray.settings import AnswerSettings, ModelSettings, PromptSettings, SamplerSettings
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.engine import PlainEngine
from medv_ray.training.export import export
from medv_ray.training.job import TrainSettings, ValidationSettings
from medv_ray.training.objective import Outcome
from medv_ray.training.order import noise_level, spread
from medv_ray.training.samples import FrozenTower
from medv_ray.training.validation import (
    Validator,
)
from tests.unit.training import tiny
from tests.unit.training.test_run import state

pytestmark = pytest.mark.integration

SAMPLER = SamplerSettings(gen_length=4, block_length=4, steps=4)


def job(home: Path, out: Path, stage: dict[str, Any] | None = None, **looks: Any) -> TrainSettings:
    chosen = {"every": 2, "rows": 5, "batch_size": 8, "sampler": SAMPLER} | looks
    changed = {"out": str(out), "validation": ValidationSettings(**chosen)}
    return tiny.settings(home, **(stage or {})).model_copy(update=changed)


def spec_of(settings: TrainSettings) -> SampleSpec:
    tokenizer = load_tokenizer(settings.model)
    sampler = settings.validation.sampler or SAMPLER
    return resolve(sampler, tokenizer, SpecialIds.of(tokenizer))


def train(settings: TrainSettings, steps: int | None = None) -> list[int]:
    """Steps that were taken, of at most so many."""
    identity = check(settings, spec_of(settings))
    run.begin(settings, identity)
    worker = run.train_worker(settings, identity, spec=spec_of(settings))
    return [report.step for report in islice(worker, steps)]


def lines(settings: TrainSettings) -> list[dict[str, Any]]:
    text = (Path(settings.out) / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def looks(settings: TrainSettings) -> list[dict[str, Any]]:
    """Validations of a run, without what the clock says."""
    found = [line for line in lines(settings) if line.get("kind") == "validation"]
    return [{name: v for name, v in one.items() if name != "seconds"} for one in found]


@pytest.fixture(scope="module")
def whole(home: Path) -> TrainSettings:
    """A run that looked three times."""
    settings = job(home, home / "whole")
    assert train(settings) == [1, 2, 3, 4, 5, 6]
    return settings


def test_training_does_not_notice_validation(home: Path, whole: TrainSettings) -> None:
    lora = {"lora": {"rank": 2, "dropout": 0.3}, "max_steps": 3}
    for name, stage in (("plain", {}), ("lora", lora)):
        off = job(home, home / f"{name}-off", stage, every=None)
        on = whole if not stage else job(home, home / f"{name}-on", stage)
        for settings in (off, on) if stage else (off,):
            train(settings)
        assert state(off) == state(on)
        steps = [[line["loss"] for line in lines(s) if "kind" not in line] for s in (off, on)]
        assert steps[0] == steps[1]
        assert not looks(off)


def test_a_run_that_goes_on_repeats_and_misses_no_validation(
    home: Path, tmp_path: Path, whole: TrainSettings
) -> None:
    cut = job(home, tmp_path)
    train(cut, steps=4)  # before the validation after step 4
    assert [one["step"] for one in looks(cut)] == [2]
    assert train(cut) == [3, 4, 5, 6]
    assert looks(cut) == looks(whole)
    assert [one["step"] for one in looks(whole)] == [2, 4, 6]
    assert [line["step"] for line in lines(cut)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert state(cut) == state(whole)


def test_the_loss_is_the_formulas_at_fixed_noise(home: Path, whole: TrainSettings) -> None:
    """Of the folder that was exported at the end."""
    settings = whole
    model = Path(settings.out) / "model"
    if not model.exists():
        export(settings, model)
    exported = settings.model_copy(update={"model": str(model)})
    trained = run.build_model(exported, "cpu")
    validator = made(exported, trained)
    rows = [validator._row(index).loss for index in range(5)]
    validator.close()
    assert [row.t for row in rows] == [noise_level(index) for index in range(5)]
    tokenizer = load_tokenizer(settings.model)
    losses = [float(loss_at(trained, tokenizer, row)) for row in rows]
    assert looks(whole)[-1]["loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)


def loss_at(model: Any, tokenizer: Any, row: Any) -> torch.Tensor:
    """`tiny.plain_loss` at the row's level instead of the one that is drawn."""
    draws = torch.rand

    def rand(*size: int, generator: torch.Generator) -> torch.Tensor:
        found = draws(*size, generator=generator)
        return torch.tensor([row.t]) if size == (1,) else found

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "rand", rand)
        return tiny.plain_loss(model, SpecialIds.of(tokenizer).mask, row)


def made(settings: TrainSettings, model: Any = None, **engine: Any) -> Validator:
    """A validator over a model, without a run."""
    tokenizer = load_tokenizer(settings.model)
    model = model or run.build_model(settings, "cpu")
    tower = FrozenTower(model)
    objective = run.make_objective(model, SpecialIds.of(tokenizer), settings.stage)
    plain = PlainEngine(objective, settings.stage)
    for name, value in engine.items():
        setattr(plain, name, value)
    return Validator(settings, plain, tokenizer, model, tower, 19, spec_of(settings))


@pytest.mark.parametrize("attention", ["full", "prefix"])
def test_answers_are_those_of_the_predictor(home: Path, tmp_path: Path, attention: str) -> None:
    """The same prompt, sampler and weights as whoever asks the exported folder."""
    stage = {"token_after_image": "reference", "attention": attention, "max_steps": 2}
    settings = job(home, tmp_path, stage, samples=5)
    train(settings)
    export(settings, tmp_path / "model")
    dataset = Dataset.open(settings.data, "validation")
    shown = looks(settings)[-1]["samples"]
    assert [one["row"] for one in shown] == spread(9, 5) == [0, 1, 3, 5, 7]
    rows = [dataset[one["row"]] for one in shown]
    requests = [
        Request(
            row.conversations[0]["value"].removeprefix("<image>\n"),
            tuple(dataset.image(digest) for digest in row.images),
        )
        for row in rows
    ]
    asked = AnswerSettings(sampler=SAMPLER, prompt=PromptSettings(system="general"))
    folder = ModelSettings(path=str(tmp_path / "model"), device="cpu")
    with Predictor.load(folder, asked) as predictor:
        answers = predictor.answer(requests)
    texts = [answer.text for answer in answers if isinstance(answer, Answer)]
    assert [one["answer"] for one in shown] == texts
    assert len(set(texts)) > 1
    assert [one["reference"] for one in shown] == [row.conversations[1]["value"] for row in rows]


def test_open_and_closed_are_counted_apart(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Validator, "_answers", lambda self, rows: [f"The {r.reference}." for r in rows][:-1] + ["?"]
    )
    validator = made(job(home, tmp_path, rows=99, batch_size=9))
    event = validator(4, 6)
    kinds = [validator._row(index).kind for index in range(9)]
    validator.close()
    assert event.rows == 9
    assert (event.rows_open, event.rows_closed) == (kinds.count("open"), kinds.count("closed"))
    assert kinds[-1] == "open"  # the one that is not answered right
    assert event.accuracy == pytest.approx(8 / 9)
    assert event.accuracy_closed == 1
    assert event.accuracy_open == pytest.approx(1 - 1 / event.rows_open)
    assert event.epoch == pytest.approx(16 / 19)
    assert len(event.samples) == 4


@pytest.mark.parametrize(("count", "workers"), [(9, 2), (5, 4), (3, 4), (9, 1)])
def test_workers_share_the_rows_and_take_as_many_passes(
    home: Path, tmp_path: Path, count: int, workers: int
) -> None:
    seen: list[int] = []
    shapes = set()
    for rank in range(workers):
        settings = job(home, tmp_path, rows=count, batch_size=2)
        validator = made(settings, rank=rank, num_workers=workers)
        batches, counted = validator._shares()
        validator.close()
        seen += counted
        shapes.add(tuple(map(len, batches)))
    assert sorted(seen) == list(range(count))
    assert len(shapes) == 1


def test_the_loss_does_not_depend_on_what_stands_together(home: Path, tmp_path: Path) -> None:
    """Nor on the references' padding, which training has."""
    found = []
    for size in (1, 9):
        stage = {"padding": "end_of_text"}
        validator = made(job(home, tmp_path, stage, rows=9, batch_size=size, answers=False))
        found.append(validator(1, 6).loss)
        validator.close()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What validations are to find, one after the other."""
    given: list[float] = []
    real = PlainEngine.look

    def look(self: PlainEngine, rows: Any, way: Any) -> Any:
        found = real(self, rows, way)
        if way != "loss":
            return found
        loss = given.pop(0)
        return Outcome(*found)._replace(by_row=torch.full((len(rows),), loss))

    monkeypatch.setattr(PlainEngine, "look", look)
    return given


def steps_kept(settings: TrainSettings) -> list[int]:
    return Checkpoints(Path(settings.out) / "checkpoints", 1).steps()


def test_the_best_checkpoint_stays_and_is_exported(
    home: Path, tmp_path: Path, losses: list[float]
) -> None:
    settings = job(home, tmp_path / "run", {"max_steps": 8}, every=1).model_copy(update={"keep": 1})
    losses += [3.0, 2.0, 1.0, 1.0, math.nan, 1.5, 1.2, 1.1]
    train(settings, steps=7)  # cut behind the validation of step 6; saved are 1, 2, 3, 4, 6
    assert steps_kept(settings) == [3, 6]
    losses[:] = [1.2, 1.1]
    assert train(settings) == [7, 8]
    assert steps_kept(settings) == [3, 8]
    assert [one["best"] for one in looks(settings)] == [True] * 3 + [False] * 5
    assert looks(settings)[4]["loss"] is None
    first = settings.model_copy(update={"validation": ValidationSettings(split="other")})
    assert export(first, tmp_path / "last") == 8  # by run.json, which keeps the first call's
    assert export(settings, tmp_path / "best", best=True) == 3
    said = (tmp_path / "best" / "README.md").read_text()
    assert "| best | 3 | 1.0000 |" in said
    assert "3 of 8 updates" in said
    said = (tmp_path / "last" / "README.md").read_text()
    assert "On 5 rows of split validation;" in said
    assert "| last | 8 | 1.1000 |" in said


def test_a_stage_that_gets_no_better_ends_whole(
    home: Path, tmp_path: Path, losses: list[float]
) -> None:
    settings = job(home, tmp_path / "run", {"max_steps": 9}, every=1, patience=2)
    losses += [3.0, 2.0, 2.0, 2.5]
    assert train(settings) == [1, 2, 3, 4]
    assert [one["ended"] for one in looks(settings)] == [False] * 3 + [True]
    assert train(settings) == []
    assert export(settings, tmp_path / "last") == 4
    assert export(settings, tmp_path / "best", best=True) == 2


def test_best_needs_a_validation(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path / "run", {"max_steps": 2}, every=None)
    train(settings)
    with pytest.raises(SettingsError, match="E1001: --best: .*--validate-every"):
        export(settings, tmp_path / "model", best=True)


def test_rows_and_levels_are_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 9) == [0, 1, 2]
    levels = sorted(noise_level(number) for number in range(100))
    gaps = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    assert max(gaps) < 0.02


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"best": "none", "patience": 2}, "patience=2 goes by best"),
        ({"best": "none", "export": "best"}, "export=best goes by best"),
        ({"every": None, "patience": 2}, "--validate-every"),
        ({"best": "accuracy", "answers": False}, "answers=true"),
        ({"every": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ValidationSettings(**{"every": 2} | chosen)
