"""Values of a grey picture before any window, in 16 bits. H rows, W columns."""

from __future__ import annotations

import math
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
    tag,
    upright,
)

_MOST = 2**16 - 1


@dataclass(frozen=True, eq=False)
class GreyValues:
    """`low + step * number` for each number."""

    numbers: NDArray[np.uint16]
    """uint16[H, W]."""
    low: float
    step: float
    """1 for whole numbers that fit; else a 65535th of their range."""
    window: tuple[float, float]
    """Level and width by which the picture is shown; its whole range where that is no window."""
    inverted: bool = False
    """Black and white change places behind the window."""
    unit: str = ""
    """`HU`, Hounsfield units, or empty."""

    @classmethod
    def of(
        cls,
        values: NDArray[np.float64],
        window: tuple[float, float] | None = None,
        inverted: bool = False,
        unit: str = "",
        shown: tuple[float, float] | None = None,
    ) -> Self:
        """Of finite values float64[H, W]; `shown`: black and white where there is no window."""
        low, high = float(values.min()), float(values.max())
        is_whole = high - low <= _MOST and bool((values == np.rint(values)).all())
        step = 1.0 if is_whole else (high - low) / _MOST
        black, white = shown or (low, high)
        if window is None and is_whole:  # DICOM's rule for whole numbers, PS3.3 C.11.2.1.2
            window = ((black + white) / 2 + 0.5, max(1.0, white - black + 1))
        numbers = np.rint((values - low) / step).astype(np.uint16)
        exact = ((black + white) / 2, white - black)
        return cls(numbers, low, step, window or exact, inverted, unit)

    def every(self, count: int) -> Self:
        """Each so many-th row and column."""
        return replace(self, numbers=np.ascontiguousarray(self.numbers[::count, ::count]))

    def facts(self) -> dict[str, Any]:
        """All but the numbers, for JSON."""
        return {
            "shape": self.numbers.shape,
            "low": self.low,
            "step": self.step,
            "window": self.window,
            "inverted": self.inverted,
            "unit": self.unit,
        }

    @classmethod
    def told(cls, numbers: NDArray[np.uint16], facts: dict[str, Any]) -> Self:
        """From uint16[H, W] and `facts`. Raises ValueError, TypeError, KeyError for odd ones."""
        low, step = float(facts["low"]), float(facts["step"])
        level, width = map(float, facts["window"])
        if not all(map(math.isfinite, (low, step, level, width))):
            raise ValueError("values that are no numbers")
        return cls(
            numbers, low, step, (level, width), bool(facts["inverted"]), str(facts["unit"])[:16]
        )


def of_picture(source: ImageFile.ImageFile) -> GreyValues | None:
    """Of a grey picture of 16 or 32 bits or of floats that Pillow reads; None for others."""
    if source.mode[0] not in "IF":
        return None
    source.load()
    values: NDArray[Any] = np.asarray(source)
    unsigned = tag(source, BITS_PER_SAMPLE) == (32,) and 2 not in tag(source, SAMPLE_FORMAT)
    if source.mode == "I" and unsigned:
        values = values.view(np.uint32)
    made = GreyValues.of(values.astype(np.float64), inverted=tag(source, PHOTOMETRIC) == (0,))
    turn = orientation(source) or 1
    if turn == 1:
        return made
    return replace(made, numbers=np.asarray(upright(Image.fromarray(made.numbers), turn)))
