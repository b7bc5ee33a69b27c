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
    """Wall time without the picture's; of rows that ran together, the mean. 0: not known."""
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
    """How many times as fast as `exact`: the median over visits."""
    found = ratios(mine, exact)
    return median(found) if found else None


def ratios(mine: Trials, exact: Trials) -> list[float]:
    """Time of `exact` over that of `mine`, one for each visit that both made to the same rows: time
    goes with how many run together, and these share it."""
    by_visit = _by_visit(exact)
    found = []
    for visit, rows in _by_visit(mine).items():
        if by_visit.get(visit) != rows:
            continue
        both = [(exact[row], mine[row]) for row in rows]
        timed = [(a.seconds, b.seconds) for a, b in both if a.seconds > 0 and b.seconds > 0]
        if timed:
            found.append(fmean(a for a, _ in timed) / fmean(b for _, b in timed))
    return found


def visits(trials: Trials) -> int:
    """In how many a row was answered."""
    return len({trial.visit for trial in trials.values() if trial.answer is not None})


def _by_visit(trials: Trials) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for row, trial in trials.items():
        found.setdefault(trial.visit, set()).add(row)
    return found


def figures(mine: Trials, exact: Trials) -> dict[str, Any]:
    """Of one setting: agreement and accuracy over rows that `exact` answered, cost, and the shape
    of its answers."""
    done = [trial for trial in mine.values() if trial.answer is not None]
    times = [trial.seconds for trial in done if trial.seconds > 0]
    asked = [trial for row, trial in mine.items() if row in exact and exact[row].code is None]
    same, n = compared(mine, exact)
    return {
        "rows": len(mine),
        "quarantined": quarantined(mine.values()),
        "agreement": share(same, n),
        **{kind: _accuracy(asked, kind) for kind in ("open", "closed")},
        "passes": fmean(trial.passes for trial in done) if done else None,
        "seconds": median(times) if times else None,
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


def _accuracy(asked: Sequence[Trial], kind: Kind) -> dict[str, Any] | None:
    """A row without an answer is wrong."""
    mine = [trial for trial in asked if trial.kind == kind]
    return share(sum(bool(trial.right) for trial in mine), len(mine))
