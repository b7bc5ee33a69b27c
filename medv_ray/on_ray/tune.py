"""`medv tune`: the fastest sampler settings that agree with `exact` on the user's own rows.

OUT/tune.json       the pick; `medv score --config` takes it
OUT/results.json    the table that led to it
OUT/table.md        the same, to read
OUT/trials.jsonl    what it was computed from; the same call goes on there
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from medv_ray.errors import DataError
from medv_ray.evaluation.choosing import (
    LEAST_VISITS,
    PILOT,
    Goal,
    State,
    best_need,
    fastest_first,
    line_of,
    pick,
    state_of,
)
from medv_ray.evaluation.grids import EXACT, Arm, candidates, grid
from medv_ray.evaluation.tables import markdown, tune_table
from medv_ray.evaluation.trials import compared, figures, quarantined, share, visits
from medv_ray.files import write_atomic
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.sampled_rows import open_rows
from medv_ray.on_ray.trial_run import Answers, TrialRun, asker
from medv_ray.settings import AnswerSettings, Settings

CONFIG, RESULTS, TABLE = "tune.json", "results.json", "table.md"
AT_ONCE = 4
"""Candidates that run beside `exact` once the first rows have told their speed: the fastest. Where
one is dropped the next comes in, and catches up."""
BLOCK = 16
"""Rows between two looks at who is still in."""

Say = Callable[[str], None]


class TuneSettings(Settings):
    """What is asked of the pick."""

    agree: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Least share of rows whose answer is that of `exact`, held by the lower bound."""
    rows: PositiveInt = 1000
    """Of the archive, drawn at random."""
    verify: NonNegativeInt = 0
    """Further rows, that the pick has not seen, on which it is tried again."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the bound, one-sided, for all candidates together."""
    sample_seed: NonNegativeInt = 0
    split: str = "test"
    """Of a prepared dataset, where the archive is one."""


def tune(
    settings: ScoreSettings,
    asked: TuneSettings,
    say: Say = lambda _: None,
    answers: Answers = asker,
) -> dict[str, Any]:
    """The pick and the table that led to it, as results.json has them; `out` gets all files.

    Raises DataError E1110, RunError E1501, E1502, E1506, E1507, and what loading a model raises.
    """
    settings = settings.located(on_cluster=False)
    rows = open_rows(settings.archive, asked.split, settings.seed)
    arms, exact = candidates(settings.sampler), grid("modes", settings.sampler)[0]
    n = min(asked.rows, len(rows))
    goal = Goal(asked.agree, asked.level, n, len(arms))
    if n < goal.least_rows:
        say(
            f"{n} rows are too few for any of {len(arms)} candidates: {goal.least_rows} without "
            f"one difference would show an agreement of {asked.agree:g}."
        )
    out = Path(settings.out)
    with closing(TrialRun(out, settings, rows, asked.sample_seed, answers)) as run:
        states = search(run, exact, arms, goal, say)
        won = pick(states, goal)
        found = {
            "format": 1,
            "archive_rows": len(rows),
            "rows": n,
            "asked": asked.model_dump(mode="json"),
            "bound": bound_of(goal),
            "pick": EXACT if won is None else won.arm.name,
            "speed": 1.0 if won is None else won.speed,
            "quarantined": quarantined(t for t in run.of(exact).values() if t.row < n),
            "need": None if won is not None else need_of(states, goal),
            "exact": figures(*[{r: t for r, t in run.of(exact).items() if r < n}] * 2),
            "candidates": [
                line_of(one, goal, run.done, won)
                for one in sorted(fastest_first(states), key=lambda one: one is not won)
            ],
            "verified": None if won is None else verify(run, exact, won.arm, n, asked, len(rows)),
        }
    arm = exact if won is None else won.arm
    write_atomic(out / CONFIG, json.dumps(config_of(settings, arm), indent=1).encode())
    write_atomic(out / RESULTS, json.dumps(found, indent=1).encode())
    write_atomic(out / TABLE, markdown(*tune_table(found)).encode())
    return found


def search(
    run: TrialRun, exact: Arm, arms: Sequence[Arm], goal: Goal, say: Say = lambda _: None
) -> list[State]:
    """All candidates on the first rows, then the fastest that are still in on the rest."""
    known = 0
    for end in range(PILOT, goal.rows + PILOT, PILOT):
        run.run([exact, *arms], run.missing([exact, *arms], range(min(end, goal.rows))))
        known = sum(trial.answer is not None for trial in run.of(exact).values())
        if known >= PILOT and visits(run.of(exact)) >= LEAST_VISITS:
            break
    if not known:
        codes = ", ".join(quarantined(run.of(exact).values()))
        raise DataError("E1110", f"none of {goal.rows} rows has an answer ({codes}).")
    dropped: set[str] = set()
    running: set[str] = set()
    while True:
        states = [state_of(arm, run.done, goal) for arm in arms]
        for one in states:
            if one.dropped is not None and one.arm.name not in dropped:
                dropped.add(one.arm.name)
                say(f"dropped {one.arm.name}: {one.dropped}")
        live = fastest_first([one for one in states if one.dropped is None])
        # who runs stays, as speeds waver
        live = sorted(live, key=lambda one: one.arm.name not in running)[:AT_ONCE]
        running = {one.arm.name for one in live}
        group = [exact, *(one.arm for one in live)]
        todo = run.missing(group, range(goal.rows))[:BLOCK] if live else []
        if not todo:
            return states
        run.run(group, todo)
        say(f"{goal.rows - len(run.missing(group, range(goal.rows)))} of {goal.rows} rows")


def verify(
    run: TrialRun, exact: Arm, arm: Arm, n: int, asked: TuneSettings, total: int
) -> dict[str, Any] | None:
    """Agreement of the pick on rows behind the first n of the sample."""
    span = range(n, min(total, n + asked.verify))
    if not span:
        return None
    run.run([exact, arm], run.missing([exact, arm], span))
    theirs, mine = ({r: run.of(one)[r] for r in span} for one in (exact, arm))
    return {
        "agreement": share(*compared(mine, theirs)),
        "quarantined": quarantined(theirs.values()),
        "exact": figures(theirs, theirs),
        "pick": figures(mine, theirs),
    }


def bound_of(goal: Goal) -> dict[str, Any]:
    """How the bound is made, in words and numbers."""
    return {
        "method": "Wilson, one-sided; Bonferroni over the candidates",
        "level": goal.level,
        "candidates": goal.candidates,
        "level_of_each": 1 - goal.alpha,
        "least_rows": goal.least_rows,
    }


def need_of(states: Sequence[State], goal: Goal) -> dict[str, Any] | None:
    """Which candidate would hold at how many rows, had it gone on as it did."""
    found = best_need(states, goal)
    return None if found is None else {"name": found[0].arm.name, "rows": found[1]}


def config_of(settings: ScoreSettings, arm: Arm) -> dict[str, Any]:
    """All that decides an answer, as a file for `medv score --config`."""
    chosen = settings.answer.model_copy(update={"sampler": arm.sampler})
    own = AnswerSettings(**dict(chosen)).model_dump(mode="json")
    return {name: value for name, value in own.items() if value is not None}
