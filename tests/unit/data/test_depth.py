"""Colour and alpha of 16 bits a channel: scaled over one range in every format, never cut off."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medv_ray.data import depth
from medv_ray.data.images import decode
from medv_ray.errors import DataError
from medv_ray.settings import ImageSettings

RNG = np.random.default_rng(0)
SIDE = 32
Y, X = np.mgrid[:SIDE, :SIDE]
COLOUR = np.dstack([X * 132, Y * 132, (X + Y) * 66 + 3]).astype(np.uint16)  # 0 .. 4095
GREY = COLOUR[..., 2:]
RAMP = (X[..., None] * 132).astype(np.uint16)  # an alpha of 12 bits, 0 .. 4092
WHOLE = np.full_like(RAMP, 4095)


def png(values: np.ndarray, more: bytes = b"", lace: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    passes = [(0, 0, 1, 1)]
    if lace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [values[y::dy, x::dx].astype(">u2") for x, y, dx, dy in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    head = struct.pack(">IIBBBBB", *values.shape[1::-1], 16, colour, 0, 0, lace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + more
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    values: np.ndarray,
    order: str = "<",
    planar: int = 1,
    extra: int = 2,
    packed: bool = False,
    **tags: int | list[int],
) -> bytes:
    """A TIFF of one strip, or of one a plane."""
    rows, columns, bands = values.shape
    body = values.transpose(2, 0, 1) if planar == 2 else values
    planes = body if planar == 2 else body[None]
    strips = [plane.astype(f"{order}u{values.itemsize}").tobytes() for plane in planes]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    pixels = b"".join(strips)
    entries: dict[int, list[int]] = {
        256: [columns],
        257: [rows],
        258: [8 * values.itemsize] * bands,
        259: [8 if packed else 1],
        262: [2 if bands > 2 else 1],
        273: [8 + len(b"".join(strips[:index])) for index in range(len(strips))],
        277: [bands],
        278: [rows],
        279: [len(strip) for strip in strips],
        284: [planar],
        **({338: [extra]} if bands in (2, 4) and extra >= 0 else {}),
        **{int(k[1:]): v if isinstance(v, list) else [v] for k, v in tags.items()},
    }
    start, cells, behind = 8 + len(pixels), b"", b""
    after = start + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        data = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(data) > 4:
            behind, data = behind + data, struct.pack(order + "I", after + len(behind))
        cells += struct.pack(order + "HHI", tag, kind, len(numbers)) + data.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HI", 42, start)
    return head + pixels + struct.pack(order + "H", len(entries)) + cells + bytes(4) + behind


def shown(data: bytes, **settings: object) -> tuple[np.ndarray, list[str]]:
    picture, words = decode(data, ImageSettings(**settings))
    return np.asarray(picture), words


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    return np.rint((values.astype(float) - low) * (255 / (high - low))).astype(np.uint8)


COLOURS = {
    "PNG": png(COLOUR),
    "PNG, interlaced": png(COLOUR, lace=1),
    **{f"TIFF {o}{p}": tiff(COLOUR, o, p) for o in "<>" for p in (1, 2)},
    **{f"TIFF {o}, deflated": tiff(COLOUR, o, packed=True) for o in "<>"},
    "TIFF with a dropped channel": tiff(np.dstack([COLOUR, RAMP]), extra=0),
    "PNG, opaque": png(np.dstack([COLOUR, WHOLE])),
    "TIFF, opaque": tiff(np.dstack([COLOUR, WHOLE])),
}


@pytest.mark.parametrize("data", COLOURS.values(), ids=COLOURS)
def test_colour_is_scaled_over_one_range(data: bytes) -> None:
    got, words = shown(data)
    assert np.array_equal(got, scaled(COLOUR))
    assert "colour16_scaled:0..4095" in words


def test_both_bytes_count() -> None:
    """Values whose low bytes carry the picture."""
    fine = (COLOUR // 16 + 512).astype(np.uint16)
    assert np.array_equal(shown(png(fine))[0], scaled(fine))
    assert np.array_equal(shown(tiff(fine, ">"))[0], scaled(fine))
    flat = np.full((SIDE, SIDE, 3), 700, np.uint16)
    got, words = shown(png(flat))
    assert (got == 0).all()
    assert words == ["colour16_scaled:700..700"]


def test_alpha_of_16_bits() -> None:
    """Its highest value is opaque; hidden pixels do not stretch the range."""
    hidden = np.dstack([COLOUR, RAMP])
    hidden[:, 0, :3] = 65535
    low, high = COLOUR[:, 1:].min(), COLOUR[:, 1:].max()
    straight = np.clip((COLOUR.astype(float) - low) * (255 / (high - low)), 0, 255)
    share = np.rint(RAMP * (255 / RAMP.max())) / 255
    want = straight * share + 255 * (1 - share)
    for data in (png(hidden), tiff(hidden), tiff(hidden, ">", 2)):
        got, words = shown(data)
        assert np.abs(got - want).max() <= 1
        assert words == [f"colour16_scaled:{low}..{high}", "alpha_composited:255"]
    ramp = np.maximum(RAMP, 132)
    grey, words = shown(png(np.dstack([GREY, ramp])), background=0)
    assert np.abs(grey - scaled(GREY) * (ramp / ramp.max())).max() <= 1
    assert words == ["grey16_scaled:3..4095", "alpha_composited:0"]
    assert shown(png(np.dstack([GREY, WHOLE])))[1] == ["grey16_scaled:3..4095", "alpha_opaque"]
    with pytest.raises(DataError) as caught:
        shown(png(np.dstack([COLOUR, WHOLE * 0])))
    assert caught.value.code == "E1213"


def test_premultiplied_alpha_of_16_bits() -> None:
    alpha = np.maximum(RAMP.astype(np.uint32) * 16, 600)
    stored = (COLOUR.astype(np.uint32) * 16 * alpha // 65535).astype(np.uint16)
    premultiplied = tiff(np.dstack([stored, alpha.astype(np.uint16)]), extra=1)
    straight = tiff(np.dstack([COLOUR * 16, alpha.astype(np.uint16)]), extra=2)
    got, words = shown(premultiplied, background=0)
    assert np.abs(got.astype(int) - shown(straight, background=0)[0]).max() <= 2
    assert words[-1] == "alpha_composited:0"


def test_a_transparent_colour_of_16_bits_is_compared_whole() -> None:
    values = COLOUR.copy()
    values[:, :8] = (1000, 1000, 1001)
    values[:, 8:12] = (1000, 1000, 1000)  # the same high bytes
    trns = struct.pack(">3H", 1000, 1000, 1001)
    chunk = struct.pack(">I", 6) + b"tRNS" + trns + struct.pack(">I", zlib.crc32(b"tRNS" + trns))
    got, words = shown(png(values, chunk), background=9)
    assert (got[:, :8] == 9).all()
    assert not (got[:, 8:12] == 9).any()
    assert words[-1] == "alpha_composited:9"


@pytest.mark.parametrize("rows", [1, 7])
def test_strips_make_no_difference(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(np.dstack([COLOUR, RAMP]))
    want = shown(data)
    monkeypatch.setattr(depth, "STRIP_ROWS", rows)
    got = shown(data)
    assert np.array_equal(got[0], want[0])
    assert got[1] == want[1]


def test_depths_without_a_rule_are_refused() -> None:
    planes = io.BytesIO()
    Image.fromarray(COLOUR.astype(np.uint8)).save(planes, "JPEG2000")
    stream = bytearray(planes.getvalue())
    siz = stream.index(b"\xff\x4f\xff\x51")
    stream[siz + 42 : siz + 51 : 3] = b"\x0b" * 3  # says 12 bits
    ppm = b"P6 32 32 65535\n" + COLOUR.astype(">u2").tobytes()
    pressed = tiff(COLOUR, planar=2, packed=True)
    ink = tiff(np.dstack([COLOUR, RAMP]), t262=5, extra=-1)
    for data in (ppm, bytes(stream), ink, pressed):
        with pytest.raises(DataError, match="more than 8 bits a channel") as caught:
            shown(data, formats=("TIFF", "PPM", "JPEG2000"))
        assert caught.value.code == "E1211"


def test_pixels_of_16_bits_are_not_deep() -> None:
    # a BMP of 5, 6 and 5 bits: green, from the bottom row up
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    pixels = struct.pack("<H", 0x07E0) * (SIDE * SIDE)
    head = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    file = struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66)
    picture, words = decode(b"BM" + file + head + masks + pixels, ImageSettings())
    assert (picture.getcolors(), words) == ([(SIDE * SIDE, (0, 255, 0))], [])


@pytest.mark.parametrize(
    ("wide", "word"),
    [(1, "palette8"), (256, None), (257, None), (16, "palette16_scaled:0..4080")],
)
def test_palettes_of_16_bits(wide: int, word: str | None) -> None:
    table = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2])
    index = (X + 8 * Y).astype(np.uint8)[..., None]
    index[0, :2, 0] = 0, 255
    data = tiff(index, t262=3, t320=(table * wide).ravel().tolist())
    got, words = shown(data)
    assert np.abs(got.astype(int) - table.T[index[..., 0]]).max() == 0
    assert words == ["palette", *([word] if word else [])]
