r"""The figures of docs/benchmarks.md as one picture: benchmarks/results/*.jsonl -> an SVG.

    pip install 'medv-ray[report]'
    python benchmarks/plot.py --out docs/benchmarks.svg

The last line of each kind is drawn: rows a second of the engine's presets with their agreement, and
how many times as fast the exact sampler, its dual cache and the selection are as what they are
measured against.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).with_name("results")
INK, BLUE, GREY = "#1b2733", "#2b6cb0", "#a3b1bf"


def last(file: str, **wanted: Any) -> dict[str, Any]:
    """The latest line of a results file with these values."""
    lines = [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]
    fitting = [line for line in lines if all(line.get(k) == v for k, v in wanted.items())]
    return dict(fitting[-1])


def draw_engine(axes: Axes) -> None:
    """Rows a second, with the share of answers that equal those of `exact`."""
    arms = last("engine.jsonl", bench="engine")["arms"]
    names = ["reference", "exact", "dual", "fast", "turbo"]
    rates = [arms[name]["rows_s"] for name in names]
    low = [rate["median"] - rate["min"] for rate in rates]
    high = [rate["max"] - rate["median"] for rate in rates]
    medians = [rate["median"] for rate in rates]
    axes.bar(names, medians, yerr=[low, high], color=[GREY, *[BLUE] * 4], ecolor=INK)
    for place, (name, rate) in enumerate(zip(names, rates, strict=True)):
        equal = arms[name]["agreement"]["equal"]
        label = f"{rate['median']:.0f}\n{100 * equal:.1f} %"
        axes.text(place, rate["max"], label, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set_ylim(0, max(rate["max"] for rate in rates) * 1.2)
    axes.set_ylabel("rows/s, one thread")
    axes.set_title("The toy's archive, end to end (%: answers equal to exact)", fontsize=10)


def draw_ratios(axes: Axes) -> None:
    """Times as fast, with the range of the repeats where there is one."""
    bars: list[tuple[str, float, list[float] | None]] = []
    for vocabulary in (126_464, 8_192):
        exact = last("sampler.jsonl", bench="sampler_exact", vocabulary=vocabulary)
        dual = last("sampler.jsonl", bench="sampler_dual", vocabulary=vocabulary)
        v = f"V = {vocabulary:,}"
        bars.append((f"exact / reference, {v}", exact["ratio_of_best"], exact["ratio_range"]))
        bars.append((f"dual / full recompute, {v}", dual["ratio"], dual["ratio_range"]))
    bars.sort(key=lambda bar: bar[1])
    axes.barh([name for name, *_ in bars], [ratio for _, ratio, _ in bars], color=BLUE)
    for place, (_, ratio, around) in enumerate(bars):
        said = f"{ratio:.1f}x" + (f"  ({around[0]:.1f} - {around[1]:.1f})" if around else "")
        axes.text(ratio, place, f" {said}", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, max(ratio for _, ratio, _ in bars) * 1.45)
    axes.set_xlabel("times as fast, process CPU seconds, one thread")
    axes.set_title("The sampler alone, random weights", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mpl.rcParams |= {"svg.hashsalt": "medv_ray", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams["axes.spines.right"] = False
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    draw_engine(left)
    draw_ratios(right)
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
