"""What an image's encoded bytes tell without decoding: its format, its header, where it ends."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import Image, ImageFile

from medv_ray.errors import DataError, RunError, SettingsError
from medv_ray.formats import FORMATS, HEAD_BYTES, format_of, looks_like

NAMES = frozenset(one.name for one in FORMATS)
_READERS = {"JPEG2000": "Pillow, where image.formats lists it", "HEIF": "pillow-heif"}
_READERS["AVIF"] = _READERS["JPEG2000"]
# (offset, bytes, what it is, what reads it): pictures that are no format of the table
_LOOKS_LIKE: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\x0a", "JPEG XL", "imagecodecs"),
    (4, b"JXL \r\n\x87\n", "JPEG XL", "imagecodecs"),
    (0, b"II\xbc", "JPEG XR", "imagecodecs"),
    (4, b"ftyphe", "HEIF", "pillow-heif"),
    (0, b"8BPS", "Photoshop's PSD", "Pillow, where image.formats lists PSD"),
    (0, b"qoif", "QOI", "Pillow, where image.formats lists QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", "imagecodecs"),
    (0, b"SIMPLE  =", "FITS", "astropy"),
    (344, b"n+1\0", "NIfTI", "nibabel"),
    (0, b"NRRD", "NRRD", "pynrrd"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5", "h5py"),
    (0, b"\x93NUMPY", "an array of NumPy", "numpy"),
)
# x and y of the first pixel, and the steps, of each pass of an interlaced PNG
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_INFLATE_STEP = 2**20
SOC_SIZ = b"\xff\x4f\xff\x51"
"""How a JPEG 2000 codestream begins."""


def open_header(data: bytes, formats: Sequence[str]) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded.

    `Image.open` is not used: it forgets whether any format knew the bytes, and has pixel limits of
    its own. Raises DataError E1202 when no allowed format knows the bytes, SettingsError E1001 for
    an unknown format, RunError E1513 for one that Pillow was built without, and whatever Pillow
    raises for a damaged header.
    """
    Image.preinit()
    found = format_of(data[:HEAD_BYTES])
    for name in map(str.upper, formats):
        if name == "DICOM":  # dicom.py's
            continue
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None:
            rule = "is no format that Pillow tells by its first bytes."
            raise SettingsError("E1001", f"image.formats: {name[:20]!r} {rule}")
        known = accept(data[:16]) if name not in NAMES or found == name else False
        if isinstance(known, str):  # it says that Pillow was built without this format
            detail = f"Pillow is built without {name}, which image.formats lists."
            raise RunError("E1513", detail)
        if known if name not in NAMES else found == name:
            return factory(io.BytesIO(data), "")
    allowed = ", ".join(formats)
    detail = f"{len(data)} bytes are none of the allowed formats ({allowed}){_like(data)}."
    raise DataError("E1202", detail)


def _like(data: bytes) -> str:
    """What the bytes look like, and what reads that; empty for none of the known kinds."""
    found = looks_like(data[:HEAD_BYTES])
    name, reader = found or "", _READERS.get(found or "", "")
    for offset, magic, kind, reads in () if found else _LOOKS_LIKE:
        if data[offset : offset + len(magic)] == magic:
            name, reader = kind, reads
    how = f", which {reader} reads" if reader else ""
    return f"; they look like {name}{how}" if name else ""


def end_of_png(data: bytes) -> int | None:
    """Offset just behind the image's own bytes; None without an end."""
    return next((end + 4 for kind, _, end in _png_chunks(data) if kind == b"IEND"), None)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk's content, without its checksum."""
    offset = 8
    while offset + 12 <= len(data):
        end = offset + 8 + int.from_bytes(data[offset : offset + 4], "big")
        yield data[offset + 4 : offset + 8], offset + 8, end
        offset = end + 4


def size_of(head: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG 2000 (ISO 15444-1, A.5.1); None where its head is not there."""
    start = head.find(SOC_SIZ)
    if start < 0 or len(head) < start + 24:
        return None
    right, low, left, top = struct.unpack_from(">4L", head, start + 8)
    return right - left, low - top


def components_of(head: bytes) -> list[tuple[int, int, int]]:
    """Bits, and steps between samples right and down, of each component of a JPEG 2000
    (ISO 15444-1, A.5.1)."""
    start = head.find(SOC_SIZ)
    if start < 0:
        return []
    end = start + 42 + 3 * int.from_bytes(head[start + 40 : start + 42], "big")
    parts = zip(*(head[start + at : end : 3] for at in (42, 43, 44)), strict=False)
    return [((depth & 127) + 1, right, down) for depth, right, down in parts]


def png_bytes(data: bytes) -> tuple[int, int, int]:
    """Bytes of pixels that a PNG's header calls for, that its data hold, and of the last row.

    Counting stops one row beyond what the header calls for. Pillow does not count: it leaves
    missing rows black, and surplus rows out. Raises zlib.error for damaged data.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]

    def row(pixels: int) -> int:
        return 1 + (pixels * bits + 7) // 8 if pixels else 0  # a filter byte comes first

    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    called_for = sum(row(w) * h for w, h in sizes if w > 0 and h > 0)
    held, stream = 0, zlib.decompressobj()
    for kind, start, end in _png_chunks(data):
        rest = data[start:end] if kind == b"IDAT" else b""
        while rest and held < called_for + row(width):
            held += len(stream.decompress(rest, _INFLATE_STEP))
            rest = stream.unconsumed_tail
    return called_for, held, row(width)
