"""Bounds of agreement: what they allow, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from medv_ray.evaluation.agreement import lower_bound, most_different, rows_needed


@pytest.mark.parametrize(("bound", "alpha"), [(0.9, 0.05), (0.99, 0.05 / 20), (0.995, 0.01)])
def test_what_is_allowed_is_the_most_that_the_bound_allows(bound: float, alpha: float) -> None:
    for n in (1, 50, 99, 100, 813, 2000, 6719):
        most = most_different(n, bound, alpha)
        assert most < 0 or lower_bound(n - most, n, alpha) >= bound - 1e-9
        assert lower_bound(n - most - 1, n, alpha) < bound


@pytest.mark.parametrize("share", [1.0, 0.998, 0.95])
def test_rows_needed_are_the_fewest(share: float) -> None:
    need = rows_needed(share, 0.9, 0.01)
    assert need is not None
    for n, holds in ((need, True), (need - 1, False)):
        same: float = share * n
        assert (lower_bound(same, n, 0.01) >= 0.9 - 1e-12) is holds  # type: ignore[arg-type]
    assert rows_needed(0.9, 0.9, 0.01) is None


def test_a_pick_among_many_is_wrong_as_seldom_as_it_says() -> None:
    """Sixteen candidates that agree in exactly the share asked for, or a hair less: none may be
    taken."""
    random, alpha, bound = np.random.default_rng(0), 0.05 / 16, 0.95
    for n in (400, 2000):
        different = random.binomial(n, 1 - bound + 1e-9, (4000, 16))
        wrong = (different <= most_different(n, bound, alpha)).any(1).mean()
        assert wrong <= 0.06
