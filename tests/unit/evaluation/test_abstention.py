"""The confidence under which to abstain, and that its bound holds for rows that are new."""

from __future__ import annotations

import numpy as np
import pytest

from medv_ray.evaluation.abstention import abstain_below, bound_of, p_value
from medv_ray.evaluation.statistics import at_most


def test_binomial_by_hand() -> None:
    assert at_most(0, 10, 0.1) == pytest.approx(0.9**10)
    assert at_most(1, 3, 0.5) == pytest.approx(0.5)
    assert at_most(3, 3, 0.5) == 1.0
    assert at_most(400, 5000, 0.1) == pytest.approx(6.637e-07, rel=1e-3)


def test_one_row_a_picture_is_clopper_and_pearsons() -> None:
    ones, none = np.ones(29, np.int64), np.zeros(29)
    assert bound_of(none, ones, 0.05, 1) == pytest.approx(1 - 0.05 ** (1 / 29))
    assert bound_of(np.ones(5), ones[:5], 0.05, 1) == pytest.approx(1.0)
    two = np.array([1.0, 1.0] + [0.0] * 18)
    assert bound_of(two, ones[:20], 0.025, 1) == pytest.approx(0.31698, abs=1e-4)


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


def test_pictures_and_not_rows_are_what_counts() -> None:
    twenty = np.full(30, 20)
    for wrong in (0.0, 1.0):
        p = p_value(np.full(30, wrong), twenty, 0.1, 20)
        assert p > at_most(0, 30, 0.1), "no more is known than of 30 rows, whatever was seen"
    assert p_value(np.zeros(1), np.array([300]), 0.1, 300) > 0.5, "one picture"
    assert p_value(np.full(30, 20.0), twenty, 0.1, 20) == 1.0
    # one row of each picture was kept, but a new one may have twenty
    one = np.ones(30, np.int64)
    assert p_value(np.zeros(30), one, 0.1, 20) > at_most(0, 30, 0.1)
    assert p_value(np.zeros(200), np.full(200, 20), 0.1, 20) < 1e-6
    # stakes by hand: a picture of m rows without an error wins risk / (1 - risk) of it
    assert p_value(np.zeros(2), np.array([2, 2]), 0.5, 2) == pytest.approx(
        1 / np.mean([(1 + 0.99 / 2**i) ** 2 for i in range(5)])
    )
    wrong = np.repeat(np.arange(50) % 10 == 0, 8).astype(float)
    names = [str(name) for name in np.repeat(np.arange(50), 8)]
    sure = np.full(400, 0.9)
    assert abstain_below(sure, 1 - wrong, 0.16) is not None
    assert abstain_below(sure, 1 - wrong, 0.16, names) is None
    found = abstain_below(np.full(8000, 0.9), np.tile(1 - wrong, 20), 0.16, [
        f"{name} {copy}" for copy in range(20) for name in names
    ])  # fmt: skip
    assert found is not None
    assert 0.1 < found.bound <= 0.16


@pytest.mark.parametrize("pictures", [30, 60])
@pytest.mark.parametrize("size", [4, 20])
def test_pictures_that_are_right_or_wrong_as_a_whole_fool_it_as_seldom(
    pictures: int, size: int
) -> None:
    """The risk is 0.2 at every threshold, and confidences within a picture lie close together."""
    random = np.random.default_rng(2)
    fooled = 0
    for _ in range(40):
        wrong = np.repeat(random.random(pictures) < 0.2, size)
        sure = np.repeat(random.random(pictures), size) + 0.001 * random.random(pictures * size)
        names = [str(i // size) for i in range(pictures * size)]
        fooled += abstain_below(sure, 1.0 - wrong, 0.1, names) is not None
    assert fooled <= 6, "5 % are promised; 15 % would be seen once in 200 tests"


def test_a_new_picture_may_have_all_its_rows_above_the_threshold() -> None:
    """Of 80 pictures of 20 rows two each lie above it, all right. Where one in 80 is sure and wrong
    in all 20 the risk is above 0.1, and such a split is seen in a third of all cases."""
    sure = np.tile(np.repeat([0.9, 0.3], [2, 18]), 80) - np.linspace(0, 0.01, 1600)
    right = (sure > 0.5).astype(float)
    names = [str(name) for name in np.repeat(np.arange(80), 20)]
    assert abstain_below(sure, right, 0.1, names) is None
    kept = [i for i in range(1600) if right[i]]
    alone = abstain_below(sure[kept], right[kept], 0.1, [names[i] for i in kept])
    assert alone is not None, "where no picture has more than two rows"
