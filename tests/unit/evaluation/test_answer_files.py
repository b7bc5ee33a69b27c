"""Answers as others' scripts read them: the files, read as those scripts do, give our numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation import results
from medv_ray.evaluation.answer_files import export
from medv_ray.evaluation.metrics import Judged, values
from medv_ray.evaluation.predictions import read_predictions
from medv_ray.evaluation.recipes import RECIPES, Question

ROWS = [  # id, question, reference, kind, answer
    ("12", "Is the heart normal?", "No", "closed", "normal"),
    ("7", "Where is it?", "left lung", "open", "the left upper lung"),
    ("3", "Which plane?", "Axial", "closed", "axial"),
    ("40", "What is seen?", "1,000 cells\u2028of the liver", "open", ""),
]


def evaluation(folder: Path, name: str = "vqa-rad", rows: Any = ROWS) -> Path:
    """A folder as `medv eval` leaves it."""
    questions = [
        Question(key, (), asked, wanted, kind, {"question_type": "POS"} if key == "7" else {})
        for key, asked, wanted, kind, _ in rows
    ]
    answers = {row[0]: row[4] for row in rows}
    lines = []
    for one in questions:
        more = {"reference": one.answer, "kind": one.kind, "groups": one.groups}
        row = {"question_id": one.id, "prompt": one.question, "text": answers[one.id]}
        lines.append(json.dumps({**row, "metadata": more}))
    (folder / name).mkdir(parents=True)
    (folder / name / "answers.jsonl").write_text("\n".join([*lines, ""]))
    recipe = RECIPES["vqa-rad"]
    figures = results.figures(recipe, questions, answers)
    known = {"recipe": recipe.model_dump(mode="json"), "recipe_sha256": "d", "run": {}}
    known = {"blind": False, "recipes": {name: {**known, **figures, "whole": True}}}
    (folder / "results.json").write_text(json.dumps(known))
    return folder


def as_llava_med_reads(folder: Path) -> list[Judged]:
    """`run_eval.py`: same ids in the same order, then pairs by position."""
    truth = json.loads((folder / "test.json").read_text())
    lines = (folder / "test-answer-file.jsonl").read_text().splitlines(keepends=True)
    said = [json.loads(line) for line in lines]
    assert [one["id"] for one in truth] == [one["question_id"] for one in said]
    kinds = {"OPEN": "open", "CLOSED": "closed"}
    return [
        Judged(
            str(one["id"]),
            row["text"],
            one["conversations"][1]["value"],
            kinds[one["answer_type"]],  # type: ignore[arg-type]
        )
        for one, row in zip(truth, said, strict=True)
    ]


def test_llava_med_counts_what_we_count(tmp_path: Path) -> None:
    found = export(evaluation(tmp_path / "run"), "llava-med", tmp_path / "out")
    assert found["vqa-rad"] == {
        "files": ["data_RAD/test.json", "data_RAD/test-answer-file.jsonl"],
        "rows": 4, "open": 2, "closed": 2, "empty_answers": 1, "whole": True,
    }  # fmt: skip
    ours = [Judged(row[0], row[4], row[2], row[3]) for row in ROWS]
    theirs = as_llava_med_reads(tmp_path / "out" / "data_RAD")
    assert theirs == ours
    assert values(theirs)["llava_med.closed"] == {"12": 1.0, "3": 1.0}, '"no" in "normal"'
    assert values(theirs)["llava_med.closed_gated"] == {"12": 1.0, "3": 0.0}
    assert values(theirs)["llava_med.recall"] == {"7": 1.0, "40": 0.0}
    first, second, *_ = json.loads((tmp_path / "out/data_RAD/test.json").read_text())
    assert (first["id"], first["answer_type"]) == (12, "CLOSED")
    assert first["conversations"] == first["conversatons"], "one script knows the misspelt key only"
    assert first["conversations"][0] == {"from": "human", "value": "Is the heart normal?\n<image>"}
    assert second["question_type"] == "POS"
    assert "question_type" not in first


def test_ids_that_are_no_numbers_stay(tmp_path: Path) -> None:
    rows = [("07", *ROWS[0][1:]), *ROWS[1:]]
    export(evaluation(tmp_path / "run", "mine", rows), "llava-med", tmp_path / "out")
    found = json.loads((tmp_path / "out/mine/test.json").read_text())
    assert [one["id"] for one in found] == ["07", "7", "3", "40"]
    assert as_llava_med_reads(tmp_path / "out" / "mine")[0].id == "07"


def test_candidates(tmp_path: Path) -> None:
    known = {"vqa-rad": ["left lung", "right lung"]}
    export(evaluation(tmp_path / "run"), "llava-med", tmp_path / "out", known)
    found = json.loads((tmp_path / "out/data_RAD/train_open_answers.json").read_text())
    assert found == {"0": known["vqa-rad"]}
    got = values(as_llava_med_reads(tmp_path / "out/data_RAD"), candidates=found["0"])
    assert got["llava_med.open_candidates"] == {"7": 1.0, "40": 0.0}


def test_medevalkit(tmp_path: Path) -> None:
    export(evaluation(tmp_path / "run"), "medevalkit", tmp_path / "out")
    found = json.loads((tmp_path / "out/VQA_RAD/results.json").read_text())
    assert [(r["id"], r["question"], r["answer"], r["response"]) for r in found] == [
        (key, asked, wanted, said) for key, asked, wanted, _, said in ROWS
    ]
    again = read_predictions(tmp_path / "out/VQA_RAD/results.json")  # not the references
    assert again == {key: said for key, *_, said in ROWS}
    export(evaluation(tmp_path / "other", "slake"), "medevalkit", tmp_path / "out")
    found = json.loads((tmp_path / "out/SLAKE/results.json").read_text())
    assert [(r["lang"], r["answer_type"]) for r in found] == [
        ("en", kind.upper()) for *_, kind, _ in ROWS
    ]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "\n".join(text.splitlines()[1:]), "E1123: vqa-rad: 3 answers, .* counts 4"),
        (lambda text: text.replace('"question_id": "7"', '"question_id": "3"'), "E1123"),
        (
            lambda text: text.replace('"kind": "open"', '"kind": "choice"'),
            "E1121: vqa-rad: 2 questions are neither",
        ),
        (lambda text: text[:-30], "E1105"),
    ],
)
def test_damaged_answers_write_nothing(tmp_path: Path, spoil: Any, said: str) -> None:
    run = evaluation(tmp_path / "run")
    path = run / "vqa-rad" / "answers.jsonl"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=said):
        export(run, "llava-med", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "run")
    line = ["export-answers", str(run), "--format", "medevalkit", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["vqa-rad"]["files"] == ["VQA_RAD/results.json"]
    with pytest.raises(SettingsError, match="--format 'csv': one of llava-med, medevalkit"):
        export(run, "csv", tmp_path / "out")
