"""Files of several frames and pages, each frame of one grey."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tests.dicom_files import EXPLICIT, IMPLICIT, dataset, encode

SIDE = 24
CAPTURES = "1.2.840.10008.5.1.4.1.1.7.2"


def page(grey: int, **tags: int) -> Image.Image:
    """A picture of one grey; `tags` are those of a page of a TIFF, as t254=1."""
    image = Image.new("L", (SIDE, SIDE), grey)
    info = {int(name[1:]): value for name, value in tags.items()}
    image.encoderinfo = {"tiffinfo": info}  # what Pillow takes for each page of its own
    return image


def tiff(pages: Sequence[Image.Image], **options: object) -> bytes:
    buffer = io.BytesIO()
    first = getattr(pages[0], "encoderinfo", {})
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **{**first, **options})
    return buffer.getvalue()


def greys(kind: str, values: Sequence[int], **options: object) -> bytes:
    """An animation of any kind that Pillow writes."""
    frames = [Image.new("RGB", (SIDE, SIDE), (value, 0, 0)) for value in values]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def dicom(values: Sequence[int], implicit: bool = False, **elements: object) -> bytes:
    """Uncompressed frames of one grey each, shown as they are stored."""
    frames = np.stack([np.full((SIDE, SIDE), value, np.uint8) for value in values])
    shown = {"WindowCenter": "128", "WindowWidth": "256", "SOPClassUID": CAPTURES}
    syntax = IMPLICIT if implicit else EXPLICIT
    return encode(dataset(frames, syntax=syntax, **shown | elements))
