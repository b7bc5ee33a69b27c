"""Under which confidence to abstain, so that few of the answers that are given are wrong.

The bound is for new pictures, drawn as the validation split's were. Rows of one picture may hang
together in any way: one that is wrong throughout is one accident and not twenty. So the test bets
on pictures: each one that has fewer wrong rows than the target allows wins, each one that has more
loses, and if the risk were above the target the stake would seldom grow far (Waudby-Smith and
Ramdas 2024; Ville's inequality). No share of dependence is estimated: few pictures cannot tell it.

As many thresholds are looked at, the chance of error is shared: STARTS coverages get an equal part
each, and from each of them the threshold is lowered as long as the test passes, which costs nothing
more (fixed-sequence testing; "Learn then Test", Angelopoulos et al. 2021).

Shapes: n answers, G pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medv_ray.evaluation.statistics import LEVEL, Values, at_most

STARTS = 10
"""Coverages from which a search begins: 10, 20, ... 100 %."""
STEP = 0.01
"""Of coverage."""
STAKES = 0.99 / 2.0 ** np.arange(5)
"""Parts of the largest stake that a picture cannot ruin; the stake is spread over them."""


class Abstention(NamedTuple):
    """A threshold, and what it does on the rows that it was found on."""

    below: float
    """Answers of lower confidence are not given; 0 where all may be."""
    coverage: float
    """Share of answers that are given."""
    risk: float
    """Share of wrong ones among these."""
    bound: float
    """What the risk does not exceed for new pictures, at LEVEL."""
    kept: int


def abstain_below(
    confidence: Values, right: Values, target_risk: float, groups: Sequence[str] | None = None
) -> Abstention | None:
    """The threshold of the largest coverage whose risk stays within `target_risk` for new pictures,
    at the one-sided LEVEL; None where no threshold's does.

    `groups`: names of the pictures of float[n] confidences; None: each row has one of its own. The
    threshold stands halfway between the last confidence that is kept and the next one.
    """
    sure, wrong = np.asarray(confidence, np.float64), 1 - np.asarray(right, np.float64)
    order = np.argsort(-sure, kind="stable")
    sure, wrong = sure[order], wrong[order]
    names = np.arange(len(sure)) if groups is None else np.unique(groups, return_inverse=True)[1]
    names = names[order] if groups is not None else names
    most = int(np.bincount(names).max()) if len(names) else 0
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) + 1 if len(sure) else sure[:0]
    chance = (1 - LEVEL) / STARTS
    best = 0
    for start in range(1, STARTS + 1):
        coverage = start / STARTS
        while coverage < 1 + STEP / 2 and len(ends):
            wanted = max(1, math.floor(min(coverage, 1.0) * len(sure) + 1e-9))
            kept = int(ends[np.searchsorted(ends, wanted)])
            if p_value(*by_picture(wrong[:kept], names[:kept]), target_risk, most) > chance:
                break
            best = max(best, kept)
            coverage += STEP
    if not best:
        return None
    below = 0.0 if best == len(sure) else float(sure[best - 1] + sure[best]) / 2
    risk = float(wrong[:best].mean())
    bound = bound_of(*by_picture(wrong[:best], names[:best]), chance, most)
    return Abstention(below, best / len(sure), risk, bound, best)


def by_picture(
    wrong: NDArray[np.float64], names: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """float64[G] wrong rows and int[G] rows, of float[n] of 0 and 1 and int[n] numbers."""
    counts, sizes = np.bincount(names, weights=wrong), np.bincount(names)
    return counts[sizes > 0].astype(np.float64), sizes[sizes > 0]


def p_value(wrong: NDArray[np.float64], rows: NDArray[Any], risk: float, most: int) -> float:
    """How likely, at most, so few wrong rows are where the risk is `risk` or above.

    It holds for independent pictures of which none may have more than `most` rows. `wrong`:
    float[G]; `rows`: int[G]. Where `most` is 1 the wrong ones are binomial, which tells more
    (Clopper and Pearson 1934).
    """
    if most == 1:
        return at_most(int(wrong.sum()), len(rows), risk)
    won = (risk * rows - wrong) / ((1 - risk) * most)  # not below -1
    logs = np.log1p(STAKES[:, None] * won).sum(1)
    top = float(logs.max())
    return min(1.0, math.exp(min(700.0, -top)) / float(np.exp(logs - top).mean()))


def bound_of(wrong: NDArray[np.float64], rows: NDArray[Any], chance: float, most: int) -> float:
    """The smallest risk at which so few wrong rows, float[G] of int[G], have a p-value of `chance`
    or less."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if p_value(wrong, rows, middle, most) <= chance else (middle, high)
        )
    return high
