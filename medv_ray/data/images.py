"""From an image's encoded bytes to uint8 tiles: header check, decode, stated conversion, tiling.

Every refusal is a DataError of the catalogue whose text is ours: Pillow's messages hold object
addresses. This module needs Pillow and numpy only, and neither changes nor relies on Pillow's
global switches. T tiles of H x W pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from medv_ray.canvases import TileSettings
from medv_ray.data import jpeg
from medv_ray.data.causes import judge
from medv_ray.data.depth import is_deep, narrow_palette, read_deep
from medv_ray.data.dicom import DicomFile, is_dicom
from medv_ray.data.encoded import end_of_png, open_header, png_bytes
from medv_ray.data.frames import choose
from medv_ray.data.pixels import (
    check_tiff_strips,
    header_words,
    orientation,
    tiff_orientation,
    to_rgb,
    upright,
)
from medv_ray.data.tiles import cut
from medv_ray.errors import DataError, MedvError
from medv_ray.file_parts import FilePart
from medv_ray.slide_parts import shows_label, slide_kind

if TYPE_CHECKING:
    from medv_ray.settings import ImageSettings

__all__ = ["Prepared", "prepare"]

_UNDECODED = 128  # grey that libjpeg leaves where the data ended early
_ZERO_RUN = 512  # zero bytes in a row at the end of a JPEG's data


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image ready for the vision tower."""

    tiles: NDArray[np.uint8]
    """uint8[T, H, W, 3]."""
    size_wh: tuple[int, int]
    """Width and height of the upright picture, in pixels; the merge of tile features needs it."""
    warnings: tuple[str, ...]
    """What was done to the picture beyond plain decoding; docs/images.md lists the words."""
    sha256: str
    """Of the encoded bytes: the whole file's, also for a part of it."""
    part: FilePart | None = None
    """Which part of the file it is, where one was asked for."""


@dataclass(frozen=True, eq=False)
class Refused:
    """What stands in the place of an image that could not be prepared."""

    error: DataError
    sha256: str
    """Of the encoded bytes, as that of a `Prepared`."""
    part: FilePart | None = None


def prepare(
    data: bytes, image: ImageSettings, tiles: TileSettings, part: FilePart | None = None
) -> Prepared:
    """Tiles of an encoded image, or of a part of it; without its digest then.

    Nothing is decoded before the header passed all limits. Raises DataError E1112, E1201 .. E1213
    and RunError E1513.
    """
    check_bytes(data, image)
    picture, warnings = decode(data, image, part)
    with _own_words(data, None):
        array = cut(picture, tiles)
    return Prepared(array, picture.size, tuple(warnings), _digest(data, part), part)


def _digest(data: bytes, part: FilePart | None) -> str:
    return hashlib.sha256(data).hexdigest() if part is None else ""


def check_bytes(data: bytes, image: ImageSettings) -> None:
    """Raises DataError E1201 (no bytes) or E1112 (too many)."""
    if not data:
        raise DataError("E1201", "the image has no bytes.")
    if len(data) > image.max_bytes:
        raise DataError(
            "E1112", f"the encoded image has {len(data)} bytes; the limit is {image.max_bytes}."
        )


def inspect(data: bytes, image: ImageSettings, part: FilePart | None = None) -> Prepared:
    """What the header tells, without tiles: nothing is decoded.

    Raises DataError E1112, E1201 .. E1213 and RunError E1513.
    """
    check_bytes(data, image)
    source, _, warnings = open_at(data, image, part)
    with _own_words(data, source.format):
        # a PNG may carry its orientation behind the pixels, and Pillow's size of a TIFF has it
        turned = (
            isinstance(source, Image.Image)
            and source.format in ("JPEG", "MPO")
            and (orientation(source) or 1) > 4
        )
    none = np.empty((0, 1, 1, 3), np.uint8)
    size_wh = source.size[::-1] if turned else source.size
    return Prepared(none, size_wh, tuple(warnings), _digest(data, part), part)


def decode(
    data: bytes, image: ImageSettings, part: FilePart | None = None
) -> tuple[Image.Image, list[str]]:
    """Upright RGB picture and warnings. Raises DataError E1202 .. E1213 and RunError
    E1513.
    """
    source, index, warnings = open_at(data, image, part)
    with _own_words(data, source.format):
        if isinstance(source, DicomFile):
            picture, words = source.picture(index)
            return picture.convert("RGB"), warnings + words
        announced, transposed = source.size, tiff_orientation(source)
        check_tiff_strips(source)
        warnings += header_words(source)
        shown: Image.Image = source
        if is_deep(source):
            shown, words = read_deep(source, lambda: _at(open_header(data, image.formats), index))
            warnings += words
        source.load()
        if source.size != announced:
            sizes = f"{_by(announced)} pixels, the picture has {_by(source.size)}"
            raise DataError("E1207", f"the header announced {sizes}.")
        words = narrow_palette(source)
        rgb, more = to_rgb(shown, image.background)
        warnings += [*more, *words]
        if source.format in ("JPEG", "MPO", "PNG"):
            warnings += tail_words(data, source)
        turn = orientation(source)
        if turn is None:
            warnings.append("exif_unreadable")
        elif turn > 1 or transposed > 1:
            warnings.append(f"exif_transposed:{max(turn, transposed)}")
        return upright(rgb, turn or 1), warnings


