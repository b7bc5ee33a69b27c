"""Two evaluations of one recipe, question by question."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medv_ray.errors import DataError
from medv_ray.evaluation.choices import Scored, rights
from medv_ray.evaluation.recipes import Question, Recipe
from medv_ray.evaluation.results import compared
from medv_ray.evaluation.statistics import paired

RESULTS, ANSWERS = "results.json", "answers.jsonl"
PARTS = {"recipe_sha256", "whole", "run", "metrics", "headline", "groups", "n", "answer_words"}
"""What results.json has of each benchmark, beside the recipe."""


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of an evaluation. Raises DataError E1105 for what is none: `medv tune` writes
    one of its own."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULTS).read_bytes())
        found["blind"]
        for one in found["recipes"].values():
            Recipe(**one["recipe"])
            if lacking := PARTS - one.keys():
                raise KeyError(lacking)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{folder.name} has no {RESULTS} of `medv eval` ({type(error).__name__})."
        raise DataError("E1105", said) from None
    return found


def compare(first: Path, second: Path, shared_only: bool = False) -> dict[str, Any]:
    """By recipe, the first minus the second: intervals, and McNemar's p; of open and closed
    questions, and of closed ones by choices where both have scored them. `shared_only`: of the
    questions that both have, as where one was asked a part.

    Raises DataError E1105, E1123 for damaged folders, and E1124 where a recipe's digests differ.
    """
    sides = [read_results(folder)["recipes"] for folder in (first, second)]
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        raise DataError("E1124", "they have no benchmark in common.")
    found = {}
    for name in shared:
        one, other = (side[name] for side in sides)
        if one["recipe_sha256"] != other["recipe_sha256"]:
            a, b = one["recipe"], other["recipe"]
            fields = [field for field in a if a[field] != b.get(field)] or ["the rows of the split"]
            raise DataError("E1124", f"{name}: {', '.join(fields)} differ.")
        questions, answers = read_answers(first / name)
        _, others = read_answers(second / name)
        both = answers.keys() & others.keys()
        if not both or not (shared_only or len(both) == len(answers) == len(others)):
            said = f"{len(answers)} questions beside {len(others)}, {len(both)} of them the same"
            raise DataError("E1124", f"{name}: {said}; --shared compares these.")
        questions = [one for one in questions if one.id in both]
        recipe = Recipe(**one["recipe"])
        found[name] = compared(recipe, questions, answers, others)
        scored = [read_scored(folder / name) for folder in (first, second)]
        if all(scored):
            found[name]["choices"] = compared_choices(recipe, questions, *scored)
    return found


def compared_choices(
    recipe: Recipe,
    questions: Sequence[Question],
    first: Mapping[str, Scored],
    second: Mapping[str, Scored],
) -> dict[str, Any]:
    """Closed questions by their likeliest choices, row by row."""
    one, other = (list(rights(recipe, questions, side).values()) for side in (first, second))
    pair = paired(one, other)
    return {**pair._asdict(), "difference": pair.difference._asdict()}


def read_scored(folder: Path) -> dict[str, Scored]:
    """The scored choices of an evaluation, by id; none of one without. Raises DataError E1105."""
    found = {}
    try:
        for line in (folder / ANSWERS).read_text("utf-8").splitlines():
            row = json.loads(line)
            if given := row["metadata"].get("choices"):
                found[str(row["question_id"])] = Scored(tuple(given), tuple(given.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{folder.name}/{ANSWERS} cannot be read ({kind}).") from None
    return found


def read_answers(folder: Path) -> tuple[list[Question], dict[str, str]]:
    """The questions of an evaluation with their references, and the answers by id. Raises DataError
    E1105."""
    questions, answers = [], {}
    try:
        for line in (folder / ANSWERS).read_text("utf-8").splitlines():
            row = json.loads(line)
            more = row["metadata"]
            key = str(row["question_id"])
            known = (more["reference"], more["kind"], more["groups"])
            options = tuple(more.get("options", ()))
            questions.append(Question(key, (), row["prompt"], *known, options))
            answers[key] = row["text"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{folder.name}/{ANSWERS} cannot be read ({kind}).") from None
    return questions, answers
