"""Under which confidence to abstain, so that few of the answers that are given are wrong.

The bound is for new rows, drawn as the validation rows were. Of a threshold that was fixed before
looking, the wrong answers above it are binomial, and it holds the target when so few would seldom
be seen at a higher risk (Clopper and Pearson 1934). As many thresholds are looked at, the chance of
error is shared: STARTS coverages get an equal part each, and from each of them the threshold is
lowered as long as the test passes, which costs nothing more (fixed-sequence testing; "Learn then
Test", Angelopoulos et al. 2021).

Rows of one picture are not independent: counts are divided by the design effect of the pictures
(Rao and Scott 1992) before they are tested.

Shapes: n answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medv_ray.evaluation.statistics import LEVEL, Values, at_most, upper_bound

STARTS = 10
"""Coverages from which a search begins: 10, 20, ... 100 %."""
STEP = 0.01
"""Of coverage."""


class Abstention(NamedTuple):
    """A threshold, and what it does on the rows that it was found on."""

    below: float
    """Answers of lower confidence are not given; 0 where all may be."""
    coverage: float
    """Share of answers that are given."""
    risk: float
    """Share of wrong ones among these."""
    bound: float
    """What the risk does not exceed for new rows, at LEVEL."""
    kept: int


def abstain_below(
    confidence: Values, right: Values, target_risk: float, groups: Sequence[str] | None = None
) -> Abstention | None:
    """The threshold of the largest coverage whose risk stays within `target_risk` for new rows, at
    the one-sided LEVEL; None where no threshold's does.

    `groups`: names of the pictures of float[n] confidences. It stands halfway between the last
    confidence that is kept and the next one.
    """
    sure, wrong = np.asarray(confidence, np.float64), 1 - np.asarray(right, np.float64)
    order = np.argsort(-sure, kind="stable")
    sure, wrong = sure[order], wrong[order]
    names = np.arange(len(sure)) if groups is None else np.unique(groups, return_inverse=True)[1]
    names = names[order] if groups is not None else names
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) + 1 if len(sure) else sure[:0]
    chance = (1 - LEVEL) / STARTS
    best = 0
    for start in range(1, STARTS + 1):
        coverage = start / STARTS
        while coverage < 1 + STEP / 2 and len(ends):
            wanted = max(1, math.floor(min(coverage, 1.0) * len(sure) + 1e-9))
            kept = int(ends[np.searchsorted(ends, wanted)])
            if at_most(*effective(wrong[:kept], names[:kept]), target_risk) > chance:
                break
            best = max(best, kept)
            coverage += STEP
    if not best:
        return None
    k, n = effective(wrong[:best], names[:best])
    below = 0.0 if best == len(sure) else float(sure[best - 1] + sure[best]) / 2
    risk = float(wrong[:best].mean())
    return Abstention(below, best / len(sure), risk, upper_bound(k, n, 1 - chance), best)


def effective(wrong: NDArray[np.float64], names: NDArray[np.int64]) -> tuple[int, int]:
    """Wrong rows and rows, as many as would tell as much if they were independent, never more than
    there are.

    `wrong`: float[n] of 0 and 1; `names`: int[n], the pictures by number.
    """
    n, k = len(wrong), float(wrong.sum())
    share = k / n
    sizes, counts = np.bincount(names), np.bincount(names, weights=wrong)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    g = len(sizes)
    if g == n or g < 2 or share in (0.0, 1.0):
        return math.ceil(k), n
    between = float(((counts - share * sizes) ** 2).sum()) * g / (g - 1) / n**2
    design = max(1.0, between / (share * (1 - share) / n))
    return math.ceil(k / design), math.floor(n / design)
