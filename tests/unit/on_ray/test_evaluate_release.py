"""`medv eval` from a release in its published layout to figures, with answers of a file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.cli.evaluating import table_of
from medv_ray.data import synthetic
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.vqa.prepare import prepare
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.evaluation.comparison import read_results
from medv_ray.evaluation.eval_report import eval_report
from medv_ray.evaluation.recipes import RECIPES
from medv_ray.on_ray.evaluate import EvalSettings, evaluate
from medv_ray.settings import build


def release(folder: Path) -> Path:
    row = {
        "question": "Which?", "options": {"A": "oedema", "B": "tumour", "C": "fibrosis"},
        "label": "B", "images": ["a.png"], "medical_task": "Diagnosis", "body_system": "Nervous",
    }  # fmt: skip
    rows = [
        {**row, "id": "MM-1"},
        {**row, "id": "MM-2", "label": "C"},
        {**row, "id": "MM-3", "label": "A", "medical_task": "Treatment"},
        {**row, "id": "MM-4", "label": "F"},
    ]
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(synthetic.grey_image())
    (folder / "MM").mkdir()
    (folder / "MM" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def shown_table(out: Path) -> str:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table_of(read_results(out)))
    return console.export_text()


def test_a_release_with_a_damaged_row(tmp_path: Path) -> None:
    said = {"MM-1": "B. tumour", "MM-2": "oedema", "MM-3": "A or B"}
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(json.dumps({"id": k, "text": v}) for k, v in said.items()))
    recipe = RECIPES["medxpertqa-mm"]
    asked = EvalSettings(
        data=release(tmp_path / "release"), out=tmp_path / "out", predictions=answers
    )
    with pytest.raises(DataError, match=r"E1122: medxpertqa-mm: questions 3, the recipe has 2000"):
        evaluate([recipe], asked)
    one = evaluate([recipe], asked._replace(any_split=True))["recipes"]["medxpertqa-mm"]
    closed = one["headline"]["closed"]
    assert (closed["metric"], closed["n"], round(3 * closed["mean"])) == ("strict.choice", 3, 1)
    tasks = one["groups"]["task"]
    shown = {name: of["strict.choice"] for name, of in tasks.items()}
    assert {name: (of["mean"], of["n"]) for name, of in shown.items()} == {
        "Diagnosis": (0.5, 2),
        "Treatment": (0.0, 1),
    }
    assert "choices" not in one
    assert not one["own_split"]
    assert "medxpertqa-mm (another split)" in shown_table(tmp_path / "out")
    index = json.loads((tmp_path / "out" / recipe.name / "dataset" / "dataset.json").read_text())
    assert index["skipped"] == {"bad_row": 1}


def test_what_answers_of_a_file_are_not(tmp_path: Path) -> None:
    """No model's: nothing is blind, and the page does not say what made them."""
    answers = tmp_path / "mine.jsonl"
    answers.write_text("\n".join(json.dumps({"id": f"MM-{k}", "text": "B"}) for k in (1, 2, 3)))
    recipe = RECIPES["medxpertqa-mm"]
    asked = EvalSettings(
        data=release(tmp_path / "release"),
        out=tmp_path / "out",
        predictions=answers,
        any_split=True,
    )
    with pytest.raises(SettingsError, match="--blind greys"):
        evaluate([recipe], asked._replace(blind=True))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="E1507: file is a file; name a folder"):
        evaluate([recipe], asked._replace(out=tmp_path / "file"))
    evaluate([recipe], asked)
    page = eval_report(tmp_path / "out")
    assert "answers of a file, mine.jsonl; what made them is not known here" in page
    assert "(another split)" in page
    assert "sampler" not in page
    data = ["--data", str(tmp_path / "release"), "--out", str(tmp_path / "theirs")]
    done = CliRunner().invoke(app, ["export-answers", str(tmp_path / "out"), *data])
    assert done.exit_code == 0, done.output  # a release, as `medv eval` takes it


def test_a_benchmark_is_not_evaluated_under_anothers_name(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"id": "MM-1", "text": "B"}))
    folder = tmp_path / "prepared"
    source = {"kind": "medxpertqa-mm", "source": str(release(tmp_path / "release"))}
    prepare(build(PrepareSettings, {**source, "out": str(folder)}))
    asked = EvalSettings(
        data=folder, out=tmp_path / "out", predictions=answers, any_split=True, partial=True
    )
    with pytest.raises(DataError, match="E1122: the dataset is medxpertqa-mm, and the recipe"):
        evaluate([RECIPES["pathvqa"]], asked)


def test_a_training_split_of_dialogues_gives_no_baselines_and_costs_nothing_else(
    tmp_path: Path,
) -> None:
    """Baselines are made of single questions; what is evaluated is sound."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"id": "q", "text": "yes"}))
    folder, image = tmp_path / "lab", synthetic.grey_image()
    turns = [("Is it grey?", "yes"), ("Is it red?", "no")]
    splits = {
        split: [Row("q", (image,), on_one_image(turns[:count]))]
        for split, count in (("train", 2), ("test", 1))
    }
    write_dataset(folder, "lab", splits, licence="none")
    asked = EvalSettings(folder, tmp_path / "out", predictions=answers, any_split=True)
    one = evaluate([RECIPES["synthetic"]], asked)["recipes"]["synthetic"]
    assert one["headline"]["closed"]["mean"] == 1.0
    assert "majority" not in one


@pytest.mark.parametrize("words", [["--limit", "0"], ["--limit", "-5"], ["--num-gpus", "-1"]])
def test_numbers_that_mean_nothing_are_refused(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["eval", "--suite", "synthetic", "--out", "x", *words])
    assert (done.exit_code, "greater than or equal" in done.output) == (2, True)
