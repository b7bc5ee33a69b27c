"""What an image's encoded bytes tell without decoding: its format, its header, where it ends."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import Image

from medv_ray.errors import DataError, SettingsError
from medv_ray.formats import FORMATS, HEAD_BYTES, format_of, looks_like

NAMES = frozenset(one.name for one in FORMATS)
# x and y of the first pixel, and the steps, of each pass of an interlaced PNG
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_INFLATE_STEP = 2**20
# A marker that ends entropy-coded JPEG data: not a stuffed zero, a fill byte or a restart marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def open_header(data: bytes, formats: Sequence[str]) -> Image.Image:
    """The image with its header read and no pixel decoded.

    `Image.open` is not used: it forgets whether any format knew the bytes, and has pixel limits of
    its own. Raises DataError E1202 when no allowed format knows the bytes, SettingsError E1001 for
    an unknown format, and whatever Pillow raises for a damaged header.
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
        known = found == name if name in NAMES else accept(data[:16])
        # a string says that Pillow was built without this format
        if known and not isinstance(known, str):
            return factory(io.BytesIO(data), "")
    guess = looks_like(data[:HEAD_BYTES])
    like = f"; they look like {guess}" if guess else ""
    allowed = ", ".join(formats)
    raise DataError(
        "E1202", f"{len(data)} bytes are none of the allowed formats ({allowed}){like}."
    )


def end_of_image(data: bytes, image_format: str | None) -> int | None:
    """Offset just behind the image's own bytes, for JPEG and PNG; else None, as without an end."""
    if image_format in ("JPEG", "MPO"):
        return _end_of_jpeg(data)
    return _end_of_png(data) if image_format == "PNG" else None


def _end_of_jpeg(data: bytes) -> int | None:
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 2 <= len(data):
        marker = data[place + 1]
        if marker == 0xD9:
            return place + 2
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # no length follows
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + max(int.from_bytes(data[place + 2 : place + 4], "big"), 2)
        if marker == 0xDA:
            found = _JPEG_MARKER.search(data, place)
            if found is None:
                return None
            place = found.start()
    return None


def _end_of_png(data: bytes) -> int | None:
    return next((end + 4 for kind, _, end in _png_chunks(data) if kind == b"IEND"), None)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk's content, without its checksum."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], place + 8, end
        place = end + 4


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
