"""The open-ended benchmark: prepared, answered from a file, and handed to the judge by id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from medv_ray.errors import DataError
from medv_ray.evaluation.judge_questions import read_pairs
from medv_ray.evaluation.predictions import read_predictions
from medv_ray.evaluation.recipes import RECIPES
from medv_ray.on_ray.evaluate import EvalSettings, evaluate

REAL = Path(__file__).parents[4] / "shared/data/llava_med_qa50/llava_med_eval_qa50_qa.jsonl"
RECIPE = RECIPES["open-ended"]


def release(folder: Path, rows: list[dict[str, object]], lost: int = 0) -> Path:
    """The questions with made pictures, of which the first `lost` are empty files."""
    (folder / "images").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "llava_med_eval_qa50_qa.jsonl").write_text(text)
    for number, name in enumerate(dict.fromkeys(str(row["image"]) for row in rows)):
        path = folder / "images" / name
        if number < lost:
            path.touch()
        else:
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    return folder


def made(count: int) -> list[dict[str, object]]:
    return [
        {
            "question_id": number,
            "image": f"{number // 2}.jpg",
            "text": f"What is {number}?\n<image>",
            "gpt4_answer": f"A lung, {number}.",
            "fig_caption": "A lung.",
            "type": "conversation",
        }
        for number in range(count)
    ]


def settings(tmp_path: Path, source: Path, answered: int) -> EvalSettings:
    answers = [{"question_id": n, "text": f"answer {n}"} for n in reversed(range(answered))]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in answers))
    return EvalSettings(data=source, out=tmp_path / "out", predictions=path)


def test_answers_reach_the_judge_by_id(tmp_path: Path) -> None:
    source = release(tmp_path / "release", made(4))
    asked = settings(tmp_path, source, 4)
    with pytest.raises(DataError, match="E1122: open-ended: questions 4, the recipe has 193"):
        evaluate([RECIPE], asked)
    found = evaluate([RECIPE], asked._replace(any_split=True))["recipes"]["open-ended"]
    assert (
        found["recipe"]["sampler"] | {"gen_length": 256, "block_length": 64, "steps": 256}
        == (found["recipe"]["sampler"])
    )
    assert found["headline"].keys() == {"open"}
    answers = read_predictions(tmp_path / "out" / "open-ended" / "answers.jsonl")
    pairs = read_pairs(source / "llava_med_eval_qa50_qa.jsonl", answers)
    assert [(pair.id, pair.answer) for pair in pairs] == [(f"{n}", f"answer {n}") for n in range(4)]


def test_a_damaged_picture_is_counted(tmp_path: Path) -> None:
    """Of the copy that goes round, 19 pictures are empty and two are cut off."""
    asked = settings(tmp_path, release(tmp_path / "release", made(4), lost=1), 4)
    with pytest.raises(DataError, match="E1123"):  # two answers are of no question
        evaluate([RECIPE], asked._replace(any_split=True))
    lost = asked._replace(any_split=True, partial=True)
    found = evaluate([RECIPE], lost)["recipes"]["open-ended"]
    assert (found["n"], found["run"]["extra"], found["run"]["missing"]) == (2, 2, 0)
    index = json.loads((tmp_path / "out/open-ended/dataset/dataset.json").read_text())
    assert index["skipped"] == {"empty_image": 2}


@pytest.mark.skipif(not REAL.exists(), reason="the released questions are not there")
def test_the_released_questions_are_the_recipes(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    found = evaluate([RECIPE], settings(tmp_path, release(tmp_path / "release", rows), 193))
    one = found["recipes"]["open-ended"]
    assert one["n"] == 193
    kinds = one["groups"]["question_type"]
    assert {name: of["llava_med.recall"]["n"] for name, of in kinds.items()} == {
        "conversation": 143,
        "detailed_description": 50,
    }
