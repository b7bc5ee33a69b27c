"""`medv attention`: where response positions look while they are denoised. No Ray here.

OUT/attention.json   shares by moment and layer
OUT/attention.md     the same, to read
OUT/attention.svg    a panel for each of image, prompt, tokens, masks, and for near positions
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medv_ray.engine import Predictor, Request
from medv_ray.engine.attending import GROUPS, REACH, Attention
from medv_ray.errors import DataError
from medv_ray.evaluation.tables import Cells, markdown
from medv_ray.files import write_atomic
from medv_ray.on_ray.options import ScoreSettings, model_digests
from medv_ray.on_ray.sampled_rows import Rows, open_rows, sample
from medv_ray.on_ray.trial_run import own_folder

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a row's own way from the blank response (0) to its last state with a mask (1)."""

Say = Callable[[str], None]


def analyse(
    settings: ScoreSettings,
    out: Path,
    rows: int,
    seed: int = 0,
    split: str = "test",
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Means over rows, as attention.json has them; `out` gets all files.

    The response is denoised as `settings` say; its states are then looked into with every position
    computed. Raises DataError E1110 where no row can be asked, RunError E1507, and what loading a
    model raises.
    """
    from medv_ray.evaluation.plots import Panel, Series, chart  # matplotlib is an extra

    own_folder(out, "attention.json")
    source = open_rows(settings.archive, split, settings.seed)
    model = settings.model.model_copy(update={"device": settings.device})
    with Predictor.load(model, settings.answer, settings.engine) as predictor:
        looked, lost = look(predictor, source, rows, seed, say)
    if not looked:
        raise DataError(
            "E1110", f"none of {sum(lost.values())} rows can be asked ({', '.join(lost)})."
        )
    found: dict[str, Any] = {
        "format": 1,
        "model_sha256": model_digests(settings.model)[0],
        "sampler": settings.sampler.model_dump(mode="json"),
        "rows": len(looked),
        "input_rows": len(source),
        "sample_seed": seed,
        "quarantined": dict(sorted(lost.items())),
        "moments": list(MOMENTS),
        "groups": list(GROUPS),
        "near_positions": REACH,
        **means(looked),
    }
    layers = range(1, len(found["near"][0]) + 1)
    panels = []
    for name in (*GROUPS, "near", "spread"):
        lines = [
            Series(f"{moment:.0%} of the steps", layers, _curve(found, number, name), points=True)
            for number, moment in enumerate(MOMENTS)
        ]
        panels.append(
            Panel("layer", f"share of attention: {name}" if name != "spread" else name, lines)
        )
    title = "where masked response positions look"
    write_atomic(out / "attention.json", json.dumps(found, indent=1).encode())
    write_atomic(out / "attention.md", markdown(*table(found)).encode())
    write_atomic(out / "attention.svg", chart(title, panels).encode())
    return found


def look(
    predictor: Predictor, source: Rows, rows: int, seed: int, say: Say = lambda _: None
) -> tuple[list[list[Attention]], Counter[str]]:
    """By row, its state at each moment; and quarantined rows by code."""
    looked, lost = [], Counter[str]()
    for number in islice(sample(len(source), seed), rows):
        request = source.read(number).request
        try:
            if isinstance(request, DataError):
                raise request
            looked.append(_row(predictor, request))
        except DataError as error:
            lost[error.code] += 1
        if (len(looked) + sum(lost.values())) % 10 == 0:
            say(f"{len(looked) + sum(lost.values())} of {min(rows, len(source))} rows")
    return looked, lost


def _row(predictor: Predictor, request: Request) -> list[Attention]:
    """The states of one answer, at each moment."""
    length = predictor.engine.spec(request.sampler).gen_length
    states: list[tuple[int | None, ...]] = [(None,) * length]
    for view in predictor.watch(request):
        if None in view.ids:
            states.append(view.ids)
    plain = replace(request, sampler=None)
    last = len(states) - 1
    return [predictor.engine.attend(plain, states[round(moment * last)]) for moment in MOMENTS]


def means(looked: Sequence[Sequence[Attention]]) -> dict[str, Any]:
    """Over rows: `share` [moments][layers][groups] and its deviation between rows, `even` [moments]
    [groups], `near` and `spread` [moments][layers]."""
    share = np.array([[one.shares for one in row] for row in looked])
    return {
        "share": share.mean(0).tolist(),
        "share_sd": share.std(0).tolist(),
        "even": np.array([[one.even for one in row] for row in looked]).mean(0).tolist(),
        "near": np.array([[one.near for one in row] for row in looked]).mean(0).tolist(),
        "spread": np.array([[one.spread for one in row] for row in looked]).mean(0).tolist(),
    }


def _curve(found: dict[str, Any], moment: int, name: str) -> list[float]:
    """By layer, the share of a group, or `near` or `spread`."""
    if name in GROUPS:
        return [layer[GROUPS.index(name)] for layer in found["share"][moment]]
    return list(found[name][moment])


def table(found: dict[str, Any]) -> Cells:
    """Means over moments, by layer; the last line is what even attention would give."""
    share = np.array(found["share"]).mean(0)
    rows = [
        [str(number), *(f"{100 * one:.1f}" for one in layer), f"{100 * near:.1f}", f"{spread:.3f}"]
        for number, (layer, near, spread) in enumerate(
            zip(share, np.mean(found["near"], 0), np.mean(found["spread"], 0), strict=True), 1
        )
    ]
    even = np.mean(found["even"], 0)
    rows.append(["even", *(f"{100 * one:.1f}" for one in even), "-", "1.000"])
    return ["layer", *(f"{group}, %" for group in GROUPS), f"within {REACH}, %", "spread"], rows
