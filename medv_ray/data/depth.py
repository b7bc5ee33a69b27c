"""Colour and alpha of 16 bits a channel, of which Pillow keeps one byte of two.

A picture whose values end at 4095 would come out nearly black. So it is decoded twice, the second
time as if its bytes were in the other order, and the two halves make whole values. Also the colour
maps of TIFF, whose entries have 16 bits. H rows, W columns, C channels.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from medv_ray.data.encoded import components_of
from medv_ray.data.pixels import BITS_PER_SAMPLE, PLANAR_CONFIGURATION, STRIP_ROWS, stretch, tag
from medv_ray.errors import DataError

_COLOR_MAP = 320
_LA = "LA;16B"  # which Pillow has for one byte order only
# of two bytes a channel; without a byte order (BGR;16) a whole pixel has two
_DEEP_RAW = re.compile(r";16[LBN]")


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would drop a byte of each value. To be asked before decoding.

    Raises DataError E1211 for such pictures that have no rule: CMYK, compressed planes of a TIFF,
    and formats other than PNG and TIFF.
    """
    if image.mode[0] in "IF":
        return False
    raw = " ".join(str(tile.args) for tile in image.tile)
    deep = bool(_DEEP_RAW.search(raw)) or tag(image, BITS_PER_SAMPLE)[:1] == (16,)
    if image.format == "JPEG2000":
        deep = image.mode != "L" and _deep_codestream(image)
    if image.format == "PPM" and image.tile:
        args = image.tile[0].args
        deep = isinstance(args, tuple) and isinstance(args[-1], int) and args[-1] > 255
    # of compressed planes libtiff's part of Pillow hands out the high bytes alone
    planes = tag(image, PLANAR_CONFIGURATION) == (2,) and image.tile[0].codec_name == "libtiff"
    known = image.format in ("PNG", "TIFF") and image.mode in ("RGB", "RGBA") and not planes
    if deep and not known:
        kind = f"{image.mode} in {image.format}{', in compressed planes' if planes else ''}"
        detail = f"more than 8 bits a channel ({kind}) have no stated conversion to RGB."
        raise DataError("E1211", detail)
    return deep


def read_deep(
    source: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]
) -> tuple[Image.Image, list[str]]:
    """Mode L, LA, RGB or RGBA, and words; all colours scaled over one range.

    The lowest value of any colour becomes 0 and the highest 255; pixels without opacity do not
    count. The highest alpha counts as opaque. `again` opens the same picture once more.
    """
    halves = _halves(source, again)
    premultiplied = any("RGBa" in _raw(tile.args) for tile in source.tile)
    for half, raws in halves:
        half.tile = [
            tile._replace(args=_with_raw(tile.args, raw))
            for tile, raw in zip(half.tile, raws, strict=True)
        ]
        half.load()
    first = halves[0][0]
    grey, key = len(halves) == 1, source.info.get("transparency")
    bands = 2 if grey else len(first.getbands())
    alpha = bands in (2, 4) or key is not None

    def strips() -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """(first row, uint16[h, W, C]) of colours and alpha."""
        for top in range(0, first.height, STRIP_ROWS):
            box = (0, top, first.width, min(top + STRIP_ROWS, first.height))
            parts = [np.asarray(half.crop(box), np.uint16) for half, _ in halves]
            if grey:
                yield top, parts[0][..., ::2] * 256 + parts[0][..., 1::2]
                continue
            values = parts[0] * 256 + parts[1]
            if key is not None and bands != 4:
                shown = (values != np.asarray(key, np.uint16)).any(-1, keepdims=True)
                values = np.concatenate([values, shown * np.uint16(65535)], -1)
            elif premultiplied:
                values = _straight(values)
            yield top, values

    low, high, opaque = 65535, 0, 0
    for _, values in strips():
        colours = values
        if alpha:
            colours, opaque = values[..., :-1], max(opaque, int(values[..., -1].max()))
            colours = colours[values[..., -1] > 0]
        if colours.size:
            low, high = min(low, int(colours.min())), max(high, int(colours.max()))
    low = min(low, high)
    count = bands + (alpha and bands == 3)
    result = np.zeros((first.height, first.width, count), np.uint8)
    every = np.arange(65536)
    colour_of, alpha_of = stretch(every, low, high), stretch(every, 0, opaque)
    for top, values in strips():
        part = result[top : top + len(values)]
        if alpha:
            part[..., -1] = alpha_of[values[..., -1]]
            part, values = part[..., :-1], values[..., :-1]
        part[:] = colour_of[values]
    word = f"{'grey' if grey else 'colour'}16_scaled:{low}..{high}"
    return Image.fromarray(result), [word]


