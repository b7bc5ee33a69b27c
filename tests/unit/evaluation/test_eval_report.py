"""The page about an evaluation: its tables, its size, and that nothing in it runs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from medv_ray.archive.plan import plan
from medv_ray.archive.rows import write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation import results, statistics
from medv_ray.evaluation.calibrators import Calibrator
from medv_ray.evaluation.comparison import read_answers
from medv_ray.evaluation.eval_report import RIGHT_OR_WRONG, eval_report, verdicts, verdicts_of
from medv_ray.evaluation.judged_rows import judged_rows
from medv_ray.evaluation.metrics import METRICS, values
from medv_ray.evaluation.recipes import RECIPES, Question, Recipe
from medv_ray.evaluation.stored_calibration import (
    StoredCalibration,
    decisive,
    write_calibration,
)
from medv_ray.on_ray.evaluate import write_answers
from medv_ray.settings import AnswerSettings

RECIPE = RECIPES["pathvqa"]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 50)


def questions_of(n: int) -> list[Question]:
    """Every second is closed; the picture has eight of them."""
    return [
        Question(
            f"q{i}", (f"{i // 8:064x}",), f"is this {EVIL} {i}?" if i % 2 else f"what is {i}?",
            ("yes" if i % 3 else "no") if i % 2 else "left lung", "closed" if i % 2 else "open",
            {"answer_kind": "closed" if i % 2 else "open", "organ": ("lung", "liver", EVIL)[i % 3]},
        )
        for i in range(n)
    ]  # fmt: skip


def lettered(n: int) -> list[Question]:
    """Four options each; the right ones are answered by their letters."""
    options = ("lung", "liver", "heart", "left lung")
    return [
        Question(f"q{i}", (f"{i:064x}",), f"which, {i}?", options[i % 3], "closed", {}, options)
        for i in range(n)
    ]


def made(
    folder: Path,
    n: int,
    scored: bool = True,
    recipe: Recipe = RECIPE,
    questions: list[Question] | None = None,
    **more: Any,
) -> Path:
    """A folder as `medv eval` writes it: surer answers are more often right."""
    questions = questions or questions_of(n)
    random = np.random.default_rng(0)
    sure = random.random(n).astype(np.float32).tolist()
    right = (random.random(n) < np.array(sure) ** 2).tolist()
    answers = {
        one.id: (one.letter or one.answer) if hit else "left lung" if one.choices else "heart"
        for one, hit in zip(questions, right, strict=True)
    }
    names = (recipe.open_metric, recipe.closed_metric)
    found = values((one.judged(answers[one.id]) for one in questions), names)
    guessed = {one.id: "yes" for one in questions}
    headline = results.headline(recipe, questions, answers)
    one = {
        "recipe": recipe.model_dump(mode="json"), "recipe_sha256": "ab" * 32, "whole": False,
        "run": {"answered": n},
        "metrics": {name: results.shown(of) for name, of in found.items() if of},
        "headline": headline, "groups": results.by_group(questions, found), "n": n,
        "answer_words": 1.5, "majority": results.headline(recipe, questions, guessed),
    }  # fmt: skip
    folder.mkdir(parents=True)
    whole = {"format": 1, "blind": False, "recipes": {recipe.name: one}, **more}
    (folder / "results.json").write_text(json.dumps(whole))
    write_answers(folder / recipe.name / "answers.jsonl", questions, answers, {})
    if scored:
        score(folder / recipe.name, questions, answers, sure)
    return folder


def score(
    folder: Path, questions: list[Question], answers: dict[str, str], sure: list[float]
) -> None:
    table = {
        "id": [one.id for one in questions],
        "question": [one.question for one in questions],
        "image": [["x.png"] for _ in questions],
    }
    pq.write_table(pa.table(table), folder / "questions.parquet")
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "PNG")
    (folder / "x.png").write_bytes(file.getvalue())
    settings = ArchiveSettings(
        archive=str(folder / "questions.parquet"), images=str(folder), chunk_rows=4096
    )
    planned = plan(open_archive(settings), "settings")
    identity = {"settings": AnswerSettings().model_dump(mode="json"), "model": {"sha256": "m"}}
    with Run.open(str(folder / "scored"), planned, identity) as run:
        for chunk in run.todo():
            records = [
                {
                    "id": questions[i].id, "row": i, "question": questions[i].question,
                    "answer": answers[questions[i].id], "reference": questions[i].answer,
                    "answer_type": questions[i].kind, "status": "answered", "warnings": [],
                    "confidence": sure[i], "image_sha256": questions[i].images[0],
                }
                for i in chunk.rows
            ]  # fmt: skip
            run.commit(write_part(run.store, chunk, records))


def cells(page: str, row: str) -> list[str]:
    """Of the first table row that begins with a word."""
    found = re.search(rf"<tr><td>{row}.*?</tr>", page, re.DOTALL)
    assert found is not None
    plain = re.sub(r"<[^>]*>", "|", found[0]).replace("&nbsp;", " ")
    return [cell.strip() for cell in plain.split("|") if cell.strip()]


def stored(below: float = 0.7) -> StoredCalibration:
    return StoredCalibration(
        model_sha256="m", held={}, answer=decisive(AnswerSettings()),
        rows="validation of pathvqa", n=100, right=0.5,
        calibrator=Calibrator(method="temperature", slope=0.5), ece_before=0.1, ece_after=0.05,
        target_risk=0.2, abstain_below=below, coverage=0.3, risk=0.1, risk_bound=0.19,
    )  # fmt: skip


def test_figures_beside_the_papers_and_the_baselines(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", 400)
    blind = made(tmp_path / "b", 400, scored=False, blind=True)
    page = eval_report(folder, blind, stored=stored())
    row = cells(page, r"pathvqa \(a part\)</td><td>closed")
    assert row[2] == "200"
    assert row[-4:-2] == ["95.2", "66.5"], "the paper's and the majority's"
    assert re.fullmatch(r"\d\d\.\d \(\d\d\.\d – \d\d\.\d\)", row[-1]), "blind with its interval"
    assert "–" in row[-2], "no question-only figure is in these results"
    group = cells(page, "lung")
    assert (group[1], group[4]) == ("67", "67")
    assert re.fullmatch(r"\d+\.\d – \d+\.\d", group[3])
    assert "By answer kind" not in page, "the headline has it"
    assert "Calibrated: temperature, fitted on validation of pathvqa." in page
    assert "Kept by the model’s own threshold" in page
    assert "abababababababab" in page
    other = eval_report(folder)
    assert "in 5 folds" in other
    assert "Kept by the model" not in other
    assert EVIL not in page + other
    assert "default-src 'none'" in page


def test_calibration_is_better_after_than_before(tmp_path: Path) -> None:
    page = eval_report(made(tmp_path / "a", 1200))
    [before, after] = cells(page, r"Mean distance of confidence")[-2:]
    assert float(after) < 0.06 < float(before)


def known(page: str) -> int:
    found = re.search(r"Of ([\d,]+) answers that are known", page)
    return 0 if found is None else int(found[1].replace(",", ""))


def test_right_and_wrong_are_the_recipes_own(tmp_path: Path) -> None:
    choices = RECIPES["pmc-vqa"]
    folder = made(tmp_path / "a", 300, recipe=choices, questions=lettered(300))
    page = eval_report(folder)
    assert known(page) == 300
    assert "Right is counted as in the results: closed by strict.choice." in page
    wrong = page.split("Surest wrong answers")[1].split("<h2>")[0]
    assert re.findall(r"<dt>Answer</dt><dd>(.*?)</dd>", wrong) == ["left lung"] * 12
    share = json.loads((folder / "results.json").read_text())["recipes"]["pmc-vqa"]["headline"]
    found = verdicts(choices, *read_answers(folder / "pmc-vqa"))
    assert np.mean([one.right for one in found.values()]) == share["closed"]["mean"]
    assert 0.2 < share["closed"]["mean"] < 0.5

    run = str(folder / "pmc-vqa" / "scored")
    rows = judged_rows(run, verdicts_of(run))
    assert np.mean(rows.right) == share["closed"]["mean"]
    by_words = zip(judged_rows(run).right, rows.right, strict=True)
    assert not any(one and other for one, other in by_words), "a letter is not the option's words"
    assert verdicts_of(str(folder)) == {}

    page = eval_report(made(tmp_path / "b", 300))
    run = str(tmp_path / "b" / "pathvqa" / "scored")
    assert judged_rows(run, verdicts_of(run)).kind.count("open") == 150, "by whole words"
    assert known(page) == 150, "closed ones"
    assert "open questions, as llava_med.recall is neither." in page
    open_ended = RECIPES["open-ended"]
    asked = [one for one in questions_of(200) if one.kind == "open"]
    page = eval_report(made(tmp_path / "c", 100, recipe=open_ended, questions=asked))
    assert known(page) == 0
    assert "Surest wrong" not in page
    assert "open questions, as llava_med.recall is neither." in page
    assert "Answers by confidence" in page


def test_every_metric_of_right_and_wrong_is_one() -> None:
    assert METRICS.keys() > RIGHT_OR_WRONG
    assert {name.removeprefix("llava_med.") for name in METRICS.keys() - RIGHT_OR_WRONG} == {
        "exact_match", "f1", "precision", "recall", "bleu", "bleu_1", "bleu_2", "bleu_3",
        "closed_recall",
    }  # fmt: skip


def test_a_calibration_of_other_answers_is_not_used(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", 400)
    page = eval_report(folder, stored=stored().model_copy(update={"model_sha256": "n"}))
    assert "The calibration that was given is not used here: the model has changed." in page
    assert "Kept by the model" not in page
    assert "in 5 folds" in page


def test_ten_thousand_rows_stay_small(tmp_path: Path) -> None:
    page = eval_report(made(tmp_path / "a", 10_000), data=None)
    assert len(page.encode()) < 200_000
    assert page.count('<article class="card">') == 24


def test_pictures_come_with_the_data(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", 60)
    page = eval_report(folder, data=folder / "pathvqa")
    assert page.count("data:image/jpeg;base64,") == 24
    assert "medv report FOLDER --data" not in page
    assert str(tmp_path) not in page


def test_answers_of_a_file_have_no_confidence(tmp_path: Path) -> None:
    page = eval_report(made(tmp_path / "a", 60, scored=False))
    assert "The answers came from a file" in page
    assert "<svg" not in page


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", 60, scored=False)
    with pytest.raises(SettingsError, match="--blind takes a folder of"):
        eval_report(folder, folder)
    with pytest.raises(DataError, match="E1124: pathvqa: the blind run asked other questions"):
        eval_report(folder, made(tmp_path / "b", 40, scored=False, blind=True))
    with pytest.raises(DataError, match="E1105"):
        eval_report(folder, tmp_path)
    result = CliRunner().invoke(app, ["report", str(folder), "--calibration", str(tmp_path)])
    assert result.exit_code == 2
    assert "no calibration.json" in result.output
    result = CliRunner().invoke(app, ["report", str(folder), "--question", "Which?"])
    assert result.exit_code == 2
    assert "--question: for folders of `medv score`" in " ".join(result.output.split())


def test_the_command_takes_an_evaluation(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", 60, scored=False)
    write_calibration(tmp_path, stored())
    result = CliRunner().invoke(app, ["report", str(folder), "--calibration", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text() == eval_report(folder, stored=stored())
