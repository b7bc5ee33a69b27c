"""Values of a grey picture before any window, in 16 bits. H rows, W columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from medv_ray.data.pixels import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    orientation,
    strips,
    tag,
    upright,
)

_MOST = 2**16 - 1


@dataclass(frozen=True, eq=False, kw_only=True)
class GreyValues:
    """`low + step * number` for each number, and what a window of them must not lose."""

    numbers: NDArray[np.uint16]
    """uint16[H, W]."""
    low: float
    step: float
    """1 for whole numbers that fit; else a 65535th of their range."""
    window: tuple[float, float]
    """Level and width by which the picture is shown; its whole range where that is no window."""
    function: str
    """`LINEAR`, `LINEAR_EXACT` or `SIGMOID`: what a level and a width mean (PS3.3 C.11.2.1)."""
    range: tuple[float, float]
    """Lowest and highest value; padding left out."""
    inverted: bool = False
    """Black and white change places behind the window."""
    unit: str = ""
    """`HU`, Hounsfield units, or empty."""
    overlay: NDArray[np.bool_] | None = None
    """bool[H, W]; drawn white over every window."""

    @classmethod
    def of(
        cls,
        stored: NDArray[Any],
        meaning: Callable[[NDArray[Any]], NDArray[np.float64]],
        window: tuple[float, float] | None = None,
        function: str = "LINEAR",
        shown: tuple[float, float] | None = None,
        **more: Any,
    ) -> Self:
        """Of any[H, W], whose `meaning` are finite values float64[h, W], some rows at a time.

        `shown`: black and white where there is no window. Raises what `meaning` raises.
        """
        parts = (meaning(stored[rows]) for rows in strips(stored))
        ends = [(p.min(), p.max(), (p == np.rint(p)).all()) for p in parts]
        low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
        is_whole = all(e[2] for e in ends)
        shown = shown or (low, high)
        # padding of 32 bits must not cost the values their steps
        if is_whole and high - low > _MOST >= shown[1] - shown[0]:
            low, high = shown
        is_whole = is_whole and high - low <= _MOST
        step = 1.0 if is_whole or high == low else (high - low) / _MOST
        if window is None and is_whole:  # the rule for whole numbers, of which both ends count
            window, function = (sum(shown) / 2 + 0.5, max(1.0, shown[1] - shown[0] + 1)), "LINEAR"
        elif window is None:
            window, function = (sum(shown) / 2, shown[1] - shown[0]), "LINEAR_EXACT"
        numbers = np.empty(stored.shape, np.uint16)
        for rows in strips(stored):
            numbers[rows] = np.rint((np.clip(meaning(stored[rows]), low, high) - low) / step)
        return cls(
            numbers=numbers, low=low, step=step, window=window, function=function, range=shown,
            **more,
        )  # fmt: skip

    def reduced(self, count: int) -> Self:
        """So many times shorter sides: means of numbers, and the overlay where there was any."""
        numbers = Image.fromarray(self.numbers.astype(np.int32)).reduce(count)
        overlay = None
        if self.overlay is not None:
            some = Image.fromarray(self.overlay.astype(np.float32)).reduce(count)
            overlay = np.asarray(some) > 0
        return replace(self, numbers=np.asarray(numbers).astype(np.uint16), overlay=overlay)

    def facts(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        return {
            "shape": self.numbers.shape,
            "low": self.low,
            "step": self.step,
            "window": self.window,
            "function": self.function,
            "range": self.range,
            "inverted": self.inverted,
            "unit": self.unit,
            "overlay": self.overlay is not None,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any], pixels: memoryview) -> tuple[Self, int]:
        """From `facts` and bytes that begin with the arrays, and how many of these were read.

        Raises ValueError, TypeError, KeyError for odd ones.
        """
        rows, columns = map(int, facts["shape"])
        low, step = float(facts["low"]), float(facts["step"])
        level, width = map(float, facts["window"])
        least, most = map(float, facts["range"])
        if not all(map(math.isfinite, (low, step, level, width, least, most))):
            raise ValueError("values that are no numbers")
        if facts["function"] not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise ValueError("no function of a window")
        numbers = np.frombuffer(pixels, "<u2", rows * columns)
        size, overlay = numbers.nbytes, None
        if facts["overlay"]:
            overlay = np.frombuffer(pixels, np.uint8, rows * columns, size) > 0
            size += overlay.nbytes
            overlay = overlay.reshape(rows, columns)
        found = cls(
            numbers=numbers.reshape(rows, columns),
            low=low,
            step=step,
            window=(level, width),
            function=facts["function"],
            range=(least, most),
            inverted=bool(facts["inverted"]),
            unit=str(facts["unit"])[:16],
            overlay=overlay,
        )
        return found, size

    def tobytes(self) -> bytes:
        """The arrays, as `from_facts` reads them."""
        drawn = b"" if self.overlay is None else self.overlay.astype(np.uint8).tobytes()
        return self.numbers.astype("<u2").tobytes() + drawn


def of_picture(source: ImageFile.ImageFile) -> GreyValues | None:
    """Of a grey picture of 16 or 32 bits or of floats that Pillow reads; None for others."""
    if source.mode[0] not in "IF":
        return None
    source.load()
    values: NDArray[Any] = np.asarray(source)
    unsigned = tag(source, BITS_PER_SAMPLE) == (32,) and 2 not in tag(source, SAMPLE_FORMAT)
    if source.mode == "I" and unsigned:
        values = values.view(np.uint32)
    inverted = tag(source, PHOTOMETRIC) == (0,)
    made = GreyValues.of(values, lambda strip: strip.astype(np.float64), inverted=inverted)
    turn = orientation(source) or 1
    if turn == 1:
        return made
    return replace(made, numbers=np.asarray(upright(Image.fromarray(made.numbers), turn)))
