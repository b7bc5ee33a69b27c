"""The confidence under which to abstain, and that its bound holds for rows that are new."""

from __future__ import annotations

import numpy as np
import pytest

from medv_ray.evaluation.abstention import abstain_below, effective
from medv_ray.evaluation.statistics import at_most, upper_bound


def test_binomial_by_hand() -> None:
    assert at_most(0, 10, 0.1) == pytest.approx(0.9**10)
    assert at_most(1, 3, 0.5) == pytest.approx(0.5)
    assert at_most(3, 3, 0.5) == 1.0
    assert at_most(400, 5000, 0.1) == pytest.approx(6.637e-07, rel=1e-3)
    assert upper_bound(0, 29) == pytest.approx(1 - 0.05 ** (1 / 29))
    assert upper_bound(5, 5) == 1.0
    assert upper_bound(2, 20, 0.975) == pytest.approx(0.31698, abs=1e-4), "Clopper and Pearson"


def test_what_is_kept_stands_above_the_threshold() -> None:
    sure = np.repeat([0.9, 0.8, 0.2], [100, 100, 100])
    right = np.concatenate([np.ones(200), np.zeros(100)])
    found = abstain_below(sure, right, 0.1)
    assert found is not None
    assert (found.below, found.kept, found.risk) == (0.5, 200, 0.0)
    assert found.coverage == pytest.approx(2 / 3)
    assert 0 < found.bound <= 0.1
    everything = abstain_below(sure, np.ones(300), 0.1)
    assert everything is not None
    assert (everything.below, everything.coverage) == (0.0, 1.0)
    assert abstain_below(sure[:20], right[:20], 0.1) is None, "too few to know"
    assert abstain_below(sure, 1 - right, 0.1) is None
    assert abstain_below([], [], 0.1) is None


def test_the_risk_of_new_rows_is_exceeded_as_seldom_as_promised() -> None:
    """Risk of a row of confidence c is 1 - c: above t it is (1 - t) / 2."""
    random = np.random.default_rng(1)
    too_high, given = 0, 0
    for _ in range(120):
        sure = random.random(900)
        found = abstain_below(sure, random.random(900) < sure, 0.2)
        if found is not None:
            given += 1
            too_high += (1 - found.below) / 2 > 0.2
    assert given > 100
    assert too_high <= 12, "5 % are promised; 10 % would be seen once in 100 tests"


def test_rows_of_one_picture_count_as_fewer() -> None:
    wrong = np.repeat(np.arange(50) % 10 == 0, 8).astype(float)
    names = np.repeat(np.arange(50), 8)
    k, n = effective(wrong, names)
    assert n < 60
    assert k / n == pytest.approx(0.1, abs=0.02)
    assert effective(wrong, np.arange(400)) == (40, 400)
    mixed = np.tile([1.0, 0.0, 0.0, 0.0], 100)
    assert effective(mixed, np.repeat(np.arange(100), 4)) == (100, 400), "never more than there are"
    sure = np.full(400, 0.9)
    assert abstain_below(sure, 1 - wrong, 0.16) is not None
    assert abstain_below(sure, 1 - wrong, 0.16, [str(name) for name in names]) is None
