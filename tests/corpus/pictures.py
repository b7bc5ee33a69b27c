"""Kinds 1 to 30: bytes that are called a picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.corpus.kinds import Kind


@cache
def texture(width: int = 96, height: int = 80) -> Image.Image:
    """A coloured picture, the same in every run."""
    small = np.random.default_rng(7).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    """`data` is compressed already."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(amount: int) -> bytes:
    """So many zero bytes, deflated."""
    deflate = zlib.compressobj(9)
    piece = bytes(2**20)
    parts = [deflate.compress(piece) for _ in range(amount // 2**20)]
    return b"".join([*parts, deflate.compress(piece[: amount % 2**20]), deflate.flush()])


def bomb(side: int) -> bytes:
    """A black square of one bit a pixel."""
    return png(side, side, zeros((side // 8 + 1) * side), depth=1)


def zipped_text_bomb() -> bytes:
    return _png()[:33] + chunk(b"zTXt", b"c\0\0" + zeros(200 * 10**6)) + _png()[33:]


@cache
def _jpeg() -> bytes:
    return encode(texture(640, 480), "JPEG", quality=90)


@cache
def _png() -> bytes:
    return encode(texture(), "PNG")


def flipped() -> bytes:
    data = bytearray(_jpeg())
    start = data.index(b"\xff\xda") + 20
    for place in np.random.default_rng(1).integers(start, len(data) - 10, 20):
        if data[place] != 0xFF and data[place] ^ 4 != 0xFF:  # no marker made, none unmade
            data[place] ^= 4
    return bytes(data)


def zeroed_tail(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 2) + data[-2:]


def noise() -> bytes:
    """Its zeros are codes enough to fill the picture."""
    array = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    return encode(Image.fromarray(array), "JPEG", quality=100)


def turned(kind: str, turn: int) -> bytes:
    exif = Image.Exif()
    exif[274] = turn
    return encode(texture(), kind, exif=exif)


def grey16(highest: int) -> Image.Image:
    return Image.fromarray(np.linspace(0, highest, 64 * 48).astype(np.uint16).reshape(48, 64))


def floats(value: float) -> bytes:
    """Hounsfield units, one of them replaced."""
    array = np.linspace(-1000, 3000, 64 * 48).astype(np.float32).reshape(48, 64)
    array[3, 5] = value
    return encode(Image.fromarray(array), "TIFF")


def frames(kind: str) -> bytes:
    pictures = [texture().rotate(90 * turn) for turn in range(3)]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:])


def clear() -> bytes:
    return encode(
        Image.merge("RGBA", (*texture().split(), Image.new("L", texture().size, 0))), "PNG"
    )


def half_clear() -> bytes:
    alpha = Image.linear_gradient("L").resize(texture().size)
    return encode(Image.merge("RGBA", (*texture().split(), alpha)), "PNG")


HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>"


Make = Callable[[], bytes]


def of(file: str, make: Make) -> Callable[[Path], tuple[str, bytes]]:
    return lambda folder: (file, make())


def kinds() -> Iterator[Kind]:
    """Inputs are (file name, bytes)."""

    def one(number: int, name: str, want: str, file: str, make: Make, note: str = "") -> Kind:
        return Kind(number, name, want, {"": of(file, make)}, note=note)

    yield one(1, "empty", "E1201", "a.png", lambda: b"")
    yield one(2, "one byte", "E1202", "a.jpg", lambda: b"\xff")
    yield one(3, "random 4 KiB", "E1202", "a.png", lambda: np.random.default_rng(3).bytes(4096))
    yield one(4, "HTML page of a 404", "E1202", "a.jpg", lambda: HTML)
    yield one(5, "ZIP named .png", "E1202", "a.png", lambda: b"PK\x03\x04" + bytes(100))
    yield one(6, "SVG", "E1202", "a.png", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    yield one(
        7, "EPS", "E1202", "a.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    )
    yield one(8, "HEIC", "E1202", "a.heic", lambda: b"\0\0\0\x18ftypheic" + bytes(100))
    yield one(9, "JPEG cut at 50 %", "E1203", "a.jpg", lambda: _jpeg()[: len(_jpeg()) // 2])
    yield one(10, "JPEG cut at 99 %", "E1203", "a.jpg", lambda: _jpeg()[: len(_jpeg()) * 99 // 100])
    yield one(11, "JPEG header alone", "E1203", "a.jpg", lambda: _jpeg()[:200])
    yield one(
        12,
        "JPEG with 20 flipped bytes in its scan",
        "E1203 | ok *",
        "a.jpg",
        flipped,
        "Flipped bits that still decode are not noticed: JPEG has no checksum (docs/images.md).",
    )
    yield Kind(
        13,
        "JPEG whose second half is zeros",
        "E1203 | ok suspect_flat_tail",
        {
            "tissue": of("a.jpg", lambda: zeroed_tail(_jpeg())),
            "noise": of("a.jpg", lambda: zeroed_tail(noise())),
        },
    )
    yield one(
        14,
        "JPEG with 1 MB behind its end",
        "ok trailing_bytes",
        "a.jpg",
        lambda: _jpeg() + bytes(10**6),
    )
    yield one(
        15, "CMYK JPEG", "ok cmyk", "a.jpg", lambda: encode(texture().convert("CMYK"), "JPEG")
    )
    yield Kind(
        16,
        "EXIF orientation 2 to 8",
        "ok exif_transposed",
        {
            f"{kind} {turn}": of(f"a.{kind.lower()}", lambda k=kind, t=turn: turned(k, t))
            for kind, turn in [*(("JPEG", turn) for turn in range(2, 9)), ("PNG", 6), ("TIFF", 6)]
        },
    )
    yield one(17, "PNG cut", "E1203", "a.png", lambda: _png()[: len(_png()) // 2])
    yield one(
        18,
        "PNG with a wrong checksum",
        "E1203",
        "a.png",
        lambda: _png()[:60] + bytes([_png()[60] ^ 1]) + _png()[61:],
    )
    yield one(19, "PNG of 0 x 0", "E1203 E1205", "a.png", lambda: png(0, 0, zeros(1)))
    yield one(
        20, "PNG header of 60,000 squared, no data", "E1204", "a.png", lambda: png(60000, 60000)
    )
    yield one(
        21, "PNG of 2^31 - 1 squared", "E1204", "a.png", lambda: png(2**31 - 1, 2**31 - 1, zeros(9))
    )
    yield one(22, "bomb of 12,000 squared", "E1204", "a.png", lambda: bomb(12000))
    yield one(23, "bomb of 20,000 squared", "E1204", "a.png", lambda: bomb(20000))
    yield one(24, "zTXt of 200 MB", "E1209", "a.png", zipped_text_bomb)
    scaled = (
        "Scaled from lowest to highest value and said so: a policy in docs/images.md, no window."
    )
    yield Kind(
        25,
        "16-bit grey",
        "ok grey16_scaled",
        {
            "PNG": of("a.png", lambda: encode(grey16(65535), "PNG")),
            "TIFF": of("a.tif", lambda: encode(grey16(65535), "TIFF")),
        },
        note=scaled,
    )
    yield one(
        26,
        "12 bits in 16",
        "ok grey16_scaled",
        "a.png",
        lambda: encode(grey16(4095), "PNG"),
        scaled,
    )
    yield Kind(
        27,
        "float TIFF in HU",
        "ok float_scaled",
        {"finite": of("a.tif", lambda: floats(0.0))},
        note=scaled,
    )
    yield Kind(
        27,
        "float TIFF with NaN, infinity",
        "E1208",
        {
            "NaN": of("a.tif", lambda: floats(float("nan"))),
            "infinity": of("a.tif", lambda: floats(float("-inf"))),
        },
    )
    yield one(
        28,
        "RGBA, transparent everywhere",
        "E1213",
        "a.png",
        clear,
        "Composited, it is one colour: nothing to answer from.",
    )
    yield one(28, "RGBA, transparent in part", "ok alpha_composited", "a.png", half_clear)
    yield Kind(
        29,
        "1 x 1, 1 x 20,000, 20 x 20,000",
        "E1205 E1206",
        {
            f"{width} x {height}": of(
                "a.png",
                lambda w=width, h=height: png(w, h, zeros((w + 1) * h)),
            )
            for width, height in ((1, 1), (1, 20000), (20, 20000))
        },
    )
    yield Kind(
        30,
        "several pages or frames",
        "ok first_of_frames",
        {
            kind: of(f"a.{kind.lower()}", lambda k=kind: frames(k))
            for kind in ("TIFF", "GIF", "WEBP", "PNG")
        },
        note="The first, and said so; `image.frames` decides.",
    )
