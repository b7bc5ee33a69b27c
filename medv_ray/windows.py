"""Windows that a user may ask for: which range of values becomes black to white.

Centres and widths are in Hounsfield units and for CT alone. They vary between hospitals; these are
the typical ones of Radiopaedia, "Windowing (CT)", https://radiopaedia.org/articles/windowing-ct.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

PRESETS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (50, 400),
    "abdomen": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
    "temporal_bone": (600, 2800),
    "spine": (50, 250),
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (40, 40),
}
"""Centre (level) and width."""
FILE = "file"
_NUMBER = re.compile(r"number:([1-9][0-9]{0,3})")


class Window(NamedTuple):
    """What was asked for: the file's window of a number, or a centre and a width."""

    number: int = 1
    """Of the file's own windows, from 1; it counts where there is no centre."""
    centre_width: tuple[float, float] | None = None
    preset: str = ""
    """Name of a preset, which is for CT alone."""


def parse(text: str) -> Window:
    """`file`, `number:2`, a preset's name or `level/width` (`40/400`).

    Raises ValueError, whose text names what is allowed.
    """
    word = text.strip().lower().replace("-tissue", "_tissue").replace("-bone", "_bone")
    if word == FILE:
        return Window()
    if word in PRESETS:
        return Window(0, PRESETS[word], word)
    number = _NUMBER.fullmatch(word)
    if number:
        return Window(int(number[1]))
    try:
        level, width = (float(part) for part in word.split("/"))
    except ValueError:
        level = width = math.nan
    if not math.isfinite(level) or not 1 <= width < math.inf:
        names = ", ".join(PRESETS)
        raise ValueError(f"must be file, number:2, level/width with a width from 1, or {names}")
    return Window(0, (level, width))
