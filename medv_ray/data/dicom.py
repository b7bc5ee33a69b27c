"""From a DICOM file's bytes to an 8-bit picture and the words for what was done to it.

The file's own window is applied, as PS3.3 C.11 states it; docs/images.md has the rules. Header and
pixels are read apart, so that limits hold before PixelData is touched. pydicom (the extra
`medv-ray[dicom]`) is imported when the first DICOM file comes. No value of a text element gets into
a word or a message: it may be a patient's. H rows, W columns, all arrays are one frame.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.data import dicom_overlay as overlay
from medv_ray.data.causes import broken
from medv_ray.data.dicom_colour import by_palette, to_rgb
from medv_ray.data.dicom_decoders import FAMILY, JPEG_LS, RETIRED, check_available, why
from medv_ray.data.dicom_grey import Look, to_grey
from medv_ray.data.dicom_header import (
    burned_in,
    check_object,
    frames_of,
    integer,
    layout_of,
)
from medv_ray.data.dicom_pixels import PixelData, decoded, values_of
from medv_ray.data.grey_values import GreyValues
from medv_ray.dicom_walk import file_meta
from medv_ray.errors import DataError, MedvError
from medv_ray.formats import HEAD_BYTES, format_of
from medv_ray.windows import parse

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medv_ray.settings import ImageSettings

IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"),
    *("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
)
_BURNED_IN = 0x00280301  # the last tag of the header part
_PROGRAMS = (b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"#!")
_HEADER_BYTES = 16 * 2**20  # the part before _BURNED_IN lies within the first kB of a real file
_HEADER_READS = 2**17
_WHOLE_READS = 2**19  # 2 to 5 s
_PIXELS = 0x7FE00010
_WAVELETS = tuple(f"{FAMILY}{number}" for number in (90, 91, 92, 93, 201, 202, 203))
_QUIET = threading.Lock()  # Python's list of warning filters belongs to all threads


def is_dicom(data: bytes, formats: Sequence[str]) -> bool:
    """Whether the bytes say that they are DICOM, and it is one of the allowed formats."""
    is_one = format_of(data[:HEAD_BYTES]) == "DICOM"
    return is_one and "DICOM" in [name.upper() for name in formats]


class DicomFile:
    """A DICOM file with its header read and checked; no pixel is touched before `picture`.

    Raises DataError E1202 (no picture), E1203 (no readable header), E1207 (a header that
    contradicts itself), E1209 (a header without end), E1211 (no rule for these pixels, or pydicom
    is not installed), E1212 (burned-in annotation) and RunError E1513.
    """

    format = "DICOM"

    def __init__(self, data: bytes, image: ImageSettings) -> None:
        self._data, self._image = data, image
        self._goes_on = False  # the header was read up to an element behind its part
        with _own_words(len(data)):
            # not left to pydicom, which inflates without a limit
            syntax, self._start = file_meta(io.BytesIO(data), data[:HEAD_BYTES])
            self._syntax = RETIRED.get(syntax, syntax)
            head = self._read(_BURNED_IN, _HEADER_BYTES)
            self._words = burned_in(head, image.burned_in)
            check_object(head, image.maps, self._goes_on)
            rows, columns = (integer(head, name, 1, 65535) for name in ("Rows", "Columns"))
            self.size = (columns, rows)
            """Width and height."""
            self.n_frames, words = frames_of(head)
            self._layout = layout_of(head, self.n_frames)
            self._words += [*words, *self._layout.words]

    def picture(self, frame: int = 0) -> tuple[Image.Image, list[str]]:
        """Mode L or RGB and words, of the frame with this number from 0; no other is decoded.

        Raises DataError E1203 (damaged), E1207 (pixels that are not what the header announces),
        E1208 (values that are not finite), E1209 (unpacks beyond a limit), E1210 (there is no such
        frame), E1211 (no decoder).
        """
        if not 0 <= frame < self.n_frames:
            detail = f"frame {frame + 1} was asked for, the file holds {self.n_frames}."
            raise DataError("E1210", detail)
        with _own_words(len(self._data)) as seen:
            ds, pixels = self._whole
            pixels.check(self._layout)
            words = ["executable_preamble"] if self._data.startswith(_PROGRAMS) else []
            if not self._syntax:
                words.append("transfer_syntax_assumed")
            values, stored, colours = self._stored(pixels, frame, seen)
            if colours != self._layout.colours and pixels.syntax not in _WAVELETS:
                words.append("colours_by_jpeg_markers")
            array, more = self._shown(ds, frame, values, colours, pixels.syntax)
            more += self._overlays(ds, frame, array, stored, pixels.big)
        return Image.fromarray(array), words + self._words + more

    def grey_values(self, frame: int = 0) -> GreyValues | None:
        """Values of a grey frame before its window, and its overlays; None for colours. Raises as
        `picture`.
        """
        if not self._layout.colours.startswith("MONOCHROME"):
            return None
        with _own_words(len(self._data)) as seen:
            ds, pixels = self._whole
            values, stored, _ = self._stored(pixels, frame, seen)
            drawn = np.zeros(values.shape, np.uint8)
            self._overlays(ds, frame, drawn, stored, pixels.big)
            look = Look.of(ds, frame, parse(self._image.window))
            return look.grey_values(values, ds, frame, drawn > 0 if drawn.any() else None)

    def _stored(
        self, pixels: PixelData, frame: int, seen: list[Any]
    ) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
        """Stored values of a frame, its words where they are not compressed, and its colours."""
        stored, colours = None, self._layout.colours
        if colours in ("YBR_ICT", "YBR_RCT") and pixels.syntax not in _WAVELETS:
            raise DataError("E1207", "the pixels are not coded as their colours say.")
        if pixels.encapsulated:
            coded = pixels.coded(self._layout, frame)
            seen.append((pixels.syntax, coded))
            values, colours = decoded(coded, pixels.syntax, self._layout)
        else:
            stored = pixels.native(self._layout, frame)
            values = values_of(stored, self._layout)
        if values.shape[:2] != self.size[::-1]:
            raise DataError("E1207", "the decoded picture is of another size than announced.")
        return values, stored, colours

    @cached_property
    def _whole(self) -> tuple[Dataset, PixelData]:
        """All elements before the pixels, and where these are.

        Raises DataError E1203, E1207, E1209 or E1211, before anything is decoded.
        """
        from pydicom.uid import UID

        syntax, body, start = self._body(self._image.max_bytes)
        check_available(UID(syntax))
        found: list[tuple[int, str | None, int]] = []
        stream = _Counted(body, _WHOLE_READS, start)

        def is_pixels(tag: int, kind: str | None, length: int) -> bool:
            if tag == _PIXELS:
                found.append((stream.tell(), kind, length))
            return tag >= _PIXELS

        ds = _elements(stream, syntax, is_pixels)
        if not found:
            if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
                raise DataError("E1211", "no rule for DICOM pixels that are floats.")
            raise DataError("E1203", "the DICOM object holds no PixelData.")
        at, kind, length = found[0]
        return ds, PixelData(
            body=body,
            start=at,
            length=length,
            syntax=syntax,
            encapsulated=UID(syntax).is_encapsulated,
            big=syntax == BIG,
            words=kind == "OW",
        )

    def _body(self, most: int) -> tuple[str, bytes, int]:
        """Transfer syntax as it is to be read, bytes that hold the elements, where these begin."""
        if self._syntax == DEFLATED:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._data[self._start :], most)
            if len(body) == most == self._image.max_bytes:
                raise DataError("E1209", f"the deflated DICOM unpacks beyond {most} bytes.")
            return EXPLICIT, body, 0
        syntax = self._syntax
        if not syntax:
            kind = self._data[self._start + 4 : self._start + 6]
            syntax = EXPLICIT if re.fullmatch(rb"[A-Z]{2}", kind) else IMPLICIT
        return syntax, self._data, self._start

    def _read(self, last: int, most: int) -> Dataset:
        """Elements up to the tag `last`, which lie in the first `most` bytes."""
        syntax, body, start = self._body(most)

        def is_behind(tag: int, *_: object) -> bool:
            self._goes_on |= tag > last
            return self._goes_on

        return _elements(_Counted(body, _HEADER_READS, start), syntax, is_behind)

    def _shown(
        self, ds: Dataset, frame: int, values: NDArray[Any], colours: str, syntax: str
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """uint8[H, W] or uint8[H, W, 3] of stored values, and words."""
        named = self._layout.colours
        if named == "PALETTE COLOR":
            return by_palette(values, ds)
        if not named.startswith("MONOCHROME"):
            from_jpeg = syntax.startswith(FAMILY) and syntax not in JPEG_LS
            array, words = to_rgb(values, colours, self._layout.stored, from_jpeg)
            return array, (["ycbcr"] if named.startswith("YBR") else []) + words
        words = []
        if "RedPaletteColorLookupTableDescriptor" in ds:
            words.append("supplemental_palette_ignored")
        array, more = to_grey(values, Look.of(ds, frame, parse(self._image.window)))
        return array, more + words

    def _overlays(
        self,
        ds: Dataset,
        frame: int,
        array: NDArray[np.uint8],
        stored: NDArray[Any] | None,
        big: bool,
    ) -> list[str]:
        """Words; overlays are drawn into `array`."""
        if not overlay.present(ds):
            return []
        if self._image.overlays == "ignore" or array.ndim == 3:
            return ["overlays_ignored"]
        drawn, failed = overlay.draw(array, ds, frame, stored, big)
        words = [f"overlays_drawn:{drawn}"] if drawn else []
        return [*words, "overlays_ignored"] if failed else words


def _elements(stream: _Counted, syntax: str, is_last: Callable[..., bool]) -> Dataset:
    """Elements in front of the one of which `is_last` says so."""
    from pydicom.filereader import read_dataset

    return read_dataset(stream, syntax == IMPLICIT, syntax != BIG, stop_when=is_last)


class _Counted(io.BytesIO):
    """Ends a header of millions of tiny elements, some of which is read outside the child too."""

    def __init__(self, body: bytes, most: int, start: int) -> None:
        super().__init__(body)  # shares the bytes
        self.seek(start)
        self._left = most

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise DataError("E1209", "the DICOM header has too many elements.")
        return super().read(size)


@contextmanager
def _own_words(size: int) -> Iterator[list[tuple[str, bytes | memoryview]]]:
    """Silence pydicom, and turn whatever it raises into an error with a text of ours.

    Transfer syntax and bytes of a frame are to be put into the list, for the error to name its
    coding.
    """
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "pydicom":
            raise broken("pydicom is installed and does not load.") from None
        detail = f"{size} bytes are DICOM; reading it needs `pip install 'medv-ray[dicom]'`."
        raise DataError("E1211", detail) from None
    except Exception:  # ImportError of a missing library, and what a mix of versions raises
        raise broken("pydicom is installed and does not load.") from None
    seen: list[tuple[str, bytes | memoryview]] = []
    logging.getLogger("pydicom").disabled = True
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield seen
    except MedvError:
        raise
    # AttributeError, TypeError, KeyError, struct.error, RecursionError, zlib.error and more
    except Exception as error:
        raise why(error, size, *(seen[0] if seen else ("", b""))) from None
