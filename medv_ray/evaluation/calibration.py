"""How far confidence tells right answers from wrong ones.

Shapes: n answers, B bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medv_ray.evaluation.statistics import Values

BINS = 15


class Bin(NamedTuple):
    """Answers whose confidence lies in one of BINS equal ranges."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean."""
    right: float
    """Share of right answers."""


def bins(confidence: Values, right: Values, count: int = BINS) -> list[Bin]:
    """Ranges of float[n] confidences that hold answers; `right` float[n] of 0 and 1."""
    sure, hit = _pair(confidence, right)
    number = np.minimum((sure * count).astype(int), count - 1)
    found = []
    for i in range(count):
        mine = number == i
        if mine.any():
            means = float(sure[mine].mean()), float(hit[mine].mean())
            found.append(Bin(i / count, (i + 1) / count, int(mine.sum()), *means))
    return found


def calibration_error(confidence: Values, right: Values, count: int = BINS) -> float:
    """ECE: the mean distance of confidence and share of right answers over bins, by their size.

    Raises ValueError for no answers. Source: Guo et al. 2017.
    """
    found = bins(confidence, right, count)
    if not found:
        raise ValueError("no answers")
    total = sum(one.n for one in found)
    return sum(one.n * abs(one.confidence - one.right) for one in found) / total


def risk_coverage(
    confidence: Values, right: Values
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of answers that are kept, the surest first, and shares of wrong ones among these; both
    float64[m], a point for each confidence that occurs. Equal confidences are kept together.
    """
    sure, hit = _pair(confidence, right)
    order = np.argsort(-sure, kind="stable")
    sure, hit = sure[order], hit[order]
    kept = np.arange(1, len(sure) + 1)
    last = np.append(sure[1:] != sure[:-1], True) if len(sure) else np.zeros(0, bool)
    return (kept / max(1, len(sure)))[last], ((1 - hit).cumsum() / kept)[last]


def auroc(scores: Values, right: Values) -> float | None:
    """How often a right answer has a higher score than a wrong one, equal ones counting half; None
    where all are right or all wrong."""
    score, hit = _pair(scores, right)
    good = np.sort(score[hit >= 0.5])
    bad = score[hit < 0.5]
    if not len(good) or not len(bad):
        return None
    below = np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")
    return float(1 - below.mean() / (2 * len(good)))


def _pair(confidence: Values, right: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if sure.shape != hit.shape:
        raise ValueError(f"{len(sure)} confidences beside {len(hit)} answers")
    return sure, hit
