"""Overlays of DICOM objects: planes of one bit, drawn white over a grey picture.

PS3.3 C.9.2 (groups 6000, 6002 .. 601E). Those of type R are not: they mark a region for its
statistics. Nor are those that do not say where they lie. H rows, W columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.dicom_objects import coded

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

GROUPS = range(0x6000, 0x6020, 2)
_ROWS, _COLUMNS, _FRAMES, _TYPE, _ORIGIN, _FIRST = 0x10, 0x11, 0x15, 0x40, 0x50, 0x51
_BITS, _POSITION, _DATA = 0x100, 0x102, 0x3000


def present(ds: Dataset) -> bool:
    """Whether a header names an overlay."""
    return any(
        _get(ds, group, _ROWS) is not None or (group << 16 | _DATA) in ds for group in GROUPS
    )


def draw(
    grey: NDArray[np.uint8], ds: Dataset, frame: int, words: NDArray[Any] | None, big: bool
) -> tuple[int, int]:
    """Set the pixels of `grey` uint8[H, W] to 255 where an overlay is; how many planes were drawn
    and how many were not.

    `frame` counts from 0. `words`: unsigned[H, W], the pixels as stored, for planes that lie in
    their unused bits; None where they are not at hand.
    """
    drawn = failed = 0
    for group in GROUPS:
        if _get(ds, group, _ROWS) is None and (group << 16 | _DATA) not in ds:
            continue
        if coded(_get(ds, group, _TYPE)) == "R":
            failed += 1
            continue
        try:
            plane = _plane(ds, group, frame, words, big)
            top, left = (int(value) - 1 for value in _get(ds, group, _ORIGIN))
        except (
            Exception
        ):  # an element that is absent or of no sense raises many types; the picture is still good
            failed += 1
            continue
        if plane is None:  # for other frames
            continue
        drawn += 1
        height, width = grey.shape
        shown = plane[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        part = grey[max(top, 0) :, max(left, 0) :][: shown.shape[0], : shown.shape[1]]
        part[shown[: part.shape[0], : part.shape[1]]] = 255
    return drawn, failed


def _plane(
    ds: Dataset, group: int, frame: int, words: NDArray[Any] | None, big: bool
) -> NDArray[np.bool_] | None:
    """bool[rows, columns] for a frame; None where the overlay is for others.

    Raises many types for one that cannot be read.
    """
    rows, columns = int(_get(ds, group, _ROWS)), int(_get(ds, group, _COLUMNS))
    frames = _get(ds, group, _FRAMES)
    place = 0
    if frames is not None:
        place = frame + 1 - int(_get(ds, group, _FIRST) or 1)
        if not 0 <= place < int(frames):
            return None
    held = _get(ds, group, _DATA)
    if held is None:
        if words is None:
            raise ValueError("it lies in the unused bits of pixels that were compressed")
        return (words >> int(_get(ds, group, _POSITION)) & 1).astype(bool)
    raw = np.frombuffer(held, np.uint8)
    if big and ds[group, _DATA].VR == "OW":
        raw = raw[: len(raw) // 2 * 2].view(np.uint16).byteswap().view(np.uint8)
    first = place * rows * columns
    low, high = first // 8, -(-(first + rows * columns) // 8)
    if high > len(raw):
        raise ValueError("cut short")
    bits = np.unpackbits(raw[low:high], bitorder="little")[first - 8 * low :][: rows * columns]
    return bits.reshape(rows, columns).astype(bool)


def _get(ds: Dataset, group: int, element: int) -> Any:
    found = ds.get((group, element))
    return None if found is None else found.value
