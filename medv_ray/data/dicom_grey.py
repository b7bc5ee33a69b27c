"""Grey DICOM pixels to 8 bits: modality values, then the file's window, then inversion.

The order and formulas of DICOM PS3.3 C.11.1 and C.11.2; equal to dcmtk's renders within one grey
level. H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medv_ray.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_STRIP_ROWS = 256  # float64 copies stay small


@dataclass(frozen=True, eq=False)
class Table:
    """A lookup table: `values[x - first]`, clamped at both ends."""

    first: int
    values: NDArray[np.float64]
    bits: int


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

    @classmethod
    def of(cls, ds: Dataset) -> Look:
        """Raises DataError E1207 (values that no picture can be shown by) and E1211."""
        rescale = _macro(ds, "PixelValueTransformationSequence")
        shown = _macro(ds, "FrameVOILUTSequence")
        slope = _number(rescale, "RescaleSlope", 1.0)
        intercept = _number(rescale, "RescaleIntercept", 0.0)
        function = str(shown.get("VOILUTFunction") or "LINEAR")
        if slope == 0:
            raise DataError("E1207", "the DICOM header's RescaleSlope is 0.")
        if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise DataError("E1211", "the DICOM header's VOILUTFunction has no stated rule.")
        window = None
        # an empty one counts as none
        if shown.get("WindowCenter") is not None and shown.get("WindowWidth") is not None:
            window = _number(shown, "WindowCenter", 0), _number(shown, "WindowWidth", 0)
            if window[1] <= 0 or (function == "LINEAR" and window[1] < 1):
                detail = f"{window[1]:.10g}, which shows nothing."
                raise DataError("E1207", f"the DICOM header's WindowWidth is {detail}")
        inverted = ""
        if ds.PhotometricInterpretation == "MONOCHROME1":
            inverted = "monochrome1_inverted"
        elif ds.get("PresentationLUTShape") == "INVERSE":
            inverted = "presentation_inverted"
        return cls(
            slope=slope,
            intercept=intercept,
            modality=_table(ds, "ModalityLUTSequence"),
            voi=_table(shown, "VOILUTSequence"),
            window=window,
            function=function,
            padding=_padding(ds),
            inverted=inverted,
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


def to_grey(stored: NDArray[Any], look: Look) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[H, W] of stored integers [H, W], and words; rounded half to even.

    Raises DataError E1208.
    """
    low = high = 0.0
    if look.voi is None and look.window is None:
        low, high = _range(stored, look)
    grey = np.zeros(stored.shape, np.uint8)
    for top in range(0, len(stored), _STRIP_ROWS):
        strip = look.modality_values(stored[top : top + _STRIP_ROWS])
        if look.voi is not None:
            shown = _look_up(strip, look.voi) * (255 / (2.0**look.voi.bits - 1))
        elif look.window is not None:
            shown = _windowed(strip, look.window, look.function)
        else:
            shown = (strip - low) * (255 / (high - low) if high > low else 0)
        grey[top : top + _STRIP_ROWS] = np.rint(np.clip(shown, 0, 255))
    words = ["modality_lut"] if look.modality is not None else []
    if look.voi is not None:
        words.append("dicom_voi_lut:1")
    elif look.window is not None:
        kind = "" if look.function == "LINEAR" else ":" + look.function.lower()
        words.append(f"dicom_window:1:{look.window[0]:.10g}:{look.window[1]:.10g}{kind}")
    else:
        words.append(f"dicom_range:{low:.10g}..{high:.10g}")
    if look.inverted:
        return 255 - grey, [*words, look.inverted]
    return grey, words


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


def _macro(ds: Dataset, name: str) -> Dataset:
    """Where enhanced objects keep it: the first frame's groups, the shared ones, the top."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(ds.get(groups) or ())[:1]:
            for macro in list(group.get(name) or ())[:1]:
                return macro  # type: ignore[no-any-return]
    return ds


def _number(ds: Dataset, name: str, default: float) -> float:
    """The first value. Raises DataError E1207 for one that is no finite number."""
    try:
        value = ds.get(name)
        value = value if value is None or np.isscalar(value) or not len(value) else value[0]
        number = default if value is None else float(value)
    except Exception:  # conversion of a damaged element raises many types
        number = float("nan")
    if not np.isfinite(number):
        raise DataError("E1207", f"the DICOM header's {name} is no finite number.")
    return number


def _table(ds: Dataset, name: str) -> Table | None:
    """The first table of a sequence. Raises DataError E1207 for one that is cut short."""
    for item in list(ds.get(name) or ())[:1]:
        entries, first, bits = (int(value) for value in item.LUTDescriptor)
        entries, bits = entries % 2**16 or 2**16, bits or 16
        raw = item.LUTData
        if isinstance(raw, bytes):
            order = "<" if item.original_encoding[1] is not False else ">"
            size = 1 if len(raw) in (entries, entries + 1) and bits <= 8 else 2
            raw = np.frombuffer(raw[: len(raw) // size * size], f"{order}u{size}")
        values = np.atleast_1d(np.asarray(raw, np.float64))[:entries] % 2**16
        if len(values) < entries or not 1 <= bits <= 16:
            raise DataError("E1207", "a lookup table of the DICOM header is cut short.")
        signed = ds.get("PixelRepresentation") == 1 or first < 0
        return Table(first - 2**16 if signed and first >= 2**15 else first, values, bits)
    return None


def _padding(ds: Dataset) -> tuple[int, int] | None:
    value = ds.get("PixelPaddingValue")
    if value is None:
        return None
    try:
        ends = int(value), int(ds.get("PixelPaddingRangeLimit", value))
    except (TypeError, ValueError):
        return None
    return min(ends), max(ends)
