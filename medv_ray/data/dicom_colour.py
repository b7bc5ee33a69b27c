"""Colour DICOM pixels to 8-bit RGB: palettes, YBR, more than 8 bits. PS3.3 C.7.6.3.1 and C.7.9.

H rows, W columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.data.dicom_tables import Table
from medv_ray.data.pixels import stretch, strips
from medv_ray.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# PS3.3 C.7.6.3.1.2; of the partial ones black is 16, white 235
_FULL = np.array(
    [[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]]
)
_PARTIAL = np.array([[1.1644, 0, 1.5960], [1.1644, -0.3917, -0.8130], [1.1644, 2.0173, 0]])


def by_palette(values: NDArray[Any], ds: Dataset) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[H, W, 3] of stored values [H, W], and words.

    Raises DataError E1207 for a palette that is absent, cut short or holds more than its bits.
    """
    tables = [
        Table.of(ds, f"{colour}PaletteColorLookupTable{{}}", ds.get("PixelRepresentation") == 1)
        for colour in ("Red", "Green", "Blue")
    ]
    if None in tables:
        raise DataError("E1207", "the DICOM object names a palette that it does not hold.")
    words = ["palette"]
    found = [table for table in tables if table is not None]
    # 8-bit colours in wide cells
    narrow = max(int(table.values.max()) for table in found) < 256
    if narrow and any(table.bits > 8 for table in found):
        words.append("palette8")
    over = not narrow and any(table.values.max() >= 2**table.bits for table in found)
    if over:  # colours of 16 bits under a descriptor that says fewer
        entries = np.concatenate([table.values for table in found])
        if (entries % 256).any() and (entries % 257).any():
            raise DataError("E1207", "a palette of the DICOM header holds more than its bits.")
        words.append("palette16")
    result = np.empty((*values.shape, 3), np.uint8)
    for channel, table in enumerate(found):
        shift = 0 if narrow else (16 if over else table.bits) - 8
        bytes_of = (table.values.astype(np.int64) >> max(shift, 0)).astype(np.uint8)
        for rows in strips(values):
            index = np.clip(values[rows].astype(np.int64) - table.first, 0, len(bytes_of) - 1)
            result[rows, :, channel] = bytes_of[index]
    return result, words


_TOWARDS_DCMTK = {
    "YBR_FULL": np.array([0.35, -0.03, 0.45]),
    "YBR_FULL_422": np.array([0.2, -0.54, 0.4]),
}


def to_rgb(
    values: NDArray[Any], colours: str, bits: int, from_jpeg: bool
) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[H, W, 3] of stored values [H, W, 3] in `colours`, and words; `bits` of them stored.

    Signed ones are shifted: PS3.3 has none, and dcmtk does so.
    """
    # the wavelet decoder has undone ICT and RCT
    is_ybr = colours.startswith("YBR") and colours not in ("YBR_ICT", "YBR_RCT")
    result = np.empty(values.shape, np.uint8)
    for rows in strips(values):
        strip = values[rows]
        if strip.dtype.kind == "i":
            strip = strip.astype(np.int64) + 2 ** (bits - 1)
        if is_ybr:
            strip = _from_ybr(strip, colours, bits, from_jpeg)
        result[rows] = strip if bits == 8 else stretch(strip, 0, 2**bits - 1)
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return result, [f"colour{size}_scaled:0..{2**bits - 1}"] if bits != 8 else []


def _from_ybr(values: NDArray[Any], colours: str, bits: int, from_jpeg: bool) -> NDArray[Any]:
    partial = "PARTIAL" in colours
    middle = 2 ** (bits - 1)
    offset = np.array([2.0 ** (bits - 4) if partial else 0, middle, middle])
    rgb = (values - offset) @ (_PARTIAL if partial else _FULL).T
    if not from_jpeg and not partial and bits == 8:
        # dcmtk cuts off fractions and puts the middle at 127.5; this much towards its tables keeps
        # a result within one level of theirs, and about one of the formula
        rgb += _TOWARDS_DCMTK[colours]
    shown: NDArray[Any] = np.rint(np.clip(rgb, 0, 2**bits - 1)).astype(values.dtype)
    return shown
