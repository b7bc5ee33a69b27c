"""Whether settings agree with `exact` in at least a given share of rows, and how many rows that
takes to say.

Bounds are Wilson's, one-sided. Of several candidates one is chosen, so that each is held to a
smaller error (Bonferroni): `alpha` = (1 - level) / candidates.

With z the normal quantile at 1 - alpha, Wilson's lower bound of a share p of n rows reaches b
exactly where p - b >= z sqrt(b (1 - b) / n), as it inverts that test.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from medv_ray.evaluation.statistics import wilson


def lower_bound(same: int, n: int, alpha: float) -> float:
    """One-sided, of `same` of n rows."""
    return wilson(same, n, 1 - 2 * alpha)[0]


def most_different(n: int, bound: float, alpha: float) -> int:
    """Rows of n that may differ while the lower bound reaches `bound`; -1: n are too few."""
    spare = n * (1 - bound) - _z(alpha) * math.sqrt(n * bound * (1 - bound))
    return max(-1, math.floor(spare + 1e-9))


def rows_needed(share: float, bound: float, alpha: float) -> int | None:
    """Rows at which the lower bound of such a share reaches `bound`; None: at no number."""
    if share <= bound:
        return None
    return math.ceil(_z(alpha) ** 2 * bound * (1 - bound) / (share - bound) ** 2 - 1e-9)


def _z(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha)
