"""Tables of settings side by side, as cells of text: for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medv_ray.evaluation.text_shape import NGRAM

Cells = tuple[list[str], list[list[str]]]
"""Heads of the columns, and rows."""


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [list(heads), ["---", *["---:"] * (len(heads) - 1)], *map(list, rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def tune_table(found: dict[str, Any]) -> Cells:
    """What led `medv tune` to its pick; the fastest first."""
    known = any(found["exact"][kind] for kind in ("open", "closed"))
    heads = ["settings", "fate", "same", "lower bound", "passes a row", "s a row", "speed"]
    heads += ["closed", "open"] if known else []
    measured = [found["exact"], *found["candidates"]]
    failed = any(one["quarantined"] for one in measured)
    heads += ["quarantined"] if failed else []
    rows = []
    for one in ({"name": "exact", "fate": "the measure"} | found["exact"], *found["candidates"]):
        fate = "PICKED" if one["name"] == found["pick"] else one["fate"]
        same = f"{one['same']} of {one['compared']}" if "same" in one else "-"
        row = [one["name"], fate, same, percent(one.get("lower_bound")), *cost(one)]
        row += [closed_open(one, kind) for kind in ("closed", "open")] if known else []
        rows.append(row + ([by_code(one)] if failed else []))
    return heads, rows


def sweep_table(found: dict[str, Any]) -> Cells:
    """All settings of a sweep; of `scaling`, all models."""
    arms = found["arms"]
    kinds = [kind for kind in ("closed", "open") if any(one[kind] for one in arms)]
    heads = ["settings", "same as exact", *kinds, "passes a row", "s a row", "speed"]
    heads += ["words", "repeated words", f"repeated {NGRAM}-grams"]
    failed = any(one["quarantined"] for one in arms)
    heads += ["quarantined"] if failed else []
    rows = []
    for one in arms:
        name = one["name"] + (f" = {', '.join(one['also'])}" if one["also"] else "")
        shape = one["shape"]
        said = [shape[name] for name in ("repeated_words", f"repeated_{NGRAM}grams")]
        cells = [closed_open(one, kind) for kind in ("agreement", *kinds)]
        row = [name, *cells, *cost(one), f"{shape['words']:.2f}", *map(percent, said)]
        rows.append(row + ([by_code(one)] if failed else []))
    return heads, rows


def label_table(found: dict[str, Any]) -> Cells:
    """Runs of one label together: mean, standard deviation, least and most, in percent."""
    heads, rows = ["label", "runs", "closed", "sd", "range", "open", "sd", "range"], []
    for one in found["by_label"]:
        row = [one["label"], str(one["runs"])]
        for kind in ("closed", "open"):
            cell = one[kind]
            if cell is None:
                row += ["-", "-", "-"]
                continue
            sd = "-" if cell["sd"] is None else f"{100 * cell['sd']:.2f}"
            ends = f"{100 * cell['least']:.2f} - {100 * cell['most']:.2f}"
            row += [f"{100 * cell['mean']:.2f}", sd, ends]
        rows.append(row)
    return heads, rows


def cost(one: dict[str, Any]) -> list[str]:
    """Passes, seconds and speed of one setting."""
    cells = [(one["passes"], "{:.1f}"), (one["seconds"], "{:.4f}"), (one["speed"], "{:.2f}x")]
    return ["-" if value is None else form.format(value) for value, form in cells]


def closed_open(one: dict[str, Any], kind: str) -> str:
    """A share with its interval in percent."""
    found = one[kind]
    if found is None:
        return "-"
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} - {100 * found['high']:.1f})"


def by_code(one: dict[str, Any]) -> str:
    """Rows that a setting gave no answer to."""
    return ", ".join(f"{code} {count}" for code, count in one["quarantined"].items()) or "-"


def percent(value: float | None) -> str:
    """With two digits, as agreement lies near 100."""
    return "-" if value is None else f"{100 * value:.2f} %"
