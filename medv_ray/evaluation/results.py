"""Figures of a benchmark: metrics with intervals, tables by group, baselines beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from medv_ray.evaluation.metrics import METRICS, values
from medv_ray.evaluation.recipes import Question, Recipe
from medv_ray.evaluation.statistics import Interval, interval, paired, wilson
from medv_ray.evaluation.text_shape import shape


def figures(
    recipe: Recipe,
    questions: Sequence[Question],
    answers: Mapping[str, str],
    candidates: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All metrics of one set of answers by question id, as results.json has them; shares are from 0
    to 1."""
    judged = [one.judged(answers[one.id]) for one in questions]
    found = values(judged, METRICS, candidates)
    names = (recipe.open_metric, recipe.closed_metric)
    form = shape(answers.values())
    return {
        "metrics": {name: shown(of) for name, of in found.items() if of},
        "headline": {
            kind: shown(found[name]) | {"metric": name}
            for kind, name in zip(("open", "closed"), names, strict=True)
            if found[name]
        },
        "groups": by_group(questions, {name: found[name] for name in names}),
        "answer_words": form["words"],
        "answer_shape": form,
        "n": len(questions),
    }


def headline(
    recipe: Recipe, questions: Sequence[Question], answers: Mapping[str, str]
) -> dict[str, Any]:
    """The recipe's open and closed metric of one set of answers by question id, with intervals."""
    names = {"open": recipe.open_metric, "closed": recipe.closed_metric}
    found = values((one.judged(answers[one.id]) for one in questions), names.values())
    return {
        kind: shown(found[name]) | {"metric": name} for kind, name in names.items() if found[name]
    }


def shown(of: Mapping[str, float]) -> dict[str, Any]:
    """A mean with its interval: the bootstrap's, or Wilson's where all are right or all wrong, of
    which a bootstrap has no width."""
    values = list(of.values())
    return narrow(values) if len(set(values)) == 1 else interval(values)._asdict()


def narrow(of: Sequence[float]) -> dict[str, Any]:
    """A mean with its interval, as a group may have few rows: Wilson's where they are right or
    wrong, else the bootstrap's."""
    if set(of) <= {0.0, 1.0}:
        low, high = wilson(round(sum(of)), len(of))
        return Interval(fmean(of), low, high, len(of))._asdict()
    return interval(of)._asdict()


def by_group(
    questions: Sequence[Question], found: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By name of a group and its value: of each metric the mean, its interval and n."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in questions:
        for group, value in one.groups.items():
            for name, of in found.items():
                if one.id in of:
                    cell = table.setdefault(group, {}).setdefault(value, {})
                    cell.setdefault(name, []).append(of[one.id])
    return {
        group: {
            value: {name: narrow(v) for name, v in cells.items()}
            for value, cells in sorted(rows.items())
        }
        for group, rows in table.items()
    }


def majority(train: Iterable[Question], lettered: bool = False) -> dict[str, str]:
    """The answer that most training questions of a kind have; of equally frequent ones the first in
    the alphabet. `lettered`: of a question with options, the letter."""
    counted: dict[str, Counter[str]] = {}
    for one in train:
        counted.setdefault(one.kind, Counter())[
            (one.letter if lettered else "") or one.answer.strip().lower()
        ] += 1
    return {
        kind: min(counts, key=lambda answer: (-counts[answer], answer))
        for kind, counts in counted.items()
    }


def compared(
    recipe: Recipe,
    questions: Sequence[Question],
    first: Mapping[str, str],
    second: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Two sets of answers to the same questions, row by row, by open and closed."""
    names = {"open": recipe.open_metric, "closed": recipe.closed_metric}
    sides = [
        values((one.judged(answers[one.id]) for one in questions), names.values())
        for answers in (first, second)
    ]
    found = {}
    for kind, name in names.items():
        if sides[0][name]:
            ids = list(sides[0][name])
            one, other = ([side[name][i] for i in ids] for side in sides)
            pair = paired(one, other)
            found[kind] = {**pair._asdict(), "difference": pair.difference._asdict()}
    return found
