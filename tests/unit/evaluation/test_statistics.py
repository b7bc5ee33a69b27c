"""Intervals and paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medv_ray.evaluation import statistics
from medv_ray.evaluation.statistics import interval, mcnemar, paired, wilson


def test_an_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = interval(random.random(60) < 0.3, seed)
        held += found.low <= 0.3 <= found.high
        assert found.n == 60
    assert 0.9 <= held / 200 <= 0.99


def test_pieces_draw_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(50)
    whole = interval(values)
    monkeypatch.setattr(statistics, "PIECE_BYTES", 1)
    assert interval(values) == whole
    assert interval(values, 5) != whole


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 2**10), (1, 7, 2 * (1 + 8) / 2**8)],
)
def test_mcnemar_is_the_binomial_test(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p)
    assert mcnemar(other, one) == pytest.approx(p)


def test_mcnemar_of_many_rows_stays_finite() -> None:
    assert 0 < mcnemar(3000, 3400) < 1e-6
    assert mcnemar(100_000, 100_001) == pytest.approx(1, abs=0.01)


def test_a_pair_counts_who_alone_is_right() -> None:
    found = paired([1, 1, 0, 1, 0], [1, 0, 1, 0, 0])
    assert (found.only_first, found.only_second) == (2, 1)
    assert found.difference.mean == pytest.approx(0.2)
    assert found.p == 1.0
    with pytest.raises(ValueError, match="2 rows beside 1"):
        paired([1, 0], [1])


def test_wilson_has_a_width_where_all_are_right() -> None:
    low, high = wilson(30, 30)
    assert high == 1.0
    assert low == pytest.approx(0.8865, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isclose(sum(wilson(10, 20)), 1.0)
