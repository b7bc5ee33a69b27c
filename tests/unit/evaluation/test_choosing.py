"""Speed, accuracy and what is dropped, from trials that are made up."""

from __future__ import annotations

import pytest

from medv_ray.evaluation.choosing import LEAST_VISITS, Goal, State, pick, state_of
from medv_ray.evaluation.grids import EXACT, Arm
from medv_ray.evaluation.trials import Trial, figures, ratios, speed
from medv_ray.settings import SamplerSettings

ARM = Arm("dual", SamplerSettings(preset="custom", cache="dual"))
PLAIN = Arm("threshold", SamplerSettings(preset="custom", rule="threshold", threshold=0.9))


def trial(
    row: int, seconds: float, visit: int, right: bool | None = True, passes: int = 8
) -> Trial:
    text, code = ("yes", None) if right is not None else (None, "E1305")
    return Trial("", row, str(row), text, code, "closed", right, passes, seconds, visit)


def visits(times: list[float], rows: int = 8) -> dict[int, Trial]:
    """Rows of a visit have one time, as on a GPU."""
    numbered = [(visit, s) for visit, s in enumerate(times) for _ in range(rows)]
    return {row: trial(row, s, visit) for row, (visit, s) in enumerate(numbered)}


def state(arm: Arm, mine: dict[int, Trial], exact: dict[int, Trial], rows: int = 1000) -> State:
    return state_of(arm, {EXACT: exact, arm.name: mine}, Goal(0.5, 0.95, rows, 1))


def test_a_visit_counts_once_and_few_of_them_drop_nothing() -> None:
    # 1.45 times as fast, but for a first visit that paid for compilation
    exact, mine = visits([1.45, 1.45]), visits([20.0, 1.0])
    assert ratios(mine, exact) == pytest.approx([0.0725, 1.45])
    assert state(ARM, mine, exact).dropped is None
    times = [1.0] * LEAST_VISITS
    assert speed(visits(times), visits([1.45] * LEAST_VISITS)) == pytest.approx(1.45)
    assert state(ARM, visits(times), visits(times)).dropped == "no faster than exact"
    few = times[:-1]
    assert state(ARM, visits(few), visits(few)).dropped is None
    # the sample's end decides with fewer: what saves no time is no pick
    whole = state(ARM, visits(few), visits(few), rows=8 * len(few))
    assert whole.dropped == "no faster than exact"
    assert pick([whole], Goal(0.5, 0.95, 8 * len(few), 1)) is None


def test_only_the_same_rows_of_one_visit_are_held_against_each_other() -> None:
    exact = visits([2.0, 2.0], rows=2)
    assert speed({0: trial(0, 1.0, 0)}, exact) is None, "half a visit shares its time among fewer"
    assert speed({0: trial(0, 1.0, 7), 1: trial(1, 1.0, 7)}, exact) is None
    unknown = {0: trial(0, 0.0, 0), 1: trial(1, 0.0, 0)}
    assert speed(unknown, exact) is None
    assert figures(unknown, exact)["seconds"] is None
    assert state(ARM, unknown, exact, rows=2).dropped == "no time beside exact is known"


def test_passes_are_compared_where_both_answered() -> None:
    exact = {row: trial(row, 1.0, row) for row in range(40)}
    mine = {
        row: trial(row, 1.0, row, None if row == 1 else True, 0 if row == 1 else 8) for row in exact
    }
    assert state(PLAIN, mine, exact).dropped == "no fewer passes than exact"


def test_a_row_that_only_the_setting_fails_at_is_wrong() -> None:
    exact = {0: trial(0, 1.0, 0), 1: trial(1, 1.0, 1), 2: trial(2, 0.0, 2, None)}
    mine = {0: trial(0, 1.0, 0), 1: trial(1, 0.0, 1, None), 2: trial(2, 1.0, 2)}
    found = figures(mine, exact)
    assert (found["closed"]["mean"], found["closed"]["n"]) == (0.5, 2)
    assert found["open"] is None
    assert found["quarantined"] == {"E1305": 1}
    assert figures(exact, exact)["closed"]["n"] == 2
