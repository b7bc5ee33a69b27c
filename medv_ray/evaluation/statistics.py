"""Intervals and paired comparisons of values per row, in numpy.

Shapes: n rows, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
PIECE_BYTES = 2**25
"""Of indices that are drawn at once."""

Values = Sequence[float] | NDArray[np.float64]


class Interval(NamedTuple):
    """A mean, and where it lies by the bootstrap at LEVEL."""

    mean: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """Two runs over the same rows, the first minus the second."""

    difference: Interval
    only_first: int
    """Rows that the first alone has right (values >= 0.5)."""
    only_second: int
    p: float
    """Of McNemar's exact test, two-sided: 1 where they differ in no row."""


def interval(values: Values, seed: int = SEED) -> Interval:
    """Mean of float[n] and its percentile bootstrap interval. Raises ValueError for no values."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("no values")
    means = _resampled(found, seed)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))


def paired(first: Values, second: Values, seed: int = SEED) -> Paired:
    """Compare float[n] of two runs, row by row. Raises ValueError for other lengths."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} rows beside {len(b)}")
    one = int(((a >= 0.5) & (b < 0.5)).sum())
    other = int(((b >= 0.5) & (a < 0.5)).sum())
    return Paired(interval(a - b, seed), one, other, mcnemar(one, other))


def mcnemar(one: int, other: int) -> float:
    """Two-sided p of the exact binomial test of `one` against `other` discordant rows."""
    n, k = one + other, min(one, other)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def wilson(right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share of n rows, which stays honest at 0 and 1, where a bootstrap has no width.

    Source: Wilson 1927.
    """
    if n == 0:
        return 0.0, 1.0
    z = _normal_quantile((1 + level) / 2)
    share, square = right / n, z * z / n
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def at_most(k: int, n: int, p: float) -> float:
    """Probability that of n independent rows with chance p at most k hit."""
    if k >= n or p <= 0:
        return 1.0
    if k < 0 or p >= 1:
        return 0.0
    i = np.arange(1, k + 1)
    steps = np.log((n - i + 1) / i) + math.log(p) - math.log1p(-p)
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    top = float(logs.max())
    return min(1.0, math.exp(top) * float(np.exp(logs - top).sum()))


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def _resampled(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """float64[R], means of rows drawn with replacement."""
    random, n = np.random.default_rng(seed), len(values)
    at_once = max(1, min(RESAMPLES, PIECE_BYTES // (8 * n)))
    means: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, at_once):
        picked = random.integers(0, n, (min(at_once, RESAMPLES - start), n))
        means.append(values[picked].mean(1))
    return np.concatenate(means)
