"""Closed questions by choices; and which choice a free answer names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medv_ray.evaluation import choices, recipes, results
from medv_ray.evaluation.choices import Scored
from medv_ray.evaluation.comparison import ANSWERS, RESULTS, compare, read_scored
from medv_ray.evaluation.metrics import Judged, values
from medv_ray.evaluation.named_choice import named
from medv_ray.evaluation.recipes import LETTERED, RECIPES, Choices, Question, Recipe
from medv_ray.evaluation.statistics import wilson
from medv_ray.on_ray.evaluate import write_answers

OPTIONS = ("pneumonia", "viral pneumonia", "the left lung", "A mass of 2 cm")


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("B", {1}), (" b. ", {1}), ("(C)", {2}), ("**D**", {3}), ("B: viral pneumonia", {1}),
        ("The answer is B.", {1}), ("Option A", {0}), ("Answer: A mass", {0}),
        ("viral pneumonia", {1}), ("It is Pneumonia.", {0}), ("LEFT LUNG", {2}),
        ("a mass of 2 cm", {3}), ("A mass of 2 cm", {3}), ("A mass of 12 cm", set()),
        ("B, not C", {1, 2}), ("A. viral pneumonia", {0, 1}), ("pneumonia, left lung", {0, 2}),
        ("The answer is A mass of 2 cm", {3}), ("Option A: a mass of 2 cm", {0, 3}),
        ("A lesion", set()), ("I see B", {1}), ("", set()), ("E", set()), ("none", set()),
        ("pneumonia or viral pneumonia", {0, 1}), ("vitamin B12", set()), ("A's", set()),
    ],
)  # fmt: skip
def test_which_choices_an_answer_names(answer: str, want: set[int]) -> None:
    assert named(answer, OPTIONS) == want


@pytest.mark.parametrize(
    ("answer", "options", "want"),
    [
        ("Vitamin A", ("Vitamin D", "Vitamin A", "Vitamin C", "Vitamin K"), {1}),
        ("It is vitamin A.", ("Vitamin D", "Vitamin A", "Vitamin C"), {1}),
        ("C. Hepatitis A", ("Hepatitis B", "Hepatitis C", "Hepatitis A"), {2}),
        ("Hepatitis A is likely", ("Hepatitis B", "Hepatitis C", "Hepatitis A"), {2}),
        ("5", ("3", "5", "7", "9"), {1}),
        ("There are 5 of them", ("3", "5", "7", "9"), {1}),
        ("1.5", ("5", "1.5", "1"), {1}),
        ("about 1.5 cm", ("5 cm", "1.5 cm", "1 cm"), {1}),
        ("> 5 mm", ("< 5 mm", "> 5 mm"), {1}),
        ("B. > 5 mm", ("< 5 mm", "> 5 mm"), {1}),
        ("> 5 mm, I think", ("5 mm", "> 5 mm"), {1}),
        ("left lobe of the liver", ("the left lobe of liver", "the liver"), {0}),
    ],
)
def test_choices_that_nearly_are_letters_numbers_and_each_other(
    answer: str, options: tuple[str, ...], want: set[int]
) -> None:
    assert named(answer, options) == want


def test_an_article_is_followed_by_no_and() -> None:
    """Who names two options is not right by the second of them."""
    assert named("A and B", ("oedema", "tumour")) == {0, 1}
    assert named("Either A or B.", ("oedema", "tumour")) == {0, 1}
    assert named("A is correct", ("oedema", "tumour")) == {0}
    assert named("A tumour is seen", ("oedema", "tumour")) == {1}
    assert named("I see B", tuple("abcdefghi")) == {1}


def test_choices_that_are_letters_are_named_by_their_own() -> None:
    assert named("C", ("C", "D", "A")) == {2}
    assert named("The answer is A", ("C", "D", "A")) == {0}
    assert named("A of C", ("C", "D", "A")) == {2}, "an article, and a letter"


def test_a_letter_inside_the_words_of_a_choice_is_none_of_its_own() -> None:
    assert named("hepatitis B", ("hepatitis A", "hepatitis C", "hepatitis B")) == {2}
    assert named("hepatitis B", ("cirrhosis", "steatosis")) == {1}


MULTIPLE = Question("m", (), "Which?", "right", "closed", {"modality": "CT"}, ("left", "right"))
YES = Question("y", (), "Is it?", "Yes.", "closed", {"modality": "CT"})
NO = Question("n", (), "Is it?", "no", "closed", {"modality": "MRI"})
OTHER = Question("x", (), "CT or MRI?", "ct", "closed", {"modality": "CT"})
OPEN = Question("o", (), "Where?", "lung", "open", {"modality": "CT"})
PLAIN = Recipe(name="mine", dataset="table", variant="v")
MCQ = Recipe(
    name="mcq",
    dataset="table",
    variant="v",
    prompt=LETTERED,
    choices=Choices(options="letters"),
    closed_metric="strict.choice",
)


def test_what_is_scored() -> None:
    assert [choices.asked(PLAIN, one) for one in (MULTIPLE, YES, NO, OTHER, OPEN)] == [
        (("left", "right"), "right"),
        (("yes", "no"), "yes"),
        (("yes", "no"), "no"),
        ((), ""),
        ((), ""),
    ]
    assert choices.asked(MCQ, MULTIPLE) == (("A", "B"), "B")
    free = PLAIN.model_copy(update={"choices": None})
    assert choices.asked(free, YES) == ((), "")


def test_figures_by_choices() -> None:
    """One right, one wrong, one that was not scored, one without choices, and an open one."""
    scored = {
        "y": Scored(("yes", "no"), (0.75, 0.25)),
        "n": Scored(("yes", "no"), (0.5, 0.5)),
    }
    found = choices.figures(PLAIN, [MULTIPLE, YES, NO, OTHER, OPEN], scored)
    assert (found["n"], found["without_choices"]) == (3, 1)
    assert found["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (0, 1)
    assert found["probability"] == pytest.approx((0 + 0.75 + 0.5) / 3)
    shown = found["groups"]["modality"]["CT"]["choices"]
    assert (shown["mean"], shown["n"]) == (0.5, 2)
    assert choices.figures(PLAIN, [OTHER], {})["accuracy"] is None


def test_what_is_scored_is_in_the_digest() -> None:
    changes = (
        {},
        {"choices": None},
        {"choices": Choices(yes_no=("Yes", "No"))},
        {"choices": Choices(options="letters")},
    )
    found = {recipes.digest(PLAIN.model_copy(update=one), "a") for one in changes}
    assert len(found) == len(changes)


def test_a_multiple_choice_question_as_it_is_asked() -> None:
    asked = MCQ.ask("Which of {options}?", ("left", "{question}"))
    last = "Answer with the option's letter from the given choices directly."
    assert asked == f"Which of {{options}}?\nA. left\nB. {{question}}\n{last}"
    assert MCQ.ask("How many?") == "How many?", "an open question among them"
    assert PLAIN.ask("Which?", ("left", "right")) == "Which?"


def test_options_are_graded_by_a_metric_of_their_own() -> None:
    rows = [one.judged(said) for one, said in ((MULTIPLE, "B. right"), (YES, "yes"), (OPEN, "B"))]
    assert values(rows, ["strict.choice"]) == {"strict.choice": {"m": 1.0}}
    assert values([MULTIPLE.judged("A")], ["strict.choice"]) == {"strict.choice": {"m": 0.0}}
    assert rows[0] == Judged("m", "B. right", "right", "closed", ("left", "right"))
    found = results.figures(MCQ, [MULTIPLE], {"m": "right"})
    low, _ = wilson(1, 1)
    assert found["headline"]["closed"] == {
        "mean": 1.0, "low": low, "high": 1.0, "n": 1, "metric": "strict.choice",
    }  # fmt: skip
    assert results.majority([MULTIPLE, MULTIPLE]) == {"closed": "right"}
    assert results.majority([MULTIPLE, YES, MULTIPLE], lettered=True) == {"closed": "B"}


def test_more_options_than_letters() -> None:
    many = MULTIPLE._replace(choices=tuple(map(str, range(27))), answer="26")
    assert (many.letter, MULTIPLE.letter, YES.letter) == ("", "B", "")
    assert choices.asked(MCQ, many) == ((), "")
    assert choices.asked(PLAIN, many) == (many.choices, "26")


def test_two_runs_by_choices(tmp_path: Path) -> None:
    """Row by row; and not at all where one of them has scored none."""
    sure = {"y": Scored(("yes", "no"), (0.9, 0.1)), "n": Scored(("yes", "no"), (0.2, 0.8))}
    wrong = {**sure, "n": Scored(("yes", "no"), (0.6, 0.4))}
    one = {"recipe": PLAIN.model_dump(mode="json"), "recipe_sha256": "d", "whole": True, "run": {}}
    one |= results.figures(PLAIN, [YES, NO], {"y": "yes", "n": "no"})
    for name, scored in (("a", sure), ("b", wrong), ("c", {})):
        folder = tmp_path / name
        write_answers(folder / "mine" / ANSWERS, [YES, NO], {"y": "yes", "n": "no"}, scored)
        whole = {"blind": False, "recipes": {"mine": one}}
        (folder / RESULTS).write_text(json.dumps(whole))
    assert read_scored(tmp_path / "b" / "mine") == wrong
    found = compare(tmp_path / "a", tmp_path / "b")["mine"]["choices"]
    assert (found["only_first"], found["only_second"]) == (1, 0)
    assert found["difference"]["mean"] == 0.5
    assert "choices" not in compare(tmp_path / "a", tmp_path / "c")["mine"]


def test_the_multiple_choice_recipes() -> None:
    for one in recipes.recipes_of("multiple-choice"):
        assert one.closed_metric == "strict.choice"
        assert one.choices == Choices(options="letters")
        assert "{options}" in one.prompt
    assert {name: one.choices for name, one in RECIPES.items() if name == "vqa-rad"} == {
        "vqa-rad": Choices()
    }
    changed = (
        recipes.texts_digest([MULTIPLE]),
        recipes.texts_digest([MULTIPLE._replace(choices=("left", "right", "both"))]),
    )
    assert changed[0] != changed[1]
