"""Which decoder a DICOM file's pixels need, and why one is not there or failed.

Transfer syntaxes: DICOM PS3.5 annex A.4, and PS3.6 annex A for their identifiers.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medv_ray.data import causes, jpeg
from medv_ray.data.causes import broken
from medv_ray.errors import DataError, MedvError

if TYPE_CHECKING:
    from pydicom.uid import UID

RLE = "1.2.840.10008.1.2.5"
FAMILY = "1.2.840.10008.1.2.4."
"""What the transfer syntaxes of the JPEG committee's codings begin with."""
JPEG_LS = (f"{FAMILY}80", f"{FAMILY}81")
RETIRED = {f"{FAMILY}{number}": f"{FAMILY}51" for number in (53, 55)}
"""Progressive JPEGs by their old identifiers, which are read as JPEG Extended is."""
_OPENJPEG = "`medv-ray[dicom]` brings pylibjpeg-openjpeg, which reads it"
_GDCM = "`medv-ray[dicom]` brings python-gdcm, which reads it"
_READERS = {
    "50": ("JPEG Baseline", "Pillow reads it"),
    "51": ("JPEG Extended", "Pillow reads 8-bit ones, imagecodecs 12-bit ones"),
    **dict.fromkeys(("57", "70"), ("JPEG Lossless", _GDCM)),
    **dict.fromkeys(("80", "81"), ("JPEG-LS", _GDCM)),
    **dict.fromkeys(("90", "91", "92", "93"), ("JPEG 2000", _OPENJPEG)),
    **dict.fromkeys(("94", "95"), ("JPIP", "the pixels lie on a server")),
    **{str(number): ("MPEG video", "ffmpeg makes pictures of it") for number in range(100, 109)},
    **dict.fromkeys(("110", "111", "112"), ("JPEG XL", "imagecodecs reads its frames")),
    **dict.fromkeys(("201", "202", "203"), ("HTJ2K", _OPENJPEG)),
}
_TWELVE = "DCMTK's dcmdjpeg reads it"
_PLUGINS = ("gdcm", "pylibjpeg", "openjpeg", "rle", "libjpeg", "jpeg_ls")
"""Modules of the packages that bring decoders to pydicom; none is a must."""


def twelve_bits(frame: bytes, samples: int) -> NDArray[np.uint16]:
    """uint16[H, W] of a grey JPEG of 12 bits, which neither Pillow nor gdcm reads.

    Raises DataError E1211 without imagecodecs or for colours, RunError E1513 where imagecodecs
    does not load, and many types for damaged data.
    """
    if samples > 1:
        raise DataError("E1211", f"a 12-bit JPEG of colours has no rule here; {_TWELVE}.")
    if find_spec("imagecodecs") is None:
        detail = "a 12-bit JPEG, which is read with imagecodecs, which `medv-ray[dicom]` brings."
        raise DataError("E1211", f"the frames are {detail}")
    try:
        from imagecodecs import jpeg8_decode
    except Exception:  # ImportError of a missing library, and what a mix of versions raises
        raise broken("a DICOM decoder is installed and does not load: imagecodecs.") from None
    grey: NDArray[np.uint16] = jpeg8_decode(frame)
    return grey


def check_available(syntax: UID) -> None:
    """Raises DataError E1211 where no decoder for a transfer syntax is installed, RunError E1513
    where one is installed and does not load.
    """
    from pydicom.pixels.decoders.base import get_decoder

    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:
        pass
    for name in _broken_plugins():
        raise broken(f"a DICOM decoder is installed and does not load: {name}.")
    kind, reader = _READERS.get(syntax.removeprefix(FAMILY), ("", ""))
    text = syntax if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,40}", syntax) else "private"
    text += f" ({kind})" if kind else ""
    reader = reader or "`medv-ray[dicom]` brings those that are known here"
    raise DataError("E1211", f"no decoder for DICOM transfer syntax {text}; {reader}.")


def _broken_plugins() -> Iterator[str]:
    for name in _PLUGINS:
        if find_spec(name) is not None:
            try:
                importlib.import_module(name)
            except Exception:  # ImportError of a missing library, and what old ones raise
                yield name


def why(
    error: Exception, size: int, syntax: str = "", frame: bytes | memoryview = b""
) -> MedvError:
    """What is to be raised in place of an error of pydicom; transfer syntax and bytes of the
    frame, once they were read.

    DataError E1203 (damaged), E1209, E1211 (not read here), RunError E1513.
    """
    if isinstance(error, MemoryError):
        detail = f"decoding {size} bytes (DICOM) takes more memory than allowed."
        return DataError("E1209", detail)
    if isinstance(error, ImportError) or not works(syntax):
        return broken("pydicom does not read a DICOM object that is sound.")
    coding = jpeg.read(bytes(frame)).coding if frame[:2] == b"\xff\xd8" else None
    if coding is not None and not coding.plain and not _reads(coding):
        text = f"a {coding}, which is not read here; imagecodecs or {_TWELVE}"
        return DataError("E1211", f"the frames of {size} bytes (DICOM) are {text}.")
    if isinstance(error, NotImplementedError):
        return DataError("E1211", f"pydicom has no way to read the pixels of {size} bytes (DICOM).")
    return DataError("E1203", f"cannot decode {size} bytes (DICOM): damaged or cut short.")


def _reads(coding: jpeg.Coding) -> bool:
    """Whether what is installed reads this way of coding, so that a frame is damaged."""
    if coding.marker in (jpeg.SOF3, jpeg.JPEG_LS):
        return find_spec("gdcm") is not None
    return coding.bits == 12 and coding.marker in jpeg.HUFFMAN_DCT


@cache
def works(syntax: str = "") -> bool:
    """Whether a small object is read as it is, and Pillow reads what a syntax is made of."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian

    numbers = {0x02: 1, 0x10: 2, 0x11: 3, 0x100: 8, 0x101: 8, 0x102: 7, 0x103: 0}
    group = {element: (b"US", struct.pack("<H", value)) for element, value in numbers.items()}
    group[0x04] = b"CS", b"MONOCHROME2 "
    head = b"".join(
        struct.pack("<HH2sH", 0x28, element, kind, len(value)) + value
        for element, (kind, value) in sorted(group.items())
    )
    pixels = bytes(range(6))
    body = head + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, len(pixels)) + pixels
    try:
        ds = read_dataset(io.BytesIO(body), False, True)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        array, _ = get_decoder(ExplicitVRLittleEndian).as_array(ds, index=0)
    except MemoryError:  # of a process that is near its limit
        return True
    except Exception:
        return False
    made_of = {"50": "JPEG", "51": "JPEG", "90": "JPEG2000", "91": "JPEG2000"}
    name = made_of.get(syntax.removeprefix(FAMILY))
    return bool(array.tobytes() == pixels) and (name is None or causes.works(name))
