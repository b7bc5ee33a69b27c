"""Closed questions by choices: which texts are scored, which of them is right, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from medv_ray.evaluation.recipes import Question, Recipe
from medv_ray.evaluation.results import by_group, shown

METRIC = "choices"


class Scored(NamedTuple):
    """What the model gives each of the texts that were scored for a question."""

    texts: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def likeliest(self) -> str:
        """Of equal ones the first."""
        return self.texts[self.probabilities.index(max(self.probabilities))]


def asked(recipe: Recipe, question: Question) -> tuple[tuple[str, ...], str]:
    """The texts that are scored, and the right one; none for an open question, for a closed one of
    which no allowed answers are known, and for a recipe without choices."""
    if recipe.choices is None or question.kind != "closed":
        return (), ""
    if question.choices:
        if recipe.choices.options == "texts":
            return question.choices, question.answer
        letters = LETTERS[: len(question.choices)] if question.letter else ""
        return tuple(letters), question.letter
    plain = question.answer.strip().rstrip(".").casefold()
    right = next((one for one in recipe.choices.yes_no if one.casefold() == plain), "")
    return (recipe.choices.yes_no, right) if right else ((), "")


def rights(
    recipe: Recipe, questions: Sequence[Question], scored: Mapping[str, Scored]
) -> dict[str, float]:
    """1 by id where the likeliest choice is the right one, else 0, of questions with choices; 0
    too for one that was not scored, as its row was quarantined."""
    found = {}
    for one in questions:
        texts, wanted = asked(recipe, one)
        if texts:
            of = scored.get(one.id)
            found[one.id] = float(of is not None and of.likeliest == wanted)
    return found


def figures(
    recipe: Recipe, questions: Sequence[Question], scored: Mapping[str, Scored]
) -> dict[str, Any]:
    """Accuracy with its interval, and the mean probability of the right choice, from 0 to 1."""
    right = rights(recipe, questions, scored)
    given = []
    for one in questions:
        if one.id in right:
            of, wanted = scored.get(one.id), asked(recipe, one)[1]
            given.append(of.probabilities[of.texts.index(wanted)] if of else 0.0)
    return {
        "accuracy": shown(right) if right else None,
        "n": len(right),
        "without_choices": sum(one.kind == "closed" for one in questions) - len(right),
        "probability": fmean(given) if given else None,
        "groups": by_group(questions, {METRIC: right}),
    }
