"""From a decoded picture of any mode to 8-bit RGB, by stated rules that leave a word in `warnings`.

Pillow's own `convert("RGB")` clips 16-bit, integer and float pictures at 255 and turns NaN into 0,
in silence: it is used only where it is exact. The table that users read is docs/images.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.errors import DataError

# TIFF tags
HEIGHT, BITS_PER_SAMPLE, PHOTOMETRIC, STRIP_OFFSETS, ORIENTATION = 257, 258, 262, 273, 274
SAMPLES_PER_PIXEL, ROWS_PER_STRIP, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 277, 278, 284, 339
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PLAIN_WORDS = {"1": "bilevel", "CMYK": "cmyk", "YCbCr": "ycbcr", "RGBX": "extra_channels_dropped"}
_FOURTH_BYTE = ("BMP", "DIB", "TGA")
STRIP_ROWS = 256


def to_rgb(image: Image.Image, background: int = 255) -> tuple[Image.Image, list[str]]:
    """RGB picture and the words for what was done to it; none for 8-bit RGB and 8-bit grey.

    Raises DataError E1208 (NaN or infinite values), E1211 (no rule for this mode) and E1213 (of
    one colour once laid on the background).
    """
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        scaled, word = scale(image)
        words = [word]
        if "transparency" in image.info:
            words.append("transparency_ignored")
        return scaled.convert("RGB"), words
    if mode == "L" and 2 in tag(image, SAMPLE_FORMAT):
        raise DataError("E1211", "signed 8-bit pixels have no stated conversion to RGB.")
    words = ["palette"] if mode in ("P", "PA") else []
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgb, word = composite(image, background)
        return rgb, [*words, word]
    if mode in _PLAIN_WORDS:
        words.append(_PLAIN_WORDS[mode])
    elif mode not in ("RGB", "L", "P"):
        raise DataError("E1211", f"pixel mode {mode[:8]!r} has no stated conversion to RGB.")
    return (image if mode == "RGB" else image.convert("RGB")), words


def scale(image: Image.Image) -> tuple[Image.Image, str]:
    """8-bit grey by min-max scaling: lowest value 0, highest 255; a constant picture becomes 0.

    TIFF's white-is-zero is inverted afterwards. Raises DataError E1208.
    """
    values: NDArray[Any] = np.asarray(image)
    unsigned = tag(image, BITS_PER_SAMPLE) == (32,) and 2 not in tag(image, SAMPLE_FORMAT)
    if image.mode == "I" and unsigned:
        values = values.view(np.uint32)  # Pillow holds unsigned 32-bit pixels in a signed mode
    if not np.isfinite(values).all():
        raise DataError("E1208", "the float image holds NaN or infinite values.")
    low, high = float(values.min()), float(values.max())
    grey = stretch(values, low, high)
    kind = {"I": "grey32", "F": "float"}.get(image.mode, "grey16")
    word = f"{kind}_scaled:{low:.10g}..{high:.10g}"
    if tag(image, PHOTOMETRIC) == (0,):
        return Image.fromarray(255 - grey), word + ",inverted"
    return Image.fromarray(grey), word


def stretch(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """uint8[...] of values [...]: `low` and what is below becomes 0, `high` 255; all 0 where they
    are one. Rounded half to even."""
    shown = np.zeros(values.shape, np.uint8)
    if high > low:
        for rows in strips(values):
            strip = np.clip(values[rows].astype(np.float64), low, high)
            shown[rows] = np.rint((strip - low) * (255 / (high - low)))
    return shown


def strips(values: NDArray[Any]) -> list[slice]:
    """The rows of any[H, ...], some at a time, so that float64 copies stay small."""
    return [slice(top, top + STRIP_ROWS) for top in range(0, len(values), STRIP_ROWS)]


def composite(image: Image.Image, background: int) -> tuple[Image.Image, str]:
    """The picture laid over a grey background by its alpha channel or its transparent colour.

    Raises DataError E1213 where that leaves one colour. The fourth byte of a BMP's or TGA's pixel
    is often no alpha, and 0 everywhere: there, the colours are what viewers show.
    """
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.replace("a", "A"))
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    least, most = rgba.getchannel("A").getextrema()
    if least == 255:
        return rgba.convert("RGB"), "alpha_opaque"
    if most == 0 and image.format in _FOURTH_BYTE:
        return rgba.convert("RGB"), "alpha_ignored"
    canvas = Image.new("RGB", rgba.size, (background, background, background))
    canvas.paste(rgba, mask=rgba)
    if np.ptp(np.asarray(canvas.getextrema()), axis=1).max() < 2:
        raise DataError("E1213", f"laid on grey {background}, the picture is of one colour.")
    return canvas, f"alpha_composited:{background}"


def header_words(image: Image.Image) -> list[str]:
    """Words for what Pillow's decoder will do in silence; to be asked before decoding."""
    raw = [str(tile.args) for tile in getattr(image, "tile", [])]
    dropped = image.format == "TIFF" and any("X" in mode.split(",")[0] for mode in raw)
    return ["extra_channels_dropped"] if dropped else []


def orientation(image: Image.Image) -> int | None:
    """1 to 8 by EXIF or XMP; 1 without; None when the EXIF block cannot be read.

    To be asked after decoding: a PNG may carry it behind its pixels.
    """
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises many types, and the picture is still good
        return None
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def tiff_orientation(image: Image.Image) -> int:
    """Orientation that Pillow's TIFF reader will apply while decoding; 1 for other formats."""
    value = tag(image, ORIENTATION)
    return int(value[0]) if value and value[0] in _TRANSPOSE else 1


def check_tiff_strips(image: Image.Image) -> None:
    """Raises DataError E1207 for a TIFF that lists fewer strips than its height calls for.

    Pillow leaves the missing ones black. No-op for other formats and for tiled files.
    """
    strips, (height,) = len(tag(image, STRIP_OFFSETS)), tag(image, HEIGHT) or (0,)
    planes = (tag(image, SAMPLES_PER_PIXEL) or (1,))[0]
    planes = planes if tag(image, PLANAR_CONFIGURATION) == (2,) else 1
    rows = (tag(image, ROWS_PER_STRIP) or (height,))[0]
    if strips and strips // planes * rows < height:
        raise DataError("E1207", f"the header announces {height} rows, the strips hold fewer.")


def upright(image: Image.Image, value: int) -> Image.Image:
    """The picture as its EXIF orientation wants it shown."""
    return image.transpose(_TRANSPOSE[value]) if value in _TRANSPOSE else image


def tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """A TIFF tag as a tuple; empty for other formats and absent tags."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)
