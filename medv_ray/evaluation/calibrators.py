"""Maps from confidence to the share of right answers, fitted on a validation split.

Shapes: n answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medv_ray.errors import DataError
from medv_ray.evaluation.statistics import Values
from medv_ray.settings import Settings

Method = Literal["temperature", "logistic", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)
FOLDS = 5
EDGE = 1e-6
"""Confidences nearer to 0 and 1 are taken for this: float32 knows no finer ones."""
STEPS = 100
MOST_SLOPE = 50.0

Floats = NDArray[np.float64]
Folds = NDArray[np.int64]


class Calibrator(Settings):
    """A fitted map. Use as a function."""

    method: Method
    slope: float = 1.0
    """Of the log-odds of confidence: 1 / temperature."""
    offset: float = 0.0
    """Added to them."""
    confidence: tuple[float, ...] = ()
    """Of isotonic regression: points, ascending, between which the map is linear."""
    share: tuple[float, ...] = ()

    def __call__(self, confidence: Values) -> Floats:
        """float64[n] of confidences in, shares of right answers out."""
        if self.method == "isotonic":
            found: Floats = np.interp(confidence, self.confidence, self.share)
            return found
        return sigmoid(self.slope * log_odds(confidence) + self.offset)


def log_odds(confidence: Values) -> Floats:
    sure = np.clip(np.asarray(confidence, np.float64), EDGE, 1 - EDGE)
    found: Floats = np.log(sure) - np.log1p(-sure)
    return found


def sigmoid(x: Floats) -> Floats:
    found: Floats = np.exp(-np.logaddexp(0.0, -x))
    return found


def fit(method: Method, confidence: Values, right: Values) -> Calibrator:
    """`temperature`: the log-odds times one number; `logistic`: and a second one added;
    `isotonic`: the rising steps that lie nearest.

    Shares of 0 and 1 do not come out: one right and one wrong answer are added to those that were
    seen. Sources: Guo et al. 2017; Platt 1999; Zadrozny and Elkan 2002.
    """
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if method == "isotonic":
        return _isotonic(sure, hit)
    target = np.where(hit > 0.5, 1 - 1 / (hit.sum() + 2), 1 / ((1 - hit).sum() + 2))
    x = log_odds(sure)
    if method == "temperature":
        return Calibrator(method=method, slope=_slope(x, target))
    slope, offset = _line(x, target)
    if slope < 0:  # the order of answers is to stay
        slope, offset = 0.0, float(log_odds([target.mean()])[0])
    return Calibrator(method=method, slope=slope, offset=offset)


def _slope(x: Floats, target: Floats) -> float:
    """Of the smallest loss from 0 to MOST_SLOPE; its derivative rises."""
    low, high = 0.0, MOST_SLOPE
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if x @ (sigmoid(middle * x) - target) > 0 else (middle, high)
    return (low + high) / 2


def _line(x: Floats, target: Floats) -> tuple[float, float]:
    """Slope and offset of the smallest loss, by Newton's method; a step that overshoots is
    halved."""
    design = np.stack([x, np.ones_like(x)])  # [2, n]
    best = np.array([1.0, 0.0])

    def loss(line: Floats) -> float:
        z = line @ design
        return float((np.logaddexp(0, z) - target * z).sum())

    for _ in range(STEPS):
        p = sigmoid(best @ design)
        curvature = (design * (p * (1 - p))) @ design.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, design @ (p - target))
        while loss(best - step) > loss(best) and np.abs(step).max() > 1e-9:
            step = step / 2
        best = best - step
        if np.abs(step).max() < 1e-9:
            break
    return float(best[0]), float(best[1])


def _isotonic(sure: Floats, hit: Floats) -> Calibrator:
    """Pool adjacent violators; blocks of equal shares keep their first and last confidence."""
    levels, which = np.unique(sure, return_inverse=True)
    counts, hits = np.bincount(which), np.bincount(which, weights=hit)
    blocks: list[tuple[float, float, float, float]] = []  # first, last, rows, right ones
    for level, n, k in zip(levels.tolist(), counts.tolist(), hits.tolist(), strict=True):
        first = level
        while blocks and blocks[-1][3] / blocks[-1][2] >= k / n:
            first, _, more, right = blocks.pop()
            n, k = n + more, k + right
        blocks.append((first, level, n, k))
    points: dict[float, float] = {}
    edge = 1 / (len(sure) + 2)
    for first, last, n, k in blocks:
        points[first] = points[last] = min(max(k / n, edge), 1 - edge)
    return Calibrator(method="isotonic", confidence=tuple(points), share=tuple(points.values()))


def folds(groups: Sequence[str]) -> Folds:
    """int64[n]: which of FOLDS each row is in. Rows of one group (of one picture) share theirs, and
    it hangs on the group's name alone."""
    return np.array([int(hashlib.sha256(name.encode()).hexdigest(), 16) % FOLDS for name in groups])


def cross_fitted(method: Method, confidence: Values, right: Values, fold: Folds) -> Floats:
    """float64[n]: each row's calibrated confidence by a map that has not seen its fold.

    Raises DataError E1121 where all rows lie in one fold.
    """
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    found = np.zeros(len(sure))
    for mine in (fold == one for one in np.unique(fold)):
        if mine.all():
            raise DataError("E1121", f"{len(sure)} answers about too few pictures to be divided.")
        found[mine] = fit(method, sure[~mine], hit[~mine])(sure[mine])
    return found


def log_loss(share: Values, right: Values) -> float:
    """Mean negative log-likelihood."""
    p = np.clip(np.asarray(share, np.float64), EDGE, 1 - EDGE)
    hit = np.asarray(right, np.float64)
    return -float((hit * np.log(p) + (1 - hit) * np.log1p(-p)).mean())


def best_method(confidence: Values, right: Values, fold: Folds) -> Method:
    """The method of the smallest `log_loss` over rows that it was not fitted on; of equal ones, to
    a thousandth, the plainest."""
    losses = {m: log_loss(cross_fitted(m, confidence, right, fold), right) for m in METHODS}
    return min(METHODS, key=lambda method: round(losses[method], 3))
