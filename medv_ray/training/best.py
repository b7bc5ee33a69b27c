"""Which validation of a stage was best, and when it has waited long enough for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medv_ray.training.job import ValidationSettings
from medv_ray.training.loop import Verdict


class Progress:
    """Which validation was best, over all parts of a run; stands in each checkpoint's manifest."""

    def __init__(
        self,
        chosen: ValidationSettings,
        num_rows: int,
        of: str,
        before: Mapping[str, Any] | None,
    ) -> None:
        """
        Args:
            num_rows: that each validation looks at.
            of: what must be equal for two validations to compare.
            before: what the checkpoint says that the run goes on from.
        """
        self._by, self._patience = chosen.best, chosen.patience
        kept = dict(before) if before is not None and before.get("of") == of else {}
        self.best: dict[str, Any] | None = kept.get("best")
        self.last: dict[str, Any] | None = kept.get("last")
        self.waited: int = kept.get("waited", 0)
        self.ended: bool = kept.get("ended", False)
        self._of, self._split, self._num_rows = of, chosen.split, num_rows

    def add(self, figures: dict[str, Any]) -> Verdict:
        """The next validation's figures."""
        # JSON has no word for what is not finite
        figures = {n: v if math.isfinite(v or 0) else None for n, v in figures.items()}
        self.last = figures
        better = self._value(figures) > self._value(self.best)
        if better:
            self.best = figures
        self.waited = 0 if better else self.waited + 1
        self.ended = self._patience is not None and self.waited >= self._patience
        return Verdict(better, self.ended)

    def _value(self, figures: Mapping[str, Any] | None) -> float:
        """The more the better."""
        value = None if figures is None or self._by == "none" else figures[self._by]
        if value is None or not math.isfinite(value):
            return -math.inf
        return -float(value) if self._by == "loss" else float(value)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "of": self._of,
            "split": self._split,
            "rows": self._num_rows,
            "by": self._by,
            "best": self.best,
            "last": self.last,
            "waited": self.waited,
            "ended": self.ended,
        }


def best_step(state: dict[str, Any] | None) -> int | None:
    """Step of the best validation of a manifest's `validation`; None where there is none."""
    best = (state or {}).get("best")
    return None if best is None else int(best["step"])


def has_ended(state: dict[str, Any] | None) -> bool:
    """Whether a stage ended before its last step, for want of a better validation."""
    return bool((state or {}).get("ended"))
