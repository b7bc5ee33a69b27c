"""`medv eval` from a release in its published layout to figures, with answers of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medv_ray.data import synthetic
from medv_ray.errors import DataError
from medv_ray.evaluation.recipes import RECIPES
from medv_ray.on_ray.evaluate import EvalSettings, evaluate


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
    index = json.loads((tmp_path / "out" / recipe.name / "dataset" / "dataset.json").read_text())
    assert index["skipped"] == {"bad_row": 1}
