"""Where a slide shows tissue: a mask of a coarse picture of it.

Glass is grey whatever its brightness, and stains are not: a pixel is tissue when the largest of its
three values is far enough above the smallest (its chroma). How far, Otsu's threshold says for each
slide, held between bounds, so that a slide of glass alone has no tissue and one of tissue alone is
all tissue. Marks of pens are left out as far as their colour tells: chroma that no stain reaches,
or green far above red and blue; but not where most of what is coloured would go with them. Numbers
are those of 8-bit RGB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

TISSUE_MPP = 8.0
"""Micrometres a pixel of the picture that is looked at; 1.25x."""
LEAST, MOST = 12, 30
"""Bounds of the threshold: chroma of a white slide's tint, and of a pale stain."""
PEN_CHROMA = 150
PEN_GREEN = 40
"""How far green stands above the others in a green pen; light green stains stay below."""


def tissue_of(picture: Image.Image) -> NDArray[np.bool_]:
    """bool[H, W] of an RGB picture; specks under about five pixels are no tissue."""
    channels = np.asarray(picture, np.int16)
    red, green, blue = channels[..., 0], channels[..., 1], channels[..., 2]
    chroma = channels.max(axis=-1) - channels.min(axis=-1)
    threshold = min(max(otsu(chroma), LEAST), MOST)
    coloured = chroma > threshold
    pen = (chroma >= PEN_CHROMA) | (green - np.maximum(red, blue) >= PEN_GREEN)
    if 2 * np.count_nonzero(pen) < np.count_nonzero(coloured):
        coloured &= ~pen
    mask = Image.fromarray(coloured.astype(np.uint8) * 255)
    return np.asarray(mask.filter(ImageFilter.MedianFilter(3))) > 0


def otsu(values: NDArray[np.int16]) -> int:
    """The value v of 0..255 for which those of int16[...] `<= v` and `> v` differ most; 0 where all
    are equal.

    Source: Otsu, A Threshold Selection Method from Gray-Level Histograms (1979).
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(len(counts)))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))


def shares(mask: NDArray[np.bool_], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[N]: tissue's share of each box of float64[N, 4] (left, upper, right, lower) in pixels
    of the mask; what lies beyond the mask is none. A box covers one pixel at least."""
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    left, upper, right, lower = np.rint(boxes).astype(np.int64).T
    right, lower = np.maximum(right, left + 1), np.maximum(lower, upper + 1)
    area = (right - left) * (lower - upper)
    x0, x1 = np.clip(left, 0, width), np.clip(right, 0, width)
    y0, y1 = np.clip(upper, 0, height), np.clip(lower, 0, height)
    found = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return np.asarray(found / area, np.float64)
