"""Recipes, predictions by id, figures and comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation import predictions, recipes, results
from medv_ray.evaluation.comparison import compare
from medv_ray.evaluation.recipes import RECIPES, Question, Recipe

QUESTIONS = [
    Question("1", (), "Is it?", "yes", "closed", {"question_type": "PRES"}),
    Question("2", (), "Is it not?", "no", "closed", {"question_type": "PRES"}),
    Question("3", (), "Where?", "left lung", "open", {"question_type": "POS"}),
]
RECIPE = Recipe(name="mine", dataset="table", variant="three", rows=3, closed=2)


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_every_byte_of_a_recipe_is_in_its_digest() -> None:
    found = {recipes.digest(RECIPE, "a"), recipes.digest(RECIPE, "b")}
    for change in (
        {"prompt": "{question} "},
        {"sampler": None},
        {"closed_metric": "strict.closed"},
        {"normaliser": "2"},
        {"variant": "another"},
    ):
        found.add(recipes.digest(RECIPE.model_copy(update=change), "a"))
    assert len(found) == 7


def test_another_split_is_refused() -> None:
    recipes.check_split(RECIPE, QUESTIONS)
    whole = RECIPE.model_copy(update={"texts_sha256": recipes.texts_digest(QUESTIONS)})
    recipes.check_split(whole, QUESTIONS)
    with pytest.raises(DataError, match=r"E1122.*mine: questions 2, the recipe has 3"):
        recipes.check_split(RECIPE, QUESTIONS[1:])
    with pytest.raises(DataError, match=r"closed questions 3, the recipe has 2"):
        recipes.check_split(RECIPE, [QUESTIONS[0], *QUESTIONS[:2]])
    other = [*QUESTIONS[:2], QUESTIONS[2]._replace(answer="right lung")]
    with pytest.raises(DataError, match="the digest"):
        recipes.check_split(whole, other)


def test_suites_and_prompts() -> None:
    assert [one.name for one in recipes.recipes_of("medvqa")] == ["vqa-rad", "slake", "pathvqa"]
    assert recipes.recipes_of("slake") == [RECIPES["slake"]]
    with pytest.raises(SettingsError, match=r"--suite 'x': one of medvqa, .*vqa-rad"):
        recipes.recipes_of("x")
    asked = RECIPE.model_copy(update={"prompt": "{question} Answer concisely in English."})
    assert asked.ask("Where {question}?") == "Where {question}? Answer concisely in English."


def test_answers_are_matched_by_id(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        {"question_id": 3, "text": "lung"},
        {"id": "1", "answer": "yes"},
        {"qid": 2, "prediction": " "},
    )
    found = predictions.match(QUESTIONS, predictions.read_predictions(path), partial=False)
    assert found.answers == {"1": "yes", "2": " ", "3": "lung"}
    assert (found.missing, found.extra, found.empty) == (0, 0, 1)
    path.write_text(json.dumps([{"id": 1, "text": "yes"}]))
    assert predictions.read_predictions(path) == {"1": "yes"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], "1 records have the id of an earlier"),
        ([{"text": "SECRET"}], "record 1 needs an id"),
        ([{"id": 1, "text": "a"}, {"id": 2, "text": 3}], "record 2 needs an id"),
        ([{"id": True, "text": "a"}], "record 1 needs an id"),
        ([3], "is no JSON lines"),
    ],
)
def test_files_of_answers_that_do_not_fit(tmp_path: Path, rows: list[object], said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        predictions.read_predictions(written(tmp_path / "a.jsonl", *rows))
    assert "SECRET" not in str(raised.value)


def test_missing_and_extra_answers_are_counted() -> None:
    given = {"1": "yes", "9": "no"}
    with pytest.raises(DataError, match=r"2 of 3 questions have no answer, and 1 answers no"):
        predictions.match(QUESTIONS, given, partial=False)
    found = predictions.match(QUESTIONS, given, partial=True)
    assert found == ({"1": "yes", "2": "", "3": ""}, 2, 1, 0)


def test_figures_of_three_questions() -> None:
    found = results.figures(RECIPE, QUESTIONS, {"1": "yes", "2": "yes", "3": "the lung"})
    assert found["headline"]["closed"]["mean"] == 0.5
    assert found["headline"]["open"]["mean"] == 0.5
    assert found["headline"]["open"]["metric"] == "llava_med.recall"
    cells = found["groups"]["question_type"]
    pres = cells["PRES"]["llava_med.closed"]
    assert (pres["mean"], pres["n"]) == (0.5, 2)
    assert (pres["low"], pres["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-3)
    assert cells["POS"]["llava_med.recall"]["mean"] == 0.5
    assert found["answer_words"] == pytest.approx(4 / 3)
    assert results.majority(QUESTIONS) == {"closed": "no", "open": "left lung"}


def saved(folder: Path, answers: dict[str, str], digest: str = "d", **change: object) -> Path:
    (folder / "mine").mkdir(parents=True)
    one = {"recipe": {**RECIPE.model_dump(mode="json"), **change}, "recipe_sha256": digest}
    (folder / "results.json").write_text(json.dumps({"recipes": {"mine": one}}))
    rows = [
        {
            "question_id": q.id, "prompt": q.question, "text": answers[q.id],
            "metadata": {"reference": q.answer, "kind": q.kind, "groups": q.groups},
        }
        for q in QUESTIONS
    ]  # fmt: skip
    written(folder / "mine" / "answers.jsonl", *rows)
    return folder


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    a = saved(tmp_path / "a", {"1": "yes", "2": "no", "3": "lung"})
    b = saved(tmp_path / "b", {"1": "no", "2": "no", "3": "left lung"})
    found = compare(a, b)["mine"]
    assert (found["closed"]["only_first"], found["closed"]["only_second"]) == (1, 0)
    assert found["open"]["difference"]["mean"] == -0.5
    other = saved(tmp_path / "c", {"1": "", "2": "", "3": ""}, "e", prompt="{question}?")
    with pytest.raises(DataError, match=r"E1124.*mine: prompt differ"):
        compare(a, other)
    (b / "mine" / "answers.jsonl").write_text("{}")
    with pytest.raises(DataError, match="E1105"):
        compare(a, b)
    with pytest.raises(DataError, match="E1105"):
        compare(a, tmp_path)


def test_the_papers_tables_are_whole() -> None:
    tables = recipes.published()
    ours = next(row for row in tables["vqa"]["rows"] if row["model"] == "LLaDA-MedV")
    for name, counted in tables["counts"].items():
        if name != "source":
            right, of = counted
            assert round(100 * right / of, 2) == pytest.approx(ours[name]["closed"], abs=0.011)
            assert of == RECIPES[name].closed
    for row in tables["open_ended"]["rows"]:
        counts = tables["open_ended"]["counts"]
        by_type = sum(row[kind] * counts[kind] for kind in ("conversation", "detailed_description"))
        if row["model"] != "LLaVA":  # a known misprint
            assert by_type / 193 == pytest.approx(row["overall"], abs=0.01), row["model"]


def test_settings_that_are_none_of_a_recipe_are_refused(tmp_path: Path) -> None:
    line = ["eval", "--suite", "synthetic", "--model", "toy", "--out", str(tmp_path / "o")]
    told = CliRunner().invoke(app, [*line, "--set", "prompt.system=none"])
    assert told.exit_code == 2
    assert "--set takes sampler settings here" in told.output
    assert not (tmp_path / "o").exists()
