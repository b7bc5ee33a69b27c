"""The metrics by name: what each says of one answer, and of which questions it is asked.

A name begins with whose rule it is: `llava_med` (as published, quirks included), `lmms` (that of
lmms-eval for SLAKE), `strict` (whole words).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from medv_ray.archive import strict
from medv_ray.evaluation import llava_med, named_choice, slake_rule

Kind = Literal["open", "closed"]
Rule = Callable[..., float]
"""Answer and reference in, and choices where a metric is of these; from 0 to 1 out."""


class Metric(NamedTuple):
    """What is computed of an answer and its reference."""

    rule: Rule
    kinds: tuple[Kind, ...]
    """Of the questions that it is asked of."""
    of_choices: bool = False
    """It is asked of questions with choices only, and its rule gets them too."""


class Judged(NamedTuple):
    """One answer beside its reference."""

    id: str
    answer: str
    reference: str
    kind: Kind
    choices: tuple[str, ...] = ()
    """The options of a multiple-choice question, the reference among them."""


BLEU = {
    "bleu": (0.25, 0.25, 0.25, 0.25),
    "bleu_1": (1.0,),
    "bleu_2": (0.0, 1.0),
    "bleu_3": (0.0, 0.0, 1.0),
}
"""Weights of the orders of n-grams, by LLaVA-Med's names."""
OPEN: tuple[Kind, ...] = ("open",)
CLOSED: tuple[Kind, ...] = ("closed",)


def _of_tokens(number: int) -> Rule:
    def rule(answer: str, reference: str) -> float:
        return llava_med.token_scores(_said(answer), _said(reference))[number]

    return rule


def _said(text: str) -> str:
    return llava_med.prepared(text)


def _exact_match(answer: str, reference: str) -> float:
    return llava_med.exact_match(_said(answer), _said(reference))


def _bleu(weights: Sequence[float], answer: str, reference: str) -> float:
    return llava_med.bleu(_said(answer), _said(reference), weights)


METRICS: Mapping[str, Metric] = {
    "llava_med.exact_match": Metric(_exact_match, OPEN),
    "llava_med.f1": Metric(_of_tokens(0), OPEN),
    "llava_med.precision": Metric(_of_tokens(1), OPEN),
    "llava_med.recall": Metric(_of_tokens(2), OPEN),
    **{f"llava_med.{name}": Metric(partial(_bleu, w), OPEN) for name, w in BLEU.items()},
    "llava_med.open_contained": Metric(llava_med.contained, OPEN),
    "llava_med.closed_gated": Metric(llava_med.closed_gated, CLOSED),
    "llava_med.closed": Metric(llava_med.contained, CLOSED),
    "llava_med.closed_recall": Metric(_of_tokens(2), CLOSED),
    "strict.open": Metric(strict.same, OPEN),
    "strict.closed": Metric(strict.closed, CLOSED),
    "strict.choice": Metric(named_choice.choice, CLOSED, of_choices=True),
    "lmms.slake": Metric(slake_rule.is_right, (*OPEN, *CLOSED)),
}
PUBLISHED = ("llava_med.recall", "llava_med.closed")
"""What the papers' columns "open" and "closed" are."""


def values(
    rows: Iterable[Judged], names: Iterable[str] = METRICS, candidates: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """By metric, the value of each row that it is asked of, by id.

    `candidates`: answers of the training split, in order; with them there is also
    `llava_med.open_candidates`. Raises KeyError for a metric that does not exist.
    """
    asked = {name: METRICS[name] for name in names}
    if candidates is not None:
        rule = llava_med.Candidates(candidates).is_right
        asked["llava_med.open_candidates"] = Metric(rule, OPEN)
    found: dict[str, dict[str, float]] = {name: {} for name in asked}
    for row in rows:
        for name, metric in asked.items():
            if row.kind in metric.kinds and (row.choices or not metric.of_choices):
                choices = (row.choices,) if metric.of_choices else ()
                found[name][row.id] = float(metric.rule(row.answer, row.reference, *choices))
    return found
