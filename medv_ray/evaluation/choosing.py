"""Which settings may stand in for `exact`, and which of them is the fastest.

Every candidate of the grid could be the pick, so that the error is shared among all of them,
whatever is dropped on the way (Bonferroni). Dropping is safe: a candidate is dropped when it
differs in more rows than it may differ in over the whole sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from medv_ray.evaluation.agreement import lower_bound, most_different, rows_needed
from medv_ray.evaluation.grids import EXACT, Arm
from medv_ray.evaluation.statistics import wilson
from medv_ray.evaluation.trials import Trial, Trials, compared, figures, ratios, speed

PILOT = 16
"""Rows after which a candidate that is no faster than `exact` is dropped, if it has made as many
visits as LEAST_VISITS: rows that run together have one time."""
LEAST_VISITS = 5
TIE = 1.05
"""Speeds within this factor are the same; forward passes decide then, and then agreement."""


class Goal(NamedTuple):
    """What is asked of a candidate."""

    agree: float
    """Least share of rows with the same answer."""
    level: float
    """Of the bound, one-sided, for all candidates together."""
    rows: int
    """Of the sample."""
    candidates: int

    @property
    def alpha(self) -> float:
        """Error of one candidate's bound."""
        return (1 - self.level) / self.candidates

    @property
    def least_rows(self) -> int:
        """Rows without one difference that a candidate needs."""
        needed = rows_needed(1.0, self.agree, self.alpha)
        assert needed is not None
        return needed


class State(NamedTuple):
    """A candidate as it stands."""

    arm: Arm
    same: int
    n: int
    """Rows that `exact` answered."""
    low: float
    """One-sided lower bound at the goal's alpha."""
    speed: float
    """Times `exact`; 0: not known."""
    passes: float
    complete: bool
    """It has tried the whole sample."""
    fault: str | None = None
    """It differs too often."""
    slow: str | None = None
    """It saves no time."""

    @property
    def dropped(self) -> str | None:
        """Why it is out."""
        return self.fault or self.slow

    @property
    def share(self) -> float:
        """Of rows with the same answer."""
        return self.same / self.n if self.n else 0.0


def state_of(arm: Arm, done: Mapping[str, Mapping[int, Trial]], goal: Goal) -> State:
    """Of the rows of the sample that have been tried."""
    exact = {row: t for row, t in done.get(EXACT, {}).items() if row < goal.rows}
    mine = {row: t for row, t in done.get(arm.name, {}).items() if row < goal.rows}
    same, n = compared(mine, exact)
    lost = sum(trial.answer is None for trial in exact.values())
    times = speed(mine, exact) or 0.0
    passes = [trial.passes for trial in mine.values() if trial.answer is not None]
    found = State(
        arm,
        same,
        n,
        lower_bound(same, n, goal.alpha),
        times,
        fmean(passes) if passes else 0.0,
        len(mine) == goal.rows,
    )
    slow = _is_slow(found, mine, exact) if n >= PILOT or found.complete else None
    return found._replace(fault=_disagrees(found, goal, goal.rows - lost), slow=slow)


def _is_slow(state: State, mine: Trials, exact: Trials) -> str | None:
    """Times waver; without a cache, a pass costs what one of `exact` does."""
    both = [(t, exact[row]) for row, t in mine.items() if row in exact]
    both = [(a, b) for a, b in both if a.answer is not None and b.answer is not None]
    saved = sum(b.passes - a.passes for a, b in both)
    if state.arm.sampler.cache == "none" and both and saved <= 0:
        return "no fewer passes than exact"
    visits = len(ratios(mine, exact))
    if state.speed > 1 or not (state.complete or visits >= LEAST_VISITS):
        return None
    return "no faster than exact" if visits else "no time beside exact is known"


def _disagrees(state: State, goal: Goal, rows: int) -> str | None:
    most = most_different(rows, goal.agree, goal.alpha)
    different = state.n - state.same
    if most < 0:  # nothing can hold; what is surely worse is still not worth its time
        if wilson(state.same, state.n)[1] < goal.agree:
            return f"differs in {different} of {state.n} rows: surely below {goal.agree:g}"
    elif different > most:
        return f"differs in {different} of {state.n} rows; {most} of {rows} would be allowed"
    return None


def fastest_first(states: Sequence[State]) -> list[State]:
    """By measured speed; those of the same speed by forward passes,
    and of the same of these by agreement."""
    left, found = sorted(states, key=lambda one: -one.speed), []
    while left:
        alike = [one for one in left if one.speed * TIE >= left[0].speed]
        found.append(min(alike, key=lambda one: (one.passes, -one.share)))
        left.remove(found[-1])
    return found


def holds(state: State, goal: Goal) -> bool:
    """Whether it may stand in for `exact`."""
    return state.complete and state.dropped is None and state.low >= goal.agree


def pick(states: Sequence[State], goal: Goal) -> State | None:
    """The fastest that holds; None: `exact` stays."""
    return next((one for one in fastest_first(states) if holds(one, goal)), None)


def best_need(states: Sequence[State], goal: Goal) -> tuple[State, int] | None:
    """The candidate that would hold at the fewest rows if it went on as it did, and how many; None
    where none agrees in more than the share asked for."""
    needs = [
        (rows_needed(one.share, goal.agree, goal.alpha), one)
        for one in states
        if one.n and one.slow is None
    ]
    known = [(need, one) for need, one in needs if need is not None]
    if not known:
        return None
    need, one = min(known, key=lambda pair: (pair[0], -pair[1].n, -pair[1].speed))
    return one, need


def line_of(
    state: State, goal: Goal, done: Mapping[str, Mapping[int, Trial]], won: State | None
) -> dict[str, Any]:
    """A candidate's line of the table; `won` is the pick."""
    exact, mine = done.get(EXACT, {}), done.get(state.arm.name, {})
    inside = {row: trial for row, trial in mine.items() if row < goal.rows}
    fate = state.dropped or ("holds" if holds(state, goal) else "does not hold")
    if state.dropped is None and not state.complete:
        fate = "left: " + ("the rows are too few for any" if won is None else "a faster one holds")
    found = figures(inside, {row: trial for row, trial in exact.items() if row < goal.rows})
    return {
        "name": state.arm.name,
        "also": list(state.arm.also),
        "fate": fate,
        "same": state.same,
        "compared": state.n,
        "lower_bound": state.low,
        **found,
        "settings": state.arm.sampler.model_dump(mode="json"),
    }
