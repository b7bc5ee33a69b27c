"""What an image's encoded bytes tell without decoding: its format, its header, where it ends."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import Image, ImageFile

from medv_ray.errors import DataError, SettingsError

_LOOKS_LIKE = {
    b"<": "HTML, XML or SVG text",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\x1f\x8b": "gzip data",
}
# x and y of the first pixel, and the steps, of each pass of an interlaced PNG
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_INFLATE_STEP = 2**20


def open_header(data: bytes, formats: Sequence[str]) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded.

    `Image.open` is not used: it forgets whether any format knew the bytes, and has pixel limits of
    its own. Raises DataError E1202 when no allowed format knows the bytes, SettingsError E1001 for
    an unknown format, and whatever Pillow raises for a damaged header.
    """
    Image.preinit()
    for name in formats:
        if name.upper() == "DICOM":  # dicom.py's
            continue
        if name.upper() not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name.upper(), (None, None))
        if factory is None or accept is None:
            rule = "is no format that Pillow tells by its first bytes."
            raise SettingsError("E1001", f"image.formats: {name[:20]!r} {rule}")
        known = accept(data[:16])
        # a string says that Pillow was built without this format
        if known and not isinstance(known, str):
            return factory(io.BytesIO(data), "")
    start = data[:256].lstrip()
    guesses = [name for magic, name in _LOOKS_LIKE.items() if start.startswith(magic)]
    if data[128:132] == b"DICM":
        guesses = ["DICOM"]
    like = f"; they look like {guesses[0]}" if guesses else ""
    allowed = ", ".join(formats)
    raise DataError(
        "E1202", f"{len(data)} bytes are none of the allowed formats ({allowed}){like}."
    )


def end_of_png(data: bytes) -> int | None:
    """Offset just behind the image's own bytes; None without an end."""
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
