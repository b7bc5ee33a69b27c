"""Confidence against what was right."""

from __future__ import annotations

import numpy as np
import pytest

from medv_ray.evaluation.calibration import auroc, bins, calibration_error, risk_coverage


def test_what_is_as_sure_as_it_is_right_has_no_error() -> None:
    random = np.random.default_rng(0)
    sure = random.random(40_000)
    right = random.random(40_000) < sure
    assert calibration_error(sure, right) < 0.01
    assert calibration_error(np.ones(10), [1, 0] * 5) == pytest.approx(0.5)
    assert sum(one.n for one in bins(sure, right)) == 40_000
    assert [one.n for one in bins([0.0, 1.0], [1, 1], 2)] == [1, 1]
    with pytest.raises(ValueError, match="no answers"):
        calibration_error([], [])
    with pytest.raises(ValueError, match="1 confidences beside 2"):
        bins([0.5], [1, 1])


def test_the_surest_are_kept_first() -> None:
    coverage, risk = risk_coverage([0.9, 0.2, 0.8, 0.8], [1, 0, 1, 0])
    assert coverage.tolist() == [0.25, 0.75, 1.0], "two of one confidence are kept together"
    assert risk.tolist() == pytest.approx([0, 1 / 3, 0.5])
    assert [len(side) for side in risk_coverage([], [])] == [0, 0]


def test_how_often_right_ones_have_the_higher_score() -> None:
    assert auroc([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0]) == 1.0
    assert auroc([0.9, 0.8, 0.3, 0.1], [0, 1, 0, 1]) == 0.25
    assert auroc([0.5, 0.5, 0.5], [1, 0, 0]) == 0.5, "equal scores count half"
    assert auroc([0.9, 0.8], [1, 1]) is None
