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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.data.causes import broken
from medv_ray.data.depth import eight_bits
from medv_ray.data.dicom_decoders import RLE, check_available, why
from medv_ray.data.dicom_grey import Look, to_grey
from medv_ray.data.pixels import stretch
from medv_ray.errors import DataError, MedvError
from medv_ray.formats import HEAD_BYTES, dicom_start, format_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"),
    *("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
)
_META, _SYNTAX = 2, 0x10  # group of the file meta information, element of the transfer syntax
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT")
_BURNED_IN = 0x00280301  # the last tag of the header part
_PROGRAMS = (b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe", b"#!")
_HEADER_BYTES = 16 * 2**20  # the part before _BURNED_IN lies within the first kB of a real file
_HEADER_READS = 2**17
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

    def __init__(self, data: bytes, max_bytes: int) -> None:
        self._data, self._max_bytes = data, max_bytes
        self._goes_on = False  # the header was read up to an element behind its part
        with _own_words(len(data)):
            self._syntax, self._start = _file_meta(data)
            head = self._read(_BURNED_IN, _HEADER_BYTES)
            if str(head.get("BurnedInAnnotation", "")).strip().upper() == "YES":
                detail = "the DICOM header says that annotation is burned into the pixels."
                raise DataError("E1212", detail)
            if "Rows" not in head and "Columns" not in head:
                # what a cut header lacks may have been there
                if self._goes_on or "DirectoryRecordSequence" in head:
                    raise DataError("E1202", "the DICOM object holds no picture (a report, say).")
                raise DataError("E1203", "the DICOM header ends before it tells of a picture.")
            rows, columns = (_integer(head, name, 1, 65535) for name in ("Rows", "Columns"))
            self.size = (columns, rows)
            """Width and height."""
            self.n_frames = _integer(head, "NumberOfFrames", 1, 2**31 - 1, default=1)
            _check_pixel_module(head)

    def picture(self, frame: int = 0) -> tuple[Image.Image, list[str]]:
        """Mode L or RGB, one frame, and words.

        Raises DataError E1203 (damaged), E1207 (pixels that are not what the header announces),
        E1208 (values that are not finite), E1209 (unpacks beyond a limit), E1211 (no decoder).
        """
        with _own_words(len(self._data)) as seen:
            ds = self._read(None, self._max_bytes)
            seen.append(ds)
            self._check_pixels(ds)
            words = ["executable_preamble"] if self._data.startswith(_PROGRAMS) else []
            if not self._syntax:
                words.append("transfer_syntax_assumed")
            array = _pixel_array(ds, frame)
            if array.shape[:2] != self.size[::-1]:
                raise DataError("E1207", "the decoded picture is of another size than announced.")
            array, more = _to_bytes(array, ds)
        return Image.fromarray(array), words + more

    def _read(self, last: int | None, most: int) -> Dataset:
        """Elements up to the tag `last`, or all. Deflated bytes are unpacked to `most` at most."""
        from pydicom.dataset import FileMetaDataset
        from pydicom.filereader import read_dataset
        from pydicom.uid import UID

        body = self._data[self._start : self._start + most]
        if self._syntax == DEFLATED:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, most)
            if last is None and len(body) == most:
                raise DataError("E1209", f"the deflated DICOM unpacks beyond {most} bytes.")
        syntax = EXPLICIT if self._syntax == DEFLATED else self._syntax
        if not syntax:
            syntax = EXPLICIT if re.fullmatch(rb"[A-Z]{2}", body[4:6]) else IMPLICIT

        def is_behind(tag: int, *_: object) -> bool:
            self._goes_on |= last is not None and tag > last
            return self._goes_on

        ds = read_dataset(
            io.BytesIO(body) if last is None else _Counted(body),
            syntax == IMPLICIT,
            syntax != BIG,
            stop_when=is_behind if last is not None else None,
        )
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        return ds

    def _check_pixels(self, ds: Dataset) -> None:
        """Raises DataError E1203, E1207 or E1211, before anything is decoded."""
        from pydicom.encaps import parse_fragments
        from pydicom.pixels.utils import get_expected_length

        if "PixelData" not in ds:
            kind = "E1211" if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds else "E1203"
            raise DataError(kind, "the DICOM object holds no PixelData.")
        syntax = ds.file_meta.TransferSyntaxUID
        check_available(syntax)
        held = ds.PixelData
        if not held:
            raise DataError("E1203", "the DICOM object's PixelData is empty.")
        if syntax.is_encapsulated:
            count = parse_fragments(held)[0]
            if count < self.n_frames:
                detail = f"{self.n_frames} frames, there are {count} pieces of pixel data."
                raise DataError("E1207", f"the header announces {detail}")
            return
        called_for = get_expected_length(ds)
        # zeros behind the last row are padding, anything else are rows of a header that lies
        if len(held) < called_for or any(held[called_for:]):
            there = "more" if len(held) > called_for else f"{len(held)}"
            detail = f"{called_for} bytes of pixels, there are {there}."
            raise DataError("E1207", f"the header calls for {detail}")


