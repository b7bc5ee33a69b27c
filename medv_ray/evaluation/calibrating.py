"""From judged answers to a calibration, with the charts that show it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medv_ray.errors import DataError
from medv_ray.evaluation import calibration, calibrators
from medv_ray.evaluation.abstention import Abstention, abstain_below
from medv_ray.evaluation.calibrators import Calibrator, Method
from medv_ray.evaluation.judged_rows import JudgedRows
from medv_ray.evaluation.statistics import wilson

LEAST = 50
"""Answers to fit on."""
CURVE = 200
"""Points of a curve, at most."""


class Fitted(NamedTuple):
    """A calibration of n answers, and how far it holds."""

    calibrator: Calibrator
    held_out: NDArray[np.float64]
    """float64[n]: calibrated confidences by maps that have not seen the row's picture."""
    ece_before: float
    ece_after: float
    abstention: Abstention | None


def calibrated(rows: JudgedRows, target_risk: float, method: Method | None = None) -> Fitted:
    """The best of the methods by held-out likelihood, or the one that is asked for.

    Raises DataError E1121 for too few answers.
    """
    if len(rows) < LEAST:
        said = ", ".join(f"{count} {name}" for name, count in rows.left_out.items() if count)
        raise DataError(
            "E1121",
            f"{len(rows)} answers with a known reference; a calibration takes {LEAST} at least"
            + (f" (left out: {said})." if said else "."),
        )
    sure, right = rows.confidence, [float(hit) for hit in rows.right]
    fold = calibrators.folds(rows.picture)
    chosen = method or calibrators.best_method(sure, right, fold)
    held_out = calibrators.cross_fitted(chosen, sure, right, fold)
    return Fitted(
        calibrators.fit(chosen, sure, right),
        held_out,
        calibration.calibration_error(sure, right),
        calibration.calibration_error(held_out, right),
        abstain_below(sure, right, target_risk, rows.picture),
    )


def charts(rows: JudgedRows, fitted: Fitted, target_risk: float) -> str:
    """SVG: risk over coverage with Wilson's interval, and shares of right answers by confidence."""
    from medv_ray.evaluation.plots import Panel, Series, chart  # matplotlib is an extra

    right = [float(hit) for hit in rows.right]
    coverage, risk = calibration.risk_coverage(rows.confidence, right)
    picked = thinned(len(coverage))
    x, y = coverage[picked], risk[picked]
    band = [
        wilson(round(r * n), n)
        for r, n in zip(y, np.rint(x * len(right)).astype(int).tolist(), strict=True)
    ]
    curve = Series(
        "wrong among those kept", x.tolist(), y.tolist(), [a for a, _ in band], [b for _, b in band]
    )
    goal = Series("target", [0.0, 1.0], [target_risk] * 2)
    before, after = (
        Series(name, [b.confidence for b in found], [b.right for b in found], points=True)
        for name, found in (
            ("raw", calibration.bins(rows.confidence, right)),
            ("calibrated, held out", calibration.bins(fitted.held_out, right)),
        )
    )
    even = Series("as sure as right", [0.0, 1.0], [0.0, 1.0])
    return chart(
        f"{len(right)} answers of a validation split",
        [
            Panel("share of answers that are kept, the surest first", "risk", [curve, goal]),
            Panel("confidence", "share of right answers", [before, after, even]),
        ],
    )


def thinned(count: int, most: int = CURVE) -> list[int]:
    """Indices of at most about `most` of `count` points, the first and the last among them."""
    return sorted({*range(0, count, max(1, count // most)), *((count - 1,) if count else ())})


def summary(rows: JudgedRows, fitted: Fitted, target_risk: float) -> dict[str, Any]:
    """What `medv calibrate` prints."""
    right = [float(hit) for hit in rows.right]
    kept = fitted.abstention
    return {
        "answers": len(rows),
        "right": float(np.mean(right)),
        "left_out": rows.left_out,
        "method": fitted.calibrator.method,
        "ece": {"before": fitted.ece_before, "after": fitted.ece_after},
        "auroc": calibration.auroc(rows.confidence, right),
        "target_risk": target_risk,
        "abstain_below": None if kept is None else kept.below,
        "abstention": None if kept is None else kept._asdict(),
    }
