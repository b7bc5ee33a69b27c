"""What a DICOM file's header says of its pixels, checked before these are touched.

No value of a text element gets into a word or a message: it may be a patient's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medv_ray import dicom_objects as objects
from medv_ray.data.dicom_pixels import Layout
from medv_ray.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COLOURS = (
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"),
    *("YBR_ICT", "YBR_RCT"),
)
_OTHER_COLOURS = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_420", "XYB")


def burned_in(head: Dataset, policy: str) -> list[str]:
    """Words. Raises DataError E1212."""
    said = objects.code_of(head, "BurnedInAnnotation")
    if said == "YES" and policy == "refuse":
        detail = "the DICOM header says that annotation is burned into the pixels."
        raise DataError("E1212", detail)
    if said == "YES":
        return ["burned_in_annotation"]
    unknown = objects.may_show_text(head) if not said else said != "NO"
    return ["burned_in_unknown"] if unknown else []


def check_object(head: Dataset, maps: str, goes_on: bool) -> None:
    """Raises DataError E1202 for objects that are no picture, E1203 for a cut header.

    `goes_on`: whether elements follow those of `head`.
    """
    kind = objects.kind_of(head)
    has_size = "Rows" in head or "Columns" in head
    if has_size and objects.is_map(head) and maps == "skip":
        raise DataError("E1202", f"the DICOM object is {kind}; --set image.maps=draw shows it.")
    if has_size:
        return
    if kind or "DirectoryRecordSequence" in head:
        kind = kind or "a DICOMDIR, an index of files"
        raise DataError("E1202", f"the DICOM object is {kind}; it holds no picture.")
    if goes_on:  # what a cut header lacks may have been there
        raise DataError("E1202", "the DICOM object holds no picture.")
    raise DataError("E1203", "the DICOM header ends before it tells of a picture.")


def frames_of(head: Dataset) -> tuple[int, list[str]]:
    """Their number, and a word where its text is a number with something behind (`1A`) or 0.

    Whether there are as many is seen when the pixels are read.
    """
    try:
        raw = head.get_item("NumberOfFrames")
        text = getattr(raw, "value", None)
        text = text.decode("ascii") if isinstance(text, bytes) else ""
        number = re.match(r" *(\d+)[^\d.eE]", text.rstrip("\0 ") + " ")
        bare = re.fullmatch(r" *\+?-?\d+", text.rstrip("\0 "))
    except Exception:  # damaged elements raise many types
        number = bare = None
    if number is not None and bare is None:
        count = int(number[1])
        if 1 <= count < 2**31:
            return count, [f"number_of_frames_read_as:{count}"]
    count = integer(head, "NumberOfFrames", 0, 2**31 - 1, default=1)
    return count or 1, [] if count else ["number_of_frames_read_as:1"]


def layout_of(head: Dataset, frames: int) -> Layout:
    """Raises DataError E1207 or E1211 for bits, samples and colours without a rule."""
    allocated = integer(head, "BitsAllocated", 1, 64)
    stored = integer(head, "BitsStored", 1, 64, default=allocated)
    high = integer(head, "HighBit", 0, 63, default=stored - 1)
    samples = integer(head, "SamplesPerPixel", 1, 4, default=1)
    signed = integer(head, "PixelRepresentation", 0, 1, default=0)
    by_plane = integer(head, "PlanarConfiguration", 0, 1, default=0)
    columns = integer(head, "Columns", 1, 65535)
    if stored > allocated:
        raise DataError("E1207", f"{stored} bits stored do not fit {allocated} bits allocated.")
    colours = objects.code_of(head, "PhotometricInterpretation")
    if not colours:
        raise DataError("E1207", "the DICOM header has no PhotometricInterpretation.")
    grey = colours in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if not (grey or colours in _COLOURS):
        named = f" ({colours})" if colours in _OTHER_COLOURS else ""
        detail = f"no rule for the colours that the DICOM header names{named}; RGB has one."
        raise DataError("E1211", detail)
    if allocated not in ((1, 8, 16, 32) if grey else (8, 16, 32)):
        raise DataError("E1211", f"no rule for these DICOM pixels ({allocated} bits allocated).")
    if samples != (1 if grey else 3):
        raise DataError("E1207", f"{samples} samples per pixel do not fit the colours named.")
    fits = stored - 1 <= high < allocated
    return Layout(
        rows=integer(head, "Rows", 1, 65535),
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high if fits else stored - 1,
        signed=signed == 1,
        by_plane=by_plane == 1,
        colours=colours,
        frames=frames,
        words=() if fits else (f"high_bit_read_as:{stored - 1}",),
    )


def integer(ds: Dataset, name: str, least: int, most: int, default: int | None = None) -> int:
    """Raises DataError E1207 for a value that is absent (without a default) or out of range."""
    try:
        value = ds.get(name)
        number = default if value is None else int(value)
    except Exception:  # conversion of a damaged element raises many types
        number = None
    if number is None or not least <= number <= most:
        raise DataError("E1207", f"the DICOM header has no usable {name}.")
    return number
