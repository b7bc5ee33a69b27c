"""curves.svg of a run folder: loss of training and validation, and accuracy, from events.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medv_ray.files import write_atomic
from medv_ray.training.job import CURVES
from medv_ray.training.watch import EVENTS

MOST_POINTS = 200
"""Of the curve of the training loss; each is a mean over as many updates."""
MOST_LINEAR = 5
"""Largest loss over smallest up to which the axis is linear."""
NEEDED = {"step", "total_steps", "loss"}
ACCURACIES = (
    ("accuracy", "all", "rows"),
    ("accuracy_open", "open", "rows_open"),
    ("accuracy_closed", "closed", "rows_closed"),
)


def draw(out: Path, stage: str) -> bool:
    """Write the curves of a stage's run, nothing where no step was done; False without
    matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    from medv_ray.evaluation.plots import Panel, Series, chart

    steps, looks = read(out / EVENTS)
    if not steps:
        return True
    size = max(1, math.ceil(len(steps) / MOST_POINTS))
    mean = "training" if size == 1 else f"training, mean of {size} updates"
    loss = [Series(mean, *means(steps, size))]
    if looks:
        loss.append(Series("validation", *points(looks, "loss"), points=True))
    best = [look for look in looks if look.get("best")][-1:]
    if best:
        text = f"best checkpoint, update {best[0]['step']:,}"
        loss.append(Series(text, *points(best, "loss"), points=True))
    last = steps[-1]
    limits = (0.0, float(max(last["step"], 1)))
    values = [value for one in loss for value in one.y]
    # a few large ones at the start would hide all that follows
    log = min(values) > 0 and max(values) > MOST_LINEAR * min(values)
    panels = [Panel("updates", "loss", loss, log_y=log, x_limits=limits)]
    accuracy = [
        Series(f"{words}, {looks[-1].get(rows, 0)} rows", *points(looks, name), points=True)
        for name, words, rows in ACCURACIES
        if points(looks, name)[0]
    ]
    if accuracy:
        text = "share of right validation answers"
        panels.append(Panel("updates", text, accuracy, x_limits=limits))
    title = f"{stage}: {last['step']:,} of {last['total_steps']:,} updates"
    write_atomic(out / CURVES, chart(title, panels).encode())
    return True


def no_matplotlib() -> str:
    """What to install for the curves."""
    return f"{CURVES} is not drawn: it needs matplotlib (pip install 'medv-ray[train]')."


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of steps and of validations; a half-written or damaged one is left out."""
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.keys() >= NEEDED:
                found[event.get("kind") == "validation"].append(event)
    return found


def means(steps: Sequence[dict[str, Any]], size: int) -> tuple[list[float], list[float]]:
    """The last step of each `size` of them, and their mean loss."""
    x, y = [], []
    for first in range(0, len(steps), size):
        piece = steps[first : first + size]
        losses = [one["loss"] for one in piece if one["loss"] is not None]
        if losses:
            x.append(float(piece[-1]["step"]))
            y.append(sum(losses) / len(losses))
    return x, y


def points(looks: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps that have a value of that name, and the values."""
    having = [look for look in looks if look.get(name) is not None]
    return [float(look["step"]) for look in having], [float(look[name]) for look in having]
