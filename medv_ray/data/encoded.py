"""What an image's encoded bytes tell without decoding: its format, its header, where it ends."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from PIL import Image

from medv_ray.errors import DataError, SettingsError

_LOOKS_LIKE = {
    b"<": "HTML, XML or SVG text",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\x1f\x8b": "gzip data",
}
# A marker that ends entropy-coded JPEG data: not a stuffed zero, a fill byte or a restart marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def open_header(data: bytes, formats: Sequence[str]) -> Image.Image:
    """The image with its header read and no pixel decoded.

    `Image.open` is not used: it forgets whether any format knew the bytes, and has pixel limits of its own.
    Raises DataError E1202 when no allowed format knows the bytes, SettingsError E1001 for an unknown format, and
    whatever Pillow raises for a damaged header.
    """
    Image.preinit()
    for name in formats:
        if name.upper() not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name.upper(), (None, None))
        if factory is None or accept is None:
            raise SettingsError("E1001", f"image.formats: {name[:20]!r} is no format that Pillow tells by signature.")
        known = accept(data[:16])
        if known and not isinstance(known, str):  # a string says that Pillow was built without this format
            return factory(io.BytesIO(data), "")
    start = data[:256].lstrip()
    guess = next((f"; they look like {name}" for magic, name in _LOOKS_LIKE.items() if start.startswith(magic)), "")
    if data[128:132] == b"DICM":
        guess = "; they look like DICOM"
    raise DataError("E1202", f"{len(data)} bytes are none of the allowed formats ({', '.join(formats)}){guess}.")


def end_of_image(data: bytes, image_format: str | None) -> int | None:
    """Offset just behind the image's own bytes, for JPEG and PNG; None where it has no end, or for other formats."""
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
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            return place
    return None