class _Counted(io.BytesIO):
    """Ends a header of millions of tiny elements, which is also read outside the child process."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _HEADER_READS:
            raise DataError("E1209", "the DICOM header has too many elements.")
        return super().read(size)


def _file_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax, empty if absent, and where the data set starts.

    Always explicit, little-endian. It is not left to pydicom, which inflates without a limit.
    """
    offset, syntax = dicom_start(data[:HEAD_BYTES]) or 0, ""
    while int.from_bytes(data[offset : offset + 2], "little") == _META and offset + 8 <= len(data):
        element, kind = (
            int.from_bytes(data[offset + 2 : offset + 4], "little"),
            data[offset + 4 :][:2],
        )
        long = kind in _LONG_VRS
        start = offset + (12 if long else 8)
        length = int.from_bytes(data[start - (4 if long else 2) : start], "little")
        if element == _SYNTAX:
            syntax = data[start : start + min(length, 64)].rstrip(b"\0 ").decode("ascii")
        offset = start + length
    return syntax, offset


def _check_pixel_module(head: Dataset) -> None:
    """Raises DataError E1207 or E1211 for bits, samples and colours without a rule."""
    allocated = _integer(head, "BitsAllocated", 1, 64)
    stored = _integer(head, "BitsStored", 1, 64, default=allocated)
    samples = _integer(head, "SamplesPerPixel", 1, 4, default=1)
    _integer(head, "PixelRepresentation", 0, 1, default=0)
    if stored > allocated:
        raise DataError("E1207", f"{stored} bits stored do not fit {allocated} bits allocated.")
    colours = str(head.get("PhotometricInterpretation", ""))
    if not colours:
        raise DataError("E1207", "the DICOM header has no PhotometricInterpretation.")
    grey = colours in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    known = grey or colours in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if not known or allocated not in ((1, 8, 16, 32) if grey else (8, 16)):
        raise DataError("E1211", f"no rule for these DICOM pixels ({allocated} bits allocated).")
    if samples != (1 if grey else 3):
        raise DataError("E1207", f"{samples} samples per pixel do not fit the colours named.")


def _pixel_array(ds: Dataset, frame: int) -> NDArray[Any]:
    """[H, W] or [H, W, 3] of a frame; YBR is RGB already, unused bits are gone."""
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(ds.file_meta.TransferSyntaxUID)
    array, _ = decoder.as_array(ds, index=frame)
    if decoder.UID == RLE and _has_another_row(ds):
        raise DataError("E1207", "the RLE data hold more rows than the header announces.")
    return array


def _has_another_row(ds: Dataset) -> bool:
    """Decoders leave surplus RLE data out in silence; JPEG and JPEG 2000 know their size."""
    from pydicom.pixels.decoders.base import get_decoder

    ds.Rows += 1
    try:
        get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, index=0)
    except Exception:  # RuntimeError of pydicom, for whatever its plugins raised
        return False
    finally:
        ds.Rows -= 1
    return True


def _to_bytes(array: NDArray[Any], ds: Dataset) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[H, W] or uint8[H, W, 3] and words."""
    from pydicom.pixels.processing import apply_color_lut

    colours, words = str(ds.PhotometricInterpretation), []
    # groups 6000, 6002 .. 60FE
    if any(0x6000 <= tag >> 16 <= 0x60FF for tag in ds.keys()):  # noqa: SIM118
        words.append("overlays_ignored")
    if colours == "PALETTE COLOR":
        if "RedPaletteColorLookupTableDescriptor" not in ds:
            raise DataError("E1207", "the DICOM object names a palette that it does not hold.")
        table = apply_color_lut(array, ds)[..., :3]
        if table.dtype.itemsize > 1:
            table, more = eight_bits(table, table)
            words = more + words
        return np.ascontiguousarray(table, np.uint8), ["palette", *words]
    if not colours.startswith("MONOCHROME"):
        bits = int(ds.get("BitsStored", ds.BitsAllocated))
        if colours.startswith("YBR"):
            words.append("ycbcr")
        if bits > 8:
            low, high = int(array.min()), int(array.max())
            array, words = stretch(array, low, high), [*words, f"colour16_scaled:{low}..{high}"]
        return np.ascontiguousarray(array, np.uint8), words
    if "RedPaletteColorLookupTableDescriptor" in ds:
        words.append("supplemental_palette_ignored")
    grey, more = to_grey(array, Look.of(ds))
    return grey, more + words


def _integer(ds: Dataset, name: str, least: int, most: int, default: int | None = None) -> int:
    """Raises DataError E1207 for a value that is absent (without a default) or out of range."""
    try:
        value = ds.get(name)
        number = default if value is None else int(value)
    except Exception:  # conversion of a damaged element raises many types
        number = None
    if number is None or not least <= number <= most:
        raise DataError("E1207", f"the DICOM header has no usable {name}.")
    return number


@contextmanager
def _own_words(size: int) -> Iterator[list[Dataset]]:
    """Silence pydicom, and turn whatever it raises into an error with a text of ours.

    The object that was read is to be put into the list, for the error to name its coding.
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
    seen: list[Dataset] = []
    logging.getLogger("pydicom").disabled = True
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield seen
    except MedvError:
        raise
    # AttributeError, TypeError, KeyError, struct.error, RecursionError, zlib.error and more
    except Exception as error:
        raise why(error, size, seen[0] if seen else None) from None
