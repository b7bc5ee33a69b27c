"""Agreement of samples as a second score beside confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medv_ray.evaluation.calibration import auroc
from medv_ray.evaluation.judged_rows import JudgedRows
from medv_ray.evaluation.statistics import LEVEL, SEED

RESAMPLES = 500


def separation(rows: JudgedRows, agreement: Sequence[float]) -> dict[str, Any]:
    """AUROC of confidence, of agreement (float[n]) and of their mean, over all answers and by kind,
    with bootstrap intervals; `difference` is agreement's minus confidence's. A score of 0.5 tells
    right from wrong no better than a coin; null where all are right, or all wrong."""
    kinds = np.array(rows.kind)
    found: dict[str, Any] = {"answers": len(rows), "left_out": rows.left_out}
    for name in ("all", "open", "closed"):
        mine = np.ones(len(rows), bool) if name == "all" else kinds == name
        if mine.any():
            sure = np.array(rows.confidence)[mine]
            right = np.array(rows.right, float)[mine]
            found[name] = _scores(sure, np.array(agreement)[mine], right)
    return found


def _scores(sure: Any, agreed: Any, right: Any) -> dict[str, Any]:
    sides = {"confidence": sure, "agreement": agreed, "mean": (sure + agreed) / 2}
    whole = {name: auroc(side, right) for name, side in sides.items()}
    found: dict[str, Any] = {"n": len(right), "right": float(right.mean())}
    random = np.random.default_rng(SEED)
    drawn: dict[str, list[float]] = {name: [] for name in (*sides, "difference")}
    for _ in range(RESAMPLES):
        picked = random.integers(0, len(right), len(right))
        one = {name: auroc(side[picked], right[picked]) for name, side in sides.items()}
        a, c = one["agreement"], one["confidence"]
        if a is not None and c is not None:
            for name, value in one.items():
                drawn[name].append(float(value or 0.0))
            drawn["difference"].append(a - c)
    if whole["agreement"] is not None and whole["confidence"] is not None:
        whole["difference"] = whole["agreement"] - whole["confidence"]
    for name, value in whole.items():
        ends = np.quantile(drawn[name], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if drawn[name] else None
        low, high = (None, None) if ends is None else (float(ends[0]), float(ends[1]))
        found[name] = None if value is None else {"auroc": value, "low": low, "high": high}
    return found
