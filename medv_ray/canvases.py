"""How a picture is cut into tiles, and on which canvas: the same choice where it is cut and where
its tiles are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TileSettings:
    """How a picture is cut; comes from the checkpoint's config and the user's ImageSettings."""

    aspect: Literal["square", "pad", "anyres_max"]
    tile: int = 384
    """Side of a tile in pixels."""
    grid: tuple[tuple[int, int], ...] = ()
    """Candidate canvases (width, height) in pixels, multiples of `tile`; for `anyres_max` only."""


def best_canvas(size_wh: tuple[int, int], grid: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas (width, height) on which most of the picture's own pixels fit, then the one with
    least waste, then the first.

    Raises ValueError for an empty grid. Source: LLaDA-V mm_utils.py (select_best_resolution).
    """
    width, height = size_wh

    def merit(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - canvas[0] * canvas[1]

    return max(grid, key=merit)  # max keeps the first of equals
