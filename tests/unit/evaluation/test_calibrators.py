"""Maps from confidence to shares of right answers."""

from __future__ import annotations

import numpy as np
import pytest

from medv_ray.errors import DataError
from medv_ray.evaluation.calibration import calibration_error
from medv_ray.evaluation.calibrators import (
    METHODS,
    best_method,
    cross_fitted,
    fit,
    folds,
    log_loss,
    log_odds,
    sigmoid,
)


def drawn(n: int, slope: float, offset: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and answers that are right by a map of them."""
    random = np.random.default_rng(seed)
    sure = random.beta(4, 1, n)
    return sure, (random.random(n) < sigmoid(slope * log_odds(sure) + offset)).astype(float)


def test_the_map_that_was_drawn_from_is_found() -> None:
    found = fit("temperature", *drawn(20_000, 0.5, 0.0))
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.offset == 0
    found = fit("logistic", *drawn(20_000, 0.7, -1.0))
    assert (found.slope, found.offset) == pytest.approx((0.7, -1.0), abs=0.06)
    assert fit("logistic", [0.1, 0.9] * 50, [1, 0] * 50).slope == pytest.approx(0, abs=1e-6), (
        "the order of answers stays"
    )


def test_rising_steps_by_hand() -> None:
    found = fit("isotonic", [0.1, 0.2, 0.3, 0.4, 0.5, 0.5], [0, 1, 0, 1, 1, 1])
    assert found([0.1, 0.2, 0.25, 0.3, 0.4, 0.9]) == pytest.approx(
        [1 / 8, 1 / 2, 1 / 2, 1 / 2, 7 / 8, 7 / 8]
    )
    assert found([0.0, 0.35]) == pytest.approx([1 / 8, (1 / 2 + 7 / 8) / 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_gives_shares_inside(method: str, right: float) -> None:
    sure = np.linspace(0, 1, 60)
    found = fit(method, sure, np.full(60, right))([0.0, 0.5, 1.0])  # type: ignore[arg-type]
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert (found < 1).all()
    if method != "temperature":
        assert (found < 0.1).all() if right == 0 else (found > 0.9).all()


def test_one_number_does_for_what_one_number_made_and_not_for_more() -> None:
    fold = folds([str(i) for i in range(3000)])
    assert best_method(*drawn(3000, 0.4, 0.0), fold) == "temperature"
    sure, right = drawn(3000, 1.0, -2.5)
    assert best_method(sure, right, fold) != "temperature"
    after = cross_fitted("logistic", sure, right, fold)
    assert calibration_error(after, right) < 0.04 < calibration_error(sure, right)
    assert log_loss(after, right) < log_loss(sure, right)


def test_no_row_is_judged_by_a_map_that_saw_its_picture() -> None:
    names = [f"p{i // 10}" for i in range(400)]
    fold = folds(names)
    assert len({(name, f) for name, f in zip(names, fold.tolist(), strict=True)}) == 40
    assert len(set(fold.tolist())) == 5
    sure, right = drawn(400, 0.7, -1.0)
    for method in METHODS:
        found = cross_fitted(method, sure, right, fold)
        for number in range(5):
            mine = fold == number
            assert found[mine] == pytest.approx(fit(method, sure[~mine], right[~mine])(sure[mine]))
    with pytest.raises(DataError, match="E1121: 10 answers about too few pictures"):
        cross_fitted("temperature", sure[:10], right[:10], folds(names[:10]))