def open_at(
    data: bytes, image: ImageSettings, part: FilePart | None
) -> tuple[ImageFile.ImageFile | DicomFile, int, list[str]]:
    """The file at the frame that is wanted, its number from 0, and words. The header passed all
    limits, and no pixel of the frame is decoded."""
    with _own_words(data, None):
        if is_dicom(data, image.formats):
            source: ImageFile.ImageFile | DicomFile = DicomFile(data, image)
        else:
            source = open_header(data, image.formats)
    kind = slide_kind(io.BytesIO(data)) if source.format in ("TIFF", "DICOM") else None
    if kind == "scan" and part is not None and part.frame > 1:
        raise DataError("E1216", "a page of a slide, beside its scan.")
    if kind == "beside":
        detail = "a slide whose first page may be its label, which medv-ray[wsi] reads"
        raise DataError("E1211", f"{len(data)} bytes are {detail} from a folder.")
    if kind == "dicom" and shows_label(data[:4096]):
        raise DataError("E1216", "the file is the label or macro image of a slide.")
    if source.format != "TIFF":  # whose pages have sizes of their own
        check_header(source.size, image)
    with _own_words(data, source.format):
        # of a TIFF, Pillow would look at every page as if to decode it
        count = 1 if source.format == "TIFF" else getattr(source, "n_frames", 1)
        policy = image.frames if kind is None or image.frames == "refuse" else "first"
        index, words = choose(source.format, count, data, policy, part)
        if isinstance(source, Image.Image):
            _at(source, index)
    check_header(source.size, image)
    return source, index, words


def _at(source: ImageFile.ImageFile, index: int) -> ImageFile.ImageFile:
    """The file at a frame."""
    if index:
        source.seek(index)
    return source


def check_header(size: tuple[int, int], image: ImageSettings) -> None:
    """Raises DataError E1205 (a side too short), E1204 (too many pixels) or E1206 (elongated)."""
    short, long = sorted(size)
    code, rule = "", ""
    if short < image.min_side:
        code, rule = "E1205", f"shortest side allowed is {image.min_side}"
    elif short * long > image.max_pixels:
        code, rule = "E1204", f"most pixels allowed are {image.max_pixels}"
    elif long > image.max_aspect * short:
        code, rule = "E1206", f"largest ratio of the sides allowed is {image.max_aspect:g}"
    if code:
        raise DataError(code, f"the header announces {_by(size)} pixels; the {rule}.")


def tail_words(data: bytes, source: Image.Image) -> list[str]:
    """Words for bytes behind the image, and for a JPEG whose data look wiped at the end or that
    lacks scans.

    Raises DataError E1203 for a JPEG whose data end early (a decoder fills in grey), and E1207 for
    a PNG whose data are not the rows that its header calls for.
    """
    end = end_of_png(data) if source.format == "PNG" else None
    words = []
    if source.format in ("JPEG", "MPO"):
        markers = jpeg.read(data)
        end = markers.end
        if end is None or jpeg.uncoded(markers) or _ends_early(data, markers, source):
            raise DataError("E1203", f"the JPEG of {len(data)} bytes ends before its picture does.")
        if jpeg.unfinished(markers):
            words.append("scans_missing")
        coded = data[: end - 2]
        if len(coded) - len(coded.rstrip(b"\0")) >= _ZERO_RUN:
            words.append("suspect_flat_tail")
    if source.format == "PNG":
        called_for, held, row = png_bytes(data)
        if held < called_for or held >= called_for + row:
            held_words = "more" if held > called_for else f"{held}"
            raise DataError(
                "E1207",
                f"the header calls for {called_for} bytes of pixels, there are {held_words}.",
            )
    # an MPO's other frames follow the first
    if end is not None and end < len(data) and source.format != "MPO":
        words.append(f"trailing_bytes:{len(data) - end}")
    return words


def _ends_early(data: bytes, markers: jpeg.Markers, source: Image.Image) -> bool:
    """Whether more coded data, put in front of the end marker, change the picture.

    A complete picture does not change by that. It costs another decode, so a picture of one scan
    is only asked when its last pixel may be a decoder's filling grey. Not told for arithmetic
    coding, where T.81 D.1.8 lets an encoder leave out the zeros at the end.
    """
    if markers.coding is None or markers.end is None or markers.coding.marker in jpeg.ARITHMETIC:
        return False
    one_scan = len(markers.scans) == 1 and markers.coding.marker in (jpeg.SOF0, jpeg.SOF1)
    if one_scan and not _filled(source):
        return False
    again = open_header(jpeg.prolonged(data, markers.end), ["JPEG"])
    again.load()
    return ImageChops.difference(again, source).getbbox() is not None


def _filled(source: Image.Image) -> bool:
    """Whether the last pixel may be what libjpeg fills in: its lightness is the middle one."""
    last = source.crop((source.width - 1, source.height - 1, source.width, source.height))
    light = last.getchannel("K") if source.mode == "CMYK" else last.convert("L")
    return abs(int(np.asarray(light)[0, 0]) - _UNDECODED) <= 2


@contextmanager
def _own_words(data: bytes, image_format: str | None) -> Iterator[None]:
    """Turn whatever Pillow raises into an error with a text of ours."""
    try:
        yield
    except MedvError:
        raise
    # plugins raise OSError, SyntaxError, ValueError, struct.error, EOFError and more
    except Exception as error:
        raise judge(error, data, image_format) from None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
