"""Recipes, predictions by id, figures and comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation import predictions, recipes, results
from medv_ray.evaluation.comparison import compare, read_results
from medv_ray.evaluation.predictions import match, read_predictions
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


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"id": 1, "text": "a"}, {"id": "1", "text": "b"})
    with pytest.raises(DataError, match="1 records have the id of an earlier"):
        predictions.read_predictions(path)


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
    asked = [question for question in QUESTIONS if question.id in answers]
    one |= {**results.figures(RECIPE, asked, answers), "whole": True, "run": {}}
    whole = {"blind": False, "recipes": {"mine": one}}
    (folder / "results.json").write_text(json.dumps(whole))
    rows = [
        {
            "question_id": q.id, "prompt": q.question, "text": answers[q.id],
            "metadata": {"reference": q.answer, "kind": q.kind, "groups": q.groups},
        }
        for q in asked
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


def test_a_part_is_compared_with_the_whole_only_where_asked_to(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a", {"1": "yes", "2": "no", "3": "lung"})
    part = saved(tmp_path / "b", {"1": "no", "2": "no"})
    with pytest.raises(DataError, match="E1124.*3 questions beside 2, 2 of them the same"):
        compare(whole, part)
    for first, second, sign in ((whole, part, 1), (part, whole, -1)):
        found = compare(first, second, shared_only=True)["mine"]
        assert found.keys() == {"closed"}
        assert found["closed"]["difference"]["mean"] == 0.5 * sign


@pytest.mark.parametrize(
    "found",
    [[], {}, {"recipes": None}, {"recipes": {"x": None}}, {"recipes": {"x": {"recipe": {}}}},
     {"blind": False, "recipes": {"x": {"recipe": RECIPE.model_dump(mode="json")}}},
     {"chosen": "exact", "arms": []}],
)  # fmt: skip
def test_results_of_another_program_are_none(found: object, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="E1105.*has no results.json of `medv eval`"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"answer": "no", "response": "yes"}, "yes"),  # MedEvalKit: the reference is there too
        ({"text": "Is it?", "prediction": "yes"}, "yes"),
        ({"text": "yes", "answer": "yes"}, "yes"),
        ({"text": "yes", "answer": None}, "yes"),
        ({"answer": "yes"}, "yes"),
        ({"prediction": "yes", "response": "yes", "text": 7}, "yes"),
        ({"text": ""}, ""),
    ],
)
def test_which_field_is_the_models_answer(fields: dict, text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"id": 1, **fields})
    assert read_predictions(path) == {"1": text}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"id": 1, "text": "Is it?", "answer": "yes"}, "has text and answer, which differ"),
        ({"id": 1, "prediction": "a", "response": "b"}, "prediction and response, which differ"),
        ({"id": 1, "text": 4}, r"text is no text \(int\)"),
        ({"id": 1, "text": None}, "has no text in any of prediction, response, text"),
        ({"id": True, "text": "a"}, "has no text or whole number in any of id"),
        ({"text": "SECRET"}, "has no text or whole number in any of id"),
    ],
)
def test_answers_that_are_none_are_named(record: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"E1123: a.jsonl: record 1.*{said}") as raised:
        read_predictions(written(tmp_path / "a.jsonl", record))
    assert "SECRET" not in str(raised.value)


def test_a_line_that_is_none_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "a"}\n\n{"id": 2, ')
    with pytest.raises(DataError, match="E1105: a.jsonl: line 3 is no JSON of objects"):
        read_predictions(path)
    path.write_text('[{"id": 1, "text": "a"}, 7]')
    with pytest.raises(DataError, match="E1105: a.jsonl: its list is no JSON of objects"):
        read_predictions(path)
    path.write_text('{"id": 1, "text": "a"}\n[]')
    with pytest.raises(DataError, match="line 2"):
        read_predictions(path)
    with pytest.raises(DataError, match="E1105.*cannot be read"):
        read_predictions(tmp_path / "none")


def test_questions_given_for_answers_are_noticed() -> None:
    with pytest.raises(DataError, match="E1123.*a file of questions"):
        match(QUESTIONS, {one.id: one.question for one in QUESTIONS}, partial=False)


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
