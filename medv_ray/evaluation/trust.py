"""What a page says of confidence: how far it is right, before and after calibration."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from medv_ray.errors import DataError
from medv_ray.evaluation import calibration, calibrators
from medv_ray.evaluation.calibrating import LEAST, thinned
from medv_ray.evaluation.judged_rows import JudgedRows
from medv_ray.evaluation.statistics import Interval, wilson
from medv_ray.evaluation.stored_calibration import StoredCalibration

BARS = 20
BINS = 10
"""Of the chart of right answers by confidence."""

Points = list[tuple[float, float]]


class Trust(NamedTuple):
    """Of the judged answers of a run."""

    n: int
    ece: float
    auroc: float | None
    curve: Points
    """Coverage and risk."""
    raw: Points
    """Mean confidence and share of right answers, bin by bin."""
    after: Points
    """The same of calibrated confidences; empty where there are too few answers."""
    ece_after: float | None
    how: str
    """The map behind `after`, in words."""
    kept: Interval | None
    """Of wrong answers among those that the model's `abstain_below` keeps."""
    coverage: float | None


def trust(rows: JudgedRows, stored: StoredCalibration | None = None) -> Trust | None:
    """None where no answer is known.

    With the model's stored calibration, that one is judged, on rows that it has not seen; else one
    is fitted here and judged over held-out folds.
    """
    if not len(rows):
        return None
    sure, right = np.array(rows.confidence), np.array(rows.right, float)
    coverage, risk = calibration.risk_coverage(sure, right)
    picked = thinned(len(coverage))
    calibrated, how = _calibrated(rows, stored)
    kept = share = None
    if stored is not None and stored.abstain_below is not None:
        given = sure >= stored.abstain_below
        share = float(given.mean())
        if given.any():
            wrong = round(float((1 - right[given]).sum()))
            low, high = wilson(wrong, int(given.sum()))
            kept = Interval(wrong / int(given.sum()), low, high, int(given.sum()))
    return Trust(
        len(rows),
        calibration.calibration_error(sure, right),
        calibration.auroc(sure, right),
        list(zip(coverage[picked].tolist(), risk[picked].tolist(), strict=True)),
        points(sure, right),
        [] if calibrated is None else points(calibrated, right),
        None if calibrated is None else calibration.calibration_error(calibrated, right),
        how,
        kept,
        share,
    )


def _calibrated(rows: JudgedRows, stored: StoredCalibration | None) -> tuple[Any, str]:
    if stored is not None:
        method = stored.calibrator.method
        return stored.calibrator(rows.confidence), f"{method}, fitted on {stored.rows}"
    right = [float(hit) for hit in rows.right]
    if len(rows) < LEAST:
        return None, ""
    try:
        fold = calibrators.folds(rows.picture)
        method = calibrators.best_method(rows.confidence, right, fold)
        found = calibrators.cross_fitted(method, rows.confidence, right, fold)
    except DataError:  # all are about a few pictures
        return None, ""
    return found, f"{method}, fitted on other pictures of these rows, in {calibrators.FOLDS} folds"


def points(confidence: Any, right: Any) -> Points:
    return [(one.confidence, one.right) for one in calibration.bins(confidence, right, BINS)]
