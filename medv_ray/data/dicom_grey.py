"""Grey DICOM pixels to 8 bits: modality values, then the file's window, then inversion.

The order and formulas of DICOM PS3.3 C.11.1 and C.11.2; equal to dcmtk's renders within one grey
level. H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.data.dicom_tables import Table
from medv_ray.data.grey_values import GreyValues
from medv_ray.data.pixels import strips
from medv_ray.dicom_objects import code_of, coded, is_ct
from medv_ray.errors import DataError
from medv_ray.windows import Window

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Look:
    """How a header wants its stored values shown."""

    slope: float = 1.0
    intercept: float = 0.0
    modality: Table | None = None
    """In place of slope and intercept."""
    voi: Table | None = None
    """In place of a window."""
    window: tuple[float, float] | None = None
    """Centre and width of the first one."""
    function: str = "LINEAR"
    padding: tuple[int, int] | None = None
    """Stored values, both ends included, that stand for no measurement."""
    inverted: str = ""
    """The word for it."""

    shown_by: str = "1"
    """The word for the window: its number, `set` or a preset's name."""
    words: tuple[str, ...] = ()
    """For what was asked and not done."""

    @classmethod
    def of(cls, ds: Dataset, frame: int = 0, asked: Window | None = None) -> Look:
        """For a frame, counted from 0. Raises DataError E1207 (values that no picture can be shown
        by) and E1211.
        """
        asked = asked or Window()
        rescale = _macro(ds, "PixelValueTransformationSequence", frame)
        shown = _macro(ds, "FrameVOILUTSequence", frame)
        slope, intercept, words = _rescaling(rescale)
        inverted = _inversion(ds)
        if _is_monochrome1(ds) and not inverted:
            words = (*words, "presentation_identity")
        look = cls(
            slope=slope,
            intercept=intercept,
            modality=_table(ds, "ModalityLUTSequence", ds.get("PixelRepresentation") == 1),
            padding=_padding(ds),
            inverted=inverted,
            words=words,
        )
        if asked.centre_width is None:
            return look._as_the_file_says(ds, shown, asked.number)
        if asked.preset and not _in_hounsfield_units(ds, rescale):
            look = replace(look, words=(*words, f"window_not_applied:{asked.preset}"))
            return look._as_the_file_says(ds, shown, 1)
        return replace(look, window=asked.centre_width, shown_by=asked.preset or "set")

    def _as_the_file_says(self, ds: Dataset, shown: Dataset, number: int) -> Look:
        """With the VOI lookup table or window 1; a number above that asks for another window."""
        function = code_of(shown, "VOILUTFunction") or "LINEAR"
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise DataError("E1211", "the DICOM header's VOILUTFunction has no stated rule.")
        centres, widths = _numbers(shown, "WindowCenter"), _numbers(shown, "WindowWidth")
        count = min(len(centres), len(widths))  # an empty one counts as none
        words = self.words
        if number > max(count, 1):
            number, words = 1, (*words, f"window_not_applied:number:{number}")
        negative = self.modality is None and (self.intercept < 0 or self.slope < 0)
        signed = negative or (self.modality is None and ds.get("PixelRepresentation") == 1)
        voi = _table(shown, "VOILUTSequence", signed) if number == 1 else None
        window = (centres[number - 1], widths[number - 1]) if count and voi is None else None
        if window == (0, 0):  # some writers' way to say none
            window, words = None, (*words, "window_unset")
        if window is not None and (window[1] <= 0 or (function == "LINEAR" and window[1] < 1)):
            detail = f"{window[1]:.10g}, which shows nothing."
            raise DataError("E1207", f"the DICOM header's WindowWidth is {detail}")
        return replace(
            self, voi=voi, window=window, function=function, shown_by=str(number), words=words
        )

    def modality_values(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """any[H, W] as stored -> float64[H, W]. Raises DataError E1208 for more than float64."""
        if self.modality is not None:
            return _look_up(stored, self.modality)
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored.astype(np.float64) * self.slope + self.intercept
        if not np.isfinite(values).all():
            raise DataError("E1208", "the DICOM header's rescaling gives infinite values.")
        return values

    def grey_values(
        self,
        stored: NDArray[Any],
        ds: Dataset,
        frame: int = 0,
        drawn: NDArray[np.bool_] | None = None,
    ) -> GreyValues:
        """Of stored integers int[H, W] and overlays bool[H, W]. Raises DataError E1208."""
        rescale = _macro(ds, "PixelValueTransformationSequence", frame)
        return GreyValues.of(
            stored,
            self.modality_values,
            window=self.window,
            function=self.function,
            shown=_range(stored, self),
            inverted=bool(self.inverted),
            unit="HU" if _in_hounsfield_units(ds, rescale) else "",
            overlay=drawn,
        )


def to_grey(stored: NDArray[Any], look: Look) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[H, W] of stored integers [H, W], and words; rounded half to even.

    Raises DataError E1208.
    """
    low = high = 0.0
    if look.voi is None and look.window is None:
        low, high = _range(stored, look)

    def shades(values: NDArray[Any]) -> NDArray[np.uint8]:
        values = look.modality_values(values)
        if look.voi is not None:
            shown = _look_up(values, look.voi) * (255 / (2.0**look.voi.bits - 1))
        elif look.window is not None:
            shown = _windowed(values, look.window, look.function)
        else:
            shown = (values - low) * (255 / (high - low) if high > low else 0)
        shown = np.rint(np.clip(shown, 0, 255))
        return (255 - shown if look.inverted else shown).astype(np.uint8)

    grey = np.empty(stored.shape, np.uint8)
    least, most = int(stored.min()), int(stored.max())
    if most - least < min(stored.size // 2, 2**16):  # each value once, not each pixel
        of_value = shades(np.arange(least, most + 1))
        for rows in strips(stored):
            grey[rows] = of_value[stored[rows].astype(np.int64) - least]
    else:
        for rows in strips(stored):
            grey[rows] = shades(stored[rows])
    words = [*look.words, *(["modality_lut"] if look.modality is not None else [])]
    if look.voi is not None:
        words.append("dicom_voi_lut:1")
    elif look.window is not None:
        kind = "" if look.function == "LINEAR" else ":" + look.function.lower()
        numbers = f"{look.window[0]:.10g}:{look.window[1]:.10g}{kind}"
        words.append(f"dicom_window:{look.shown_by}:{numbers}")
    else:
        words.append(f"dicom_range:{low:.10g}..{high:.10g}")
    return grey, [*words, *([look.inverted] if look.inverted else [])]


def _windowed(
    x: NDArray[np.float64], window: tuple[float, float], function: str
) -> NDArray[np.float64]:
    """0 .. 255 and beyond; the caller clips. PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    centre, width = window
    with np.errstate(over="ignore"):
        if function == "SIGMOID":
            return 255 / (1 + np.exp(-4 * (x - centre) / width))
        if function == "LINEAR_EXACT":
            return ((x - centre) / width + 0.5) * 255
        if width == 1:  # a threshold
            return np.where(x <= centre - 0.5, 0.0, 255.0)
        return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


def _range(stored: NDArray[Any], look: Look) -> tuple[float, float]:
    """Lowest and highest modality value, padding left out."""
    kept = stored
    if look.padding is not None:
        kept = stored[(stored < look.padding[0]) | (stored > look.padding[1])]
        kept = kept if kept.size else stored
    ends = np.array([kept.min(), kept.max()])
    values = look.modality_values(ends if look.modality is None else np.unique(kept))
    return float(values.min()), float(values.max())


def _look_up(x: NDArray[Any], table: Table) -> NDArray[np.float64]:
    index = np.rint(np.clip(x.astype(np.float64) - table.first, 0, len(table.values) - 1))
    return table.values[index.astype(np.int64)]


def _macro(ds: Dataset, name: str, frame: int) -> Dataset:
    """Where enhanced objects keep it: the frame's own groups, the shared ones, the top."""
    for groups, place in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        for group in list(ds.get(groups) or ())[place : place + 1]:
            for macro in list(group.get(name) or ())[:1]:
                return macro  # type: ignore[no-any-return]
    return ds


def _rescaling(ds: Dataset) -> tuple[float, float, tuple[str, ...]]:
    """Slope, intercept and words. One without the other is no rescaling, as for dcmtk, too.

    Raises DataError E1207 and E1208 for a slope of no sense, also for one that is alone.
    """
    slopes, intercepts = _numbers(ds, "RescaleSlope"), _numbers(ds, "RescaleIntercept")
    if slopes[:1] == [0]:
        raise DataError("E1207", "the DICOM header's RescaleSlope is 0.")
    if not np.isfinite((slopes[0] if slopes else 1.0) * 2.0**32):
        raise DataError("E1208", "the DICOM header's rescaling gives infinite values.")
    if slopes and intercepts:
        return slopes[0], intercepts[0], ()
    return 1.0, 0.0, ("rescale_incomplete",) if slopes or intercepts else ()


def _numbers(ds: Dataset, name: str) -> list[float]:
    """All values. Raises DataError E1207 for one that is no finite number."""
    try:
        value = ds.get(name)
        several = not (value is None or np.isscalar(value)) and hasattr(value, "__len__")
        values = list(value) if several else [] if value in (None, "") else [value]
        while values and values[-1] in (None, ""):  # behind a last backslash
            del values[-1]
        numbers = [float(one) for one in values]
    except Exception:  # conversion of a damaged element raises many types
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise DataError("E1207", f"the DICOM header's {name} is no finite number.")
    return numbers


def _table(ds: Dataset, name: str, signed: bool) -> Table | None:
    """The first table of a sequence."""
    for item in list(ds.get(name) or ())[:1]:
        table = Table.of(item, "LUT{}", signed)
        if table is not None and name == "VOILUTSequence" and table.values.max() >= 2**table.bits:
            raise DataError("E1207", "a lookup table of the DICOM header holds more than its bits.")
        return table
    return None


def _inversion(ds: Dataset) -> str:
    """The word for it. A presentation's shape decides where it is stated (PS3.3 C.11.6)."""
    shape = code_of(ds, "PresentationLUTShape")
    if _is_monochrome1(ds):
        return "" if shape == "IDENTITY" else "monochrome1_inverted"
    return "presentation_inverted" if shape == "INVERSE" else ""


def _is_monochrome1(ds: Dataset) -> bool:
    return code_of(ds, "PhotometricInterpretation") == "MONOCHROME1"


def _in_hounsfield_units(ds: Dataset, rescale: Dataset) -> bool:
    """Whether modality values are of CT: PS3.3 C.8.2.1.1.2 has RescaleType only where they are
    others.
    """
    kind = coded(rescale.get("RescaleType")) or "HU"
    return is_ct(ds) and kind == "HU" and rescale.get("RescaleIntercept") is not None


def _padding(ds: Dataset) -> tuple[int, int] | None:
    """Lowest and highest stored value that stand for no measurement."""
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    try:
        ends = [int(value), int(ds.get("PixelPaddingRangeLimit", value))]
        signed, size = ds.get("PixelRepresentation") == 1, 2 ** int(ds.BitsAllocated)
    except (TypeError, ValueError):
        return None
    # some writers put a negative number into an element that has no sign, and the reverse
    ends = [end % size - (size if signed and end % size >= size // 2 else 0) for end in ends]
    return min(ends), max(ends)
