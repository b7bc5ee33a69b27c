"""Line charts as SVG text, for run folders and reports: no script, no font from elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from medv_ray.errors import SettingsError

try:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator
except ImportError:
    needs = "charts need the package matplotlib: pip install 'medv-ray[report]'."
    raise SettingsError("E1003", needs) from None

COLOURS = ("#0b6e99", "#c8553d", "#5b8c5a", "#7d5ba6", "#b58900", "#444444")
INCHES = (6.4, 3.6)


class Series(NamedTuple):
    """One curve. `low` and `high`, of the same length as `y`, are drawn as a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    points: bool = False
    """A mark at each measured point."""


class Panel(NamedTuple):
    """One pair of axes."""

    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    x_limits: tuple[float, float] | None = None
    """So that panels below one another have one scale; None: by the values."""


def chart(title: str, panels: Sequence[Panel]) -> str:
    """SVG of panels below one another. The same values give the same text."""
    figure = Figure(figsize=(INCHES[0], INCHES[1] * len(panels)), layout="constrained")
    FigureCanvasSVG(figure)
    figure.suptitle(_plain(title), fontsize=11)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, number)
        for colour, one in zip(_colours(len(panel.series)), panel.series, strict=True):
            mark = "o" if one.points or len(one.x) == 1 else ""
            name = _plain(one.name)
            axes.plot(one.x, one.y, color=colour, label=name, lw=1.4, marker=mark, ms=3.5)
            if one.low:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
        if panel.log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for one in panel.series for x in one.x})
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
        elif all(float(x).is_integer() for one in panel.series for x in one.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no layer 2.5
        if panel.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        if panel.x_limits is not None:
            left, right = panel.x_limits
            margin = 0.02 * (right - left)
            axes.set_xlim(left - margin, right + margin)
        axes.set_xlabel(_plain(panel.x_label))
        axes.set_ylabel(_plain(panel.y_label))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.series) > 1:
            axes.legend(fontsize=8, frameon=False)
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": "medv_ray"}):  # ids are random without
        figure.savefig(text, format="svg", metadata=nothing)
    # the document type points to another host
    return re.sub(r"<!DOCTYPE[^>]*>\n?", "", text.getvalue())


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _plain(text: str) -> str:
    """Without the marks by which matplotlib sets formulas."""
    return text.replace("$", r"\$")
