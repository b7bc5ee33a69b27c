"""What a task shows, as the encoded bytes that the engine takes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageOps

from medv_ray.errors import SettingsError

LOSSLESS = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}
"""Pillow's modes that a PNG keeps."""


def encoded(visuals: Sequence[object] | None) -> tuple[bytes, ...]:
    """Image files of Pillow's images, in their order. Raises SettingsError E1001 for what is no
    picture: videos (paths), sounds."""
    found = []
    for visual in visuals or ():
        if not isinstance(visual, Image.Image):
            kind = type(visual).__name__
            raise SettingsError(
                "E1001", f"the task shows a {kind}, and llada_medv sees pictures only."
            )
        found.append(_bytes(visual))
    return tuple(found)


def _bytes(image: Image.Image) -> bytes:
    """The file itself where Pillow has not decoded it yet, else its pixels without loss."""
    file = getattr(image, "fp", None)
    if file is not None and not file.closed:
        place = file.tell()
        file.seek(0)
        data: bytes = file.read()
        file.seek(place)
        return data
    upright = ImageOps.exif_transpose(image)
    buffer = io.BytesIO()
    if upright.mode in LOSSLESS:
        upright.save(buffer, "PNG", compress_level=1)
    elif upright.mode == "CMYK":
        upright.save(buffer, "TIFF")
    else:
        upright.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
