"""Plots of a sweep: what a grid's settings give against what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medv_ray.evaluation.plots import Panel, Series, chart
from medv_ray.evaluation.text_shape import NGRAM

Arm = Mapping[str, Any]
"""One of results.json's `arms`."""
Value = Callable[[Arm], Any]
"""A number, or a share with its interval; None: not known."""

CLOSED, OPEN, AGREEMENT = "closed accuracy", "open accuracy", "agreement with exact"
VALUES: dict[str, Value] = {
    AGREEMENT: lambda arm: arm["agreement"],
    CLOSED: lambda arm: arm["closed"],
    OPEN: lambda arm: arm["open"],
    "times as fast as exact": lambda arm: arm["speed"],
    "forward passes a row": lambda arm: arm["passes"],
    "words an answer": lambda arm: arm["shape"]["words"],
    "repeated words": lambda arm: arm["shape"]["repeated_words"],
    f"repeated {NGRAM}-grams": lambda arm: arm["shape"][f"repeated_{NGRAM}grams"],
}
ANSWERS = ("repeated words", f"repeated {NGRAM}-grams", "words an answer", CLOSED, OPEN)
COST = ("times as fast as exact", "forward passes a row")


def plots(found: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name of the file, of results.json's values."""
    shown: Sequence[str]
    name, arms = found["grid"], found["arms"]
    if name == "modes":
        threshold = ("threshold", "threshold, dual cache")
        refresh = ("prefix cache", "dual cache")
        shown = (AGREEMENT, CLOSED, OPEN, *COST)
        return {
            "threshold.svg": _against("threshold", threshold, arms, shown),
            "refresh.svg": _against("steps between refreshes", refresh, arms, shown[:-1], True),
        }
    if name == "steps":
        return {"steps.svg": _against("steps", ("steps",), arms, ANSWERS, log_x=True)}
    if name == "blocks":
        shown = (*ANSWERS, "forward passes a row")
        return {"blocks.svg": _against("block length", ("block length",), arms, shown, log_x=True)}
    if name == "latency":
        return {"latency.svg": _latency(arms)}
    return {"scaling.svg": _scaling(found)}


def _against(
    x_label: str,
    curves: Sequence[str],
    arms: Sequence[Arm],
    shown: Sequence[str],
    log_x: bool = False,
) -> str:
    """A panel for each value that is known, a curve for each way to choose x."""
    panels = []
    for name in shown:
        lines = [_line(curve, VALUES[name], arms) for curve in curves]
        drawn = [line for line in lines if line is not None]
        if drawn:
            panels.append(Panel(x_label, name, drawn, log_x))
    return chart(f"{' and '.join(curves)}", panels)


def _line(curve: str, value: Value, arms: Sequence[Arm], by_seconds: bool = False) -> Series | None:
    points = [
        (arm["seconds"] if by_seconds else x, value(arm))
        for arm in arms
        for name, x in arm["marks"]
        if name == curve and value(arm) is not None and arm["seconds"] is not None
    ]
    if not points:
        return None
    points.sort(key=lambda point: point[0])
    x, cells = [point[0] for point in points], [point[1] for point in points]
    if isinstance(cells[0], float | int):
        return Series(curve, x, cells, points=True)
    mean, low, high = ([cell[side] for cell in cells] for side in ("mean", "low", "high"))
    return Series(curve, x, mean, low, high, points=True)


def _latency(arms: Sequence[Arm]) -> str:
    curves = list(dict.fromkeys(name for arm in arms for name, _ in arm["marks"]))
    panels = []
    for name in (CLOSED, OPEN, AGREEMENT):
        lines = [_line(curve, VALUES[name], arms, by_seconds=True) for curve in curves]
        drawn = [line._replace(low=(), high=()) for line in lines if line is not None]
        if drawn:
            panels.append(Panel("seconds a row, median", name, drawn))
    return chart("accuracy against time", panels)


def _scaling(found: Mapping[str, Any]) -> str:
    """Means of the runs of one label, in a band from the least to the most; labels that are no
    numbers stand in their order."""
    labels = found["by_label"]
    numbers = [_number(one["label"]) for one in labels]
    known = [x for x in numbers if x is not None]
    is_scale = len(known) == len(labels)
    xs = known if is_scale else [float(i) for i in range(1, len(labels) + 1)]
    panels = []
    for kind, name in (("closed", CLOSED), ("open", OPEN)):
        points = sorted(
            (x, one[kind]) for x, one in zip(xs, labels, strict=True) if one[kind] is not None
        ) if len(set(xs)) == len(xs) else []  # fmt: skip
        if points:
            mean, low, high = ([cell[s] for _, cell in points] for s in ("mean", "least", "most"))
            line = Series("mean of runs", [x for x, _ in points], mean, low, high, points=True)
            panels.append(Panel("label" if is_scale else "model, in order", name, [line]))
    return chart("accuracy by model", panels)


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
