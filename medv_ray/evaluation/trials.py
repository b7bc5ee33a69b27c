"""What settings did with rows, and the figures that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from medv_ray.evaluation.statistics import wilson
from medv_ray.evaluation.text_shape import shape

Kind = str
"""`open` or `closed`."""


class Trial(NamedTuple):
    """One row under one setting."""

    arm: str
    row: int
    """Position in the sample."""
    id: str
    answer: str | None
    """None: the row was quarantined."""
    code: str | None
    """Why."""
    kind: Kind | None
    """Of its question; None where no answer is known."""
    right: bool | None
    """By whole words; None where no answer is known."""
    passes: int
    seconds: float
    """Wall time without the picture's; of rows that ran together, the mean."""
    visit: int
    """Trials of one visit ran one after the other, so that their times compare."""


Trials = Mapping[int, Trial]
"""Of one setting, by row."""


def compared(mine: Trials, exact: Trials) -> tuple[int, int]:
    """Rows with the same answer, and rows that `exact` answered. A row that only `mine` fails at
    differs."""
    rows = [row for row, trial in exact.items() if trial.answer is not None and row in mine]
    return sum(mine[row].answer == exact[row].answer for row in rows), len(rows)


def speed(mine: Trials, exact: Trials) -> float | None:
    """How many times as fast as `exact`: the median over rows that both answered in one visit."""
    ratios = [
        exact[row].seconds / trial.seconds
        for row, trial in mine.items()
        if row in exact
        and exact[row].visit == trial.visit
        and trial.seconds > 0
        and trial.answer is not None
        and exact[row].answer is not None
    ]
    return median(ratios) if ratios else None


def figures(mine: Trials, exact: Trials) -> dict[str, Any]:
    """Of one setting: agreement, accuracy, cost, and the shape of its answers."""
    done = [trial for trial in mine.values() if trial.answer is not None]
    same, n = compared(mine, exact)
    return {
        "rows": len(mine),
        "quarantined": quarantined(mine.values()),
        "agreement": share(same, n),
        **{kind: _accuracy(done, kind) for kind in ("open", "closed")},
        "passes": fmean(trial.passes for trial in done) if done else None,
        "seconds": median(trial.seconds for trial in done) if done else None,
        "speed": speed(mine, exact),
        "shape": shape(trial.answer or "" for trial in done),
    }


def share(right: int, n: int) -> dict[str, Any] | None:
    """With Wilson's interval; None for no rows."""
    if not n:
        return None
    low, high = wilson(right, n)
    return {"mean": right / n, "low": low, "high": high, "n": n}


def quarantined(trials: Iterable[Trial]) -> dict[str, int]:
    """Rows by code."""
    found: dict[str, int] = {}
    for trial in trials:
        if trial.code is not None:
            found[trial.code] = found.get(trial.code, 0) + 1
    return dict(sorted(found.items()))


def _accuracy(done: Sequence[Trial], kind: Kind) -> dict[str, Any] | None:
    mine = [trial for trial in done if trial.kind == kind and trial.right is not None]
    return share(sum(bool(trial.right) for trial in mine), len(mine))
