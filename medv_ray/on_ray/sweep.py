"""`medv sweep`: a grid of sampler settings, or several models, over the same rows.

OUT/results.json    figures of every setting
OUT/table.md        the same, to read
OUT/*.svg           the grid's plots
OUT/trials.jsonl    what they are computed from; the same call goes on there. Of several models,
                    OUT/model-N/ holds those of each
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.grids import Arm, grid
from medv_ray.evaluation.tables import label_table, markdown, sweep_table
from medv_ray.evaluation.trials import figures, quarantined
from medv_ray.files import write_atomic
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.sampled_rows import Rows, open_rows
from medv_ray.on_ray.trial_run import IDENTITY, JOURNAL, Answers, TrialRun, asker, own_folder

RESULTS, TABLE = "results.json", "table.md"
TOLD_ROWS = 50

Say = Callable[[str], None]


class Labelled(NamedTuple):
    """A model under a name; models of one label are runs of one recipe."""

    label: str
    settings: ScoreSettings


class Sample(NamedTuple):
    """Which rows are asked."""

    rows: int | None = None
    """None: all."""
    seed: int = 0
    split: str = "test"
    """Of a prepared dataset."""


def labelled(given: str) -> tuple[str, str]:
    """Label and folder of `LABEL=FOLDER`; of a folder alone, its name."""
    label, equals, folder = given.partition("=")
    if not equals or "/" in label or os.path.exists(given):
        return Path(given).name or given, given
    if not label.strip() or not folder.strip():
        raise SettingsError("E1001", "--model: FOLDER, or LABEL=FOLDER, none of them empty.")
    return label.strip(), folder


def sweep(
    name: str,
    models: Sequence[Labelled],
    out: Path,
    wanted: Sample,
    say: Say = lambda _: None,
    answers: Answers = asker,
) -> dict[str, Any]:
    """Figures of a grid, as results.json has them; `out` gets all files.

    Raises SettingsError E1001, DataError E1110, RunError E1501, E1502, E1506, E1507, and what
    loading a model raises.
    """
    from medv_ray.evaluation.sweep_plots import plots  # matplotlib is an extra

    if len(models) > 1 and name != "scaling":
        raise SettingsError("E1001", "several models: only with --grid scaling.")
    first = models[0].settings
    own_folder(out, IDENTITY, JOURNAL, RESULTS, "model-1")
    grids = [grid(name, one.settings.sampler) for one in models]
    rows = open_rows(first.archive, wanted.split, first.seed)
    count = min(wanted.rows or len(rows), len(rows))
    arms: list[dict[str, Any]] = []
    lost: Counter[str] = Counter()
    for number, (one, its) in enumerate(zip(models, grids, strict=True), 1):
        folder = out / f"model-{number}" if name == "scaling" else out
        done, its_lost = _tried(one.settings, its, folder, rows, count, wanted, say, answers)
        lost.update(its_lost)
        for arm in its:
            label = {"label": one.label} if name == "scaling" else {}
            arms.append(label | line_of(arm, done[arm.name], done[its[0].name]))
            if label:
                arms[-1]["name"] = f"{one.label} ({number})"
    found: dict[str, Any] = {
        "format": 1,
        "grid": name,
        "input_rows": len(rows),
        "rows": count,
        "sample_seed": wanted.seed,
        "quarantined": dict(sorted(lost.items())),
        "arms": arms,
    }
    cells = [sweep_table(found)]
    if name == "scaling":
        found["by_label"] = by_label(arms)
        cells.append(label_table(found))
    write_atomic(out / RESULTS, json.dumps(found, indent=1).encode())
    write_atomic(out / TABLE, "\n".join(markdown(*one) for one in cells).encode())
    for file, svg in plots(found).items():
        write_atomic(out / file, svg.encode())
    return found


def _tried(
    settings: ScoreSettings,
    arms: Sequence[Arm],
    folder: Path,
    rows: Rows,
    count: int,
    wanted: Sample,
    say: Say,
    answers: Answers,
) -> tuple[dict[str, dict[int, Any]], dict[str, int]]:
    """Trials of every arm on the first `count` rows of the sample, and quarantined rows by code."""
    with closing(TrialRun(folder, settings, rows, wanted.seed, answers)) as run:
        todo = run.missing(arms, range(count))
        through = count - len(todo)

        def tell(new: int) -> None:
            nonlocal through
            through += new
            if through % TOLD_ROWS < new or through == count:
                say(f"{through} of {count} rows")

        run.run(arms, todo, tell)
    done = {arm.name: {r: run.of(arm)[r] for r in range(count)} for arm in arms}
    lost = quarantined(done[arms[0].name].values())
    if sum(lost.values()) == count:
        raise DataError("E1110", f"none of {count} rows has an answer ({', '.join(lost)}).")
    return done, lost


def line_of(arm: Arm, mine: dict[int, Any], exact: dict[int, Any]) -> dict[str, Any]:
    """One of results.json's `arms`."""
    return {
        "name": arm.name,
        "also": list(arm.also),
        "marks": [list(mark) for mark in arm.marks],
        **figures(mine, exact),
        "settings": arm.sampler.model_dump(mode="json"),
    }


def by_label(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one label: how far accuracy hangs on where training began."""
    found = []
    for label in dict.fromkeys(one["label"] for one in arms):
        runs = [one for one in arms if one["label"] == label]
        line: dict[str, Any] = {"label": label, "runs": len(runs)}
        for kind in ("closed", "open"):
            means = [one[kind]["mean"] for one in runs if one[kind] is not None]
            line[kind] = None
            if means:
                sd = stdev(means) if len(means) > 1 else None
                ends = {"least": min(means), "most": max(means)}
                line[kind] = {"mean": fmean(means), "sd": sd, **ends}
        found.append(line)
    return found