def _halves(
    source: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]
) -> list[tuple[ImageFile.ImageFile, list[str]]]:
    """Pictures to decode and the raw modes for it: the high bytes, then the low ones.

    Grey with alpha needs one alone: its two times two bytes are read as four channels.
    """
    raws = [_raw(tile.args).replace("RGBa", "RGBA") for tile in source.tile]
    if raws == [_LA]:
        return [(source, ["RGBA"])]
    if tag(source, PLANAR_CONFIGURATION) == (2,):
        # in files without compression Pillow takes such planes for 8 bits
        order = "B" if getattr(source, "tag_v2").prefix == b"MM" else "L"  # noqa: B009
        raws = [raw if ";16" in raw else f"{raw};16{order}" for raw in raws]
    return [(source, raws), (again(), [_other_byte(raw) for raw in raws])]


def _other_byte(raw: str) -> str:
    """The raw mode of the other byte order; N is the machine's own."""
    big = raw[-1] == "B" or (raw[-1] == "N" and sys.byteorder == "big")
    return raw[:-1] + ("L" if big else "B")


def _raw(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple) else args)


def _with_raw(args: Any, raw: str) -> Any:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _straight(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Colours that were stored multiplied by their alpha, divided by it."""
    alpha = values[..., -1:].astype(np.float64)
    colours = values[..., :-1] * (65535 / np.maximum(alpha, 1))
    whole = np.concatenate([np.minimum(np.rint(colours), 65535), alpha], -1)
    return whole.astype(np.uint16)


def _deep_codestream(image: Image.Image) -> bool:
    """Whether any component of a JPEG 2000 picture has more than 8 bits."""
    stream = getattr(image, "fp")  # noqa: B009
    before = stream.tell()
    stream.seek(0)
    head = stream.read(2**16)
    stream.seek(before)
    return any(bits > 8 for bits, *_ in components_of(head))


def narrow_palette(image: Image.Image) -> list[str]:
    """Give a TIFF's palette the right 8 bits of its 16, and return the words.

    To be asked after decoding.
    """
    entries: NDArray[np.int64] = np.asarray(tag(image, _COLOR_MAP), np.int64)
    if image.mode != "P" or not entries.size or entries.size % 3:
        return []
    colours = entries.reshape(3, -1).T[:256]
    counts = np.asarray(image.histogram()[: len(colours)])
    eight, words = eight_bits(colours, colours[counts > 0])
    image.putpalette(eight.tobytes())
    return words


def eight_bits(colours: NDArray[Any], used: NDArray[Any]) -> tuple[NDArray[np.uint8], list[str]]:
    """uint8[...] of a palette's 16-bit colours [...], and words; `used`: those of the picture.

    Values under 256 are 8-bit ones in wide cells (libtiff's tools hold them for that, too); all
    multiples of 256 or of 257 are 8-bit ones made wide; others are scaled over their range.
    """
    used = used if used.size else colours
    if colours.max() < 256:
        return colours.astype(np.uint8), ["palette8"] if colours.max() else []
    if not (used % 256).any() or not (used % 257).any():
        return (colours // 256).astype(np.uint8), []
    low, high = int(used.min()), int(used.max())
    return stretch(colours, low, high), [f"palette16_scaled:{low}..{high}"]
