"""What an exception of a picture's decoder means: the picture is damaged, it is of a kind that is
not read here, or this environment is broken, which is no picture's fault.
"""

from __future__ import annotations

import functools
import io
import os
from types import TracebackType
from typing import Any

from PIL import Image, TiffImagePlugin

from medv_ray.data import jpeg
from medv_ray.data.encoded import components_of, open_header
from medv_ray.errors import DataError, MedvError, RunError
from medv_ray.formats import HEAD_BYTES, format_of

# what Pillow's plugins say of sound files whose bits or channels they do not read
_NO_RULE = (
    *("unknown pixel mode", "unknown raw mode", "unrecognized raw mode", "cannot handle"),
    *("Unsupported BMP", "Invalid value for samples per pixel"),
)
_DEFECTS = (AttributeError, NameError, AssertionError)
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
# tags and values of TIFF
_COMPRESSION, _STRIPS, _TILES, _PLANAR, _EXTRA = 259, 273, 324, 284, 338
_BITS, _SAMPLES, _SAMPLE_FORMAT = 258, 277, 339
_SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "float"}
_OLD_JPEG, _JPEG, _SEPARATE = 6, 7, 2
_ANYWHERE = (1, 2, 3, 4, 5, 8, 32773, 32946)  # compressions that every libtiff reads
_COMPRESSIONS = {
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_TIFF_READERS = "tifffile with imagecodecs"


def broken(what: str) -> RunError:
    """E1513: nobody's data, so that it ends the job and quarantines nothing."""
    return RunError("E1513", f"{what} The picture at hand was not judged.")


def judge(error: Exception, data: bytes, name: str | None) -> MedvError:
    """What is to be raised in place of an error of Pillow; `name`: the picture's format, if known.

    DataError E1203 (damaged), E1204, E1209, E1211 (not read here), E1509 (a defect of ours) or
    RunError E1513 (a sound picture is not read here, either). The texts are ours.
    """
    what = f"{len(data)} bytes ({name})" if name else f"{len(data)} bytes"
    name = name or format_of(data[:HEAD_BYTES])
    if isinstance(error, MemoryError):
        return DataError("E1209", f"decoding {what} takes more memory than allowed.")
    if isinstance(error, Image.DecompressionBombError):
        return DataError("E1204", f"the header of {what} announces too many pixels.")
    if isinstance(error, ImportError) or (name and not works(name)):
        return broken(f"Pillow does not read a {name or 'picture'} that is sound.")
    if isinstance(error, ValueError) and "too large" in str(error):
        return DataError("E1209", f"a text chunk of {what} unpacks beyond its limit.")
    if isinstance(error, _DEFECTS) and _is_ours(error.__traceback__):
        return DataError("E1509", f"{type(error).__name__} while {what} were decoded.")
    kind = _not_read(data, name)
    if kind:
        return DataError("E1211", f"{what} are {kind}.")
    phrases = (*_NO_RULE, "invalid palette size") if name == "BMP" else _NO_RULE
    if any(phrase in str(error) for phrase in phrases):
        sort = _samples(data) if name == "TIFF" else "of a kind not decoded"
        return DataError("E1211", f"the pixels of {what} are {sort}.")
    return DataError("E1203", f"cannot decode {what}: damaged or cut short.")


@functools.cache
def works(name: str) -> bool:
    """Whether a small picture that Pillow writes in this format is read again, bits as they were.

    True where Pillow does not write the format: nothing is known then.
    """
    picture = Image.new("L", (16, 16), 200)
    buffer = io.BytesIO()
    options = {"compression": "tiff_lzw"} if name == "TIFF" else {}
    try:
        picture.save(buffer, name, **options)
    except ImportError:
        return False
    except Exception as error:  # a format that is only read, or has no such mode
        return "not available" not in str(error)
    try:
        again = open_header(buffer.getvalue(), [name])
        again.load()
        values = again.convert("L").tobytes()
    except MemoryError:  # of a process that is near its limit
        return True
    except Exception:
        return False
    return 198 <= min(values) <= max(values) <= 202


def _is_ours(frames: TracebackType | None) -> bool:
    """Whether the innermost frame is code of this package."""
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return frames is not None and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _not_read(data: bytes, name: str | None) -> str:
    """What the bytes are, and what reads them, where that is not Pillow; else nothing."""
    if name in ("JPEG", "MPO"):
        coding, _, end = jpeg.read(data)
        # a file without its end is damaged, unless nobody here would look for the end
        whole = end is not None or coding is None or coding.bits != 8
        return f"a {_named(coding)}" if _odd(coding) and (whole or _never(coding)) else ""
    if name == "JPEG2000":
        parts = components_of(data)
        # of colours, Pillow reads such ones
        thin = len(parts) < 3 and any(part[1:] != (1, 1) for part in parts)
        whole = data.rstrip(b"\0").endswith(b"\xff\xd9")
        return "a JPEG 2000 of subsampled grey, which OpenJPEG reads" if thin and whole else ""
    if name != "TIFF":
        return ""
    tags = _tiff_tags(data)
    compression = _number(tags, _COMPRESSION, 1)
    if compression in (_OLD_JPEG, _JPEG):
        start = _number(tags, _STRIPS) or _number(tags, _TILES)
        coding = jpeg.read(data[start:]).coding
        return f"a TIFF that holds a {_named(coding)}" if _odd(coding) else ""
    pillow = TiffImagePlugin.COMPRESSION_INFO.get(compression, "")
    if compression not in _ANYWHERE and not _packs(pillow):
        known = _COMPRESSIONS.get(compression)
        if known is None:
            return f"a TIFF of compression {compression}, which is none that is known here"
        return f"a TIFF of compression {compression} ({known}), which {_TIFF_READERS} reads"
    if _number(tags, _PLANAR) == _SEPARATE and _EXTRA in tags:
        return f"a TIFF of planes with extra channels, which {_TIFF_READERS} reads"
    return ""


def _samples(data: bytes) -> str:
    """What a TIFF's pixels are made of, and what reads them."""
    tags = _tiff_tags(data)
    kind = _SAMPLE_KINDS.get(_number(tags, _SAMPLE_FORMAT, 1), "odd")
    count, bits = _number(tags, _SAMPLES, 1), _number(tags, _BITS, 1)
    return f"{count} {kind} samples of {bits} bits, which {_TIFF_READERS} reads"


def _odd(coding: jpeg.Coding | None) -> bool:
    return coding is not None and not coding.plain


def _never(coding: jpeg.Coding | None) -> bool:
    return coding is not None and coding.marker in jpeg.READERS


def _named(coding: jpeg.Coding | None) -> str:
    reader = jpeg.READERS.get(coding.marker, "imagecodecs") if coding else ""
    return f"{coding}, which {reader} reads"


def _number(tags: dict[int, Any], tag: int, default: int = 0) -> int:
    """The first value of a tag; the default where it is no whole number."""
    value = tags.get(tag, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and value >= 0 else default


def _tiff_tags(data: bytes) -> dict[int, Any]:
    """The first directory of a TIFF; empty where it cannot be read."""
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except Exception:  # a damaged directory raises many types
        return {}


@functools.cache
def _packs(compression: str) -> bool:
    """Whether Pillow's libtiff was built with a compression; by Pillow's name for it."""
    try:
        Image.new("L", (16, 16)).save(io.BytesIO(), "TIFF", compression=compression)
    except Exception:
        return False
    return bool(compression)
