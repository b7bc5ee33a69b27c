"""Images: refusals by code, stated conversions, tiles. Every file is made here."""

import io
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from medv_ray.canvases import TileSettings, best_canvas
from medv_ray.data import jpeg
from medv_ray.data.images import Prepared, prepare
from medv_ray.errors import CATALOGUE, DataError, SettingsError
from medv_ray.settings import ImageSettings

RNG = np.random.default_rng(0)
TILES = TileSettings("square", 32)
RGB = Image.fromarray(RNG.integers(0, 255, (10, 10, 3), dtype=np.uint8)).resize((64, 48))
ARRAY = np.asarray(RGB)
GREY16 = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
AS_IS = TileSettings("square", 64)  # with a 64 x 64 picture no resampling hides what was done


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2, lace: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def square(array: np.ndarray) -> np.ndarray:
    """A 64 x 64 corner with the values of `array` repeated."""
    return np.resize(array, (64, 64, *array.shape[2:]))


def pixels(data: bytes, **settings: object) -> tuple[np.ndarray, tuple[str, ...]]:
    """The 64 x 64 picture as converted, and the warnings."""
    got = prepare(data, ImageSettings(**settings), AS_IS)
    assert got.size_wh == (64, 64)
    return got.tiles[0], got.warnings


JPEG = encode(RGB, "JPEG", quality=90)
LARGE_JPEG = encode(RGB.resize((640, 480)), "JPEG", quality=90)
PNG = encode(RGB, "PNG")
SOF = JPEG.index(b"\xff\xc0")  # then length, depth, height, width


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def zeroed_tail(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def with_text_bomb(data: bytes, place: int) -> bytes:
    return data[:place] + chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(2**26))) + data[place:]


def with_nan(value: float) -> bytes:
    floats = GREY16.astype(np.float32)
    floats[3, 5] = value
    return encode(Image.fromarray(floats), "TIFF")


def tiff_patched(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with one tag's value changed."""
    patched = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        found, kind = struct.unpack_from("<HH", data, place)
        if found == tag:
            patched[place + 8 : place + 12] = value.to_bytes(4, "little")
            return bytes(patched)
    raise AssertionError(f"no tag {tag}")


def webp_header(width: int, height: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


BAD = {
    "empty": (b"", "E1201"),
    "one byte": (b"\xff", "E1202"),
    "random": (RNG.bytes(4096), "E1202"),
    "HTML as JPEG": (b"<!DOCTYPE html><html><h1>404 Not Found</h1></html>", "E1202"),
    "ZIP": (b"PK\x03\x04" + bytes(100), "E1202"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "E1202"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "E1202"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "E1202"),
    "JPEG 2000, which is not allowed": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "E1202"),
    "JPEG cut at 50 %": (JPEG[: len(JPEG) // 2], "E1203"),
    "JPEG cut at 99 %": (JPEG[: len(JPEG) * 99 // 100], "E1203"),
    "JPEG header only": (JPEG[:200], "E1203"),
    "JPEG without end": (JPEG[:-2], "E1203"),
    "JPEG cut, with an end put behind": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "E1203"),
    "JPEG with zeros for its second half": (zeroed_tail(JPEG), "E1203"),
    "JPEG header twice as high": (JPEG[: SOF + 5] + b"\0\x60" + JPEG[SOF + 7 :], "E1203"),
    "JPEG header twice as wide": (JPEG[: SOF + 7] + b"\0\x80" + JPEG[SOF + 9 :], "E1203"),
    "PNG cut": (PNG[: len(PNG) // 2], "E1203"),
    "PNG with a flipped bit": (flipped(PNG, 60), "E1203"),
    "PNG of 0 x 0": (png(0, 0), "E1203"),
    "PNG without data": (png(64, 64), "E1203"),
    "PNG header higher than its data": (png(64, 96, bytes(193 * 48)), "E1207"),
    "PNG header lower than its data": (png(64, 24, bytes(193 * 48)), "E1207"),
    "PNG of 60000 x 60000": (png(60000, 60000), "E1204"),
    "PNG of 2^31-1 squared": (png(2**31 - 1, 2**31 - 1), "E1204"),
    "WebP of 16383 x 16383": (webp_header(16383, 16383), "E1204"),
    "text bomb before the pixels": (with_text_bomb(PNG, 33), "E1209"),
    "text bomb behind the pixels": (with_text_bomb(PNG, len(PNG) - 12), "E1209"),
    "float with NaN": (with_nan(float("nan")), "E1208"),
    "float with infinity": (with_nan(float("-inf")), "E1208"),
    "1 x 1": (png(1, 1, bytes(4)), "E1205"),
    "20000 x 1": (png(20000, 1, bytes(60001)), "E1205"),
    "17 x 2000": (png(17, 2000, bytes(52 * 2000)), "E1206"),
    "BMP header higher than its data": (
        (lambda data: data[:22] + struct.pack("<i", 96) + data[26:])(encode(RGB, "BMP")),
        "E1203",
    ),
    "GIF cut": (encode(RGB.convert("P"), "GIF")[:900], "E1203"),
    "WebP cut": (encode(RGB, "WEBP")[:100], "E1203"),
    "TIFF cut": (encode(RGB, "TIFF")[:4000], "E1203"),
    "TIFF with a strip missing": (tiff_patched(encode(RGB, "TIFF"), 257, 96), "E1207"),
    "TIFF of 64-bit pixels": (tiff_patched(encode(RGB.convert("L"), "TIFF"), 258, 64), "E1211"),
    "JPEG of 12-bit pixels": (JPEG[: SOF + 4] + b"\x0c" + JPEG[SOF + 5 :], "E1211"),
    "TIFF in Lab": (encode(Image.merge("LAB", RGB.split()), "TIFF"), "E1211"),
    "TIFF of signed bytes": (encode(RGB.convert("L"), "TIFF", tiffinfo={339: 2}), "E1211"),
}


@pytest.mark.parametrize(("data", "code"), BAD.values(), ids=BAD)
def test_bad_images_are_refused_by_code(data: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(data, ImageSettings(), TILES)
    assert caught.value.code == code, str(caught.value)
    assert code in CATALOGUE
    text = str(caught.value)
    assert " at 0x" not in text
    assert "BytesIO" not in text
    assert len(text) < 250
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_message_says_what_the_bytes_look_like() -> None:
    for name, word in (
        ("HTML as JPEG", "HTML"),
        ("ZIP", "ZIP"),
        ("EPS", "PostScript"),
    ):
        with pytest.raises(DataError, match=word):
            prepare(BAD[name][0], ImageSettings(), TILES)
    dicom = bytes(128) + b"DICM" + bytes(100)
    with pytest.raises(DataError, match="look like DICOM"):
        prepare(dicom, ImageSettings(formats=("PNG",)), TILES)


def test_limits_come_from_the_settings() -> None:
    one_row = png(64, 1, bytes(193))
    assert prepare(one_row, ImageSettings(min_side=1, max_aspect=64), TILES).size_wh == (64, 1)
    cases = (
        (PNG, {"max_bytes": len(PNG) - 1}, "E1112"),
        (PNG, {"max_pixels": 64 * 48 - 1}, "E1204"),
        (PNG, {"max_aspect": 1.3}, "E1206"),
        (PNG, {"min_side": 49}, "E1205"),
        (PNG, {"formats": ("JPEG",)}, "E1202"),
    )
    for data, settings, code in cases:
        with pytest.raises(DataError) as caught:
            prepare(data, ImageSettings(**settings), TILES)
        assert caught.value.code == code
    with pytest.raises(SettingsError, match="FOO"):
        prepare(PNG, ImageSettings(formats=("FOO",)), TILES)


def test_a_bomb_is_refused_without_decoding_it() -> None:
    """144 megapixels in 18 kB: peak memory of the process stays where it was."""
    code = """
        import io, resource, struct, sys, zlib
        from medv_ray.canvases import TileSettings
        from medv_ray.data.images import prepare
        from medv_ray.errors import DataError
        from medv_ray.settings import ImageSettings
        data = sys.stdin.buffer.read()
        small, bomb = data[:int(sys.argv[1])], data[int(sys.argv[1]):]
        prepare(small, ImageSettings(), TileSettings("square", 32))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            prepare(bomb, ImageSettings(), TileSettings("square", 32))
        except DataError as error:
            print(error.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    deflate = zlib.compressobj()
    rows = deflate.compress(bytes(1501 * 12000)) + deflate.flush()  # a bit a pixel, a byte decoded
    header = struct.pack(">IIBBBBB", 12000, 12000, 1, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert len(bomb) < 2**20
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(len(PNG))],
        input=PNG + bomb,
        capture_output=True,
        check=True,
    )
    refused, grown_kib = run.stdout.split()
    assert refused == b"E1204"
    assert int(grown_kib) < 16 * 1024


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    options = (
        {"lossless": True}
        if kind == "WEBP"
        else {"quality": 95, "subsampling": 0}
        if kind == "JPEG"
        else {}
    )
    options |= {"tiffinfo": {274: turn}} if kind == "TIFF" else {"exif": exif.tobytes()}
    got = prepare(encode(RGB, kind, **options), ImageSettings(), TILES)
    plain = np.rot90(ARRAY, {3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}.get(turn, 0))
    plain = plain[:, ::-1] if turn in (2, 4, 5, 7) else plain
    assert got.size_wh == (plain.shape[1], plain.shape[0])
    assert got.warnings == ((f"exif_transposed:{turn}",) if turn > 1 else ())
    want = np.asarray(Image.fromarray(np.ascontiguousarray(plain)).resize((32, 32)))
    assert np.abs(got.tiles[0].astype(int) - want).mean() < (3 if kind == "JPEG" else 0.5)


def test_plain_rgb_and_grey_leave_no_word() -> None:
    colour = square(ARRAY)
    for kind in ("PNG", "TIFF", "BMP"):
        got, words = pixels(encode(Image.fromarray(colour), kind))
        assert np.array_equal(got, colour)
        assert words == ()
    grey = colour[..., 0]
    got, words = pixels(encode(Image.fromarray(grey), "PNG"))
    assert np.array_equal(got, np.repeat(grey[..., None], 3, 2))
    assert words == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey16_is_scaled_not_clipped(kind: str) -> None:
    values = square(GREY16) + 100
    got, words = pixels(encode(Image.fromarray(values), kind))
    want = np.rint((values.astype(float) - 100) / 4095 * 255).astype(np.uint8)
    assert np.array_equal(got, np.repeat(want[..., None], 3, 2))
    assert words == ("grey16_scaled:100..4195",)


def test_signed_unsigned_float_and_constant_values() -> None:
    house = square(GREY16).astype(np.int32) - 1000
    huge = house.astype(np.float32) * np.float32(8e34)  # its range is no float32
    for values, word in (
        (house, "grey32_scaled:-1000..3095"),
        (house.astype(np.float32), "float_scaled:-1000..3095"),
        (huge, f"float_scaled:{huge.min():.10g}..{huge.max():.10g}"),
    ):
        got, words = pixels(encode(Image.fromarray(values), "TIFF"))
        low, high = float(values.min()), float(values.max())
        want = np.rint((values.astype(float) - low) * (255 / (high - low)))
        assert np.array_equal(got[..., 0], want.astype(np.uint8))
        assert words == (word,)
    wide = np.linspace(0, 2**32 - 1, 64 * 64).astype(np.uint32).reshape(64, 64)
    data = encode(Image.fromarray(wide.view(np.int32)), "TIFF")
    got, words = pixels(tiff_patched(data, 339, 1))  # unsigned, which Pillow holds in a signed mode
    assert words == ("grey32_scaled:0..4294967295",)
    assert (np.diff(got[..., 0].ravel().astype(int)) >= 0).all()
    got, words = pixels(encode(Image.fromarray(np.full((64, 64), 700, np.uint16)), "PNG"))
    assert (got == 0).all()
    assert words == ("grey16_scaled:700..700",)


def test_white_is_zero_is_inverted_at_every_depth() -> None:
    for values in (square(GREY16), square(GREY16).astype(np.float32)):
        got, words = pixels(encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0}))
        plain, _ = pixels(encode(Image.fromarray(values), "TIFF"))
        assert np.array_equal(got, 255 - plain)
        assert words[0].endswith(",inverted")
    eight = square(ARRAY[..., 0])
    got, words = pixels(encode(Image.fromarray(eight), "TIFF", tiffinfo={262: 0}))
    assert np.array_equal(got[..., 0], eight)  # both Pillow's writer and its reader invert these
    assert words == ()


def bmp(alpha: np.ndarray) -> bytes:
    """A BMP of 64 x 64 pixels with a V4 header, which has a mask for the alpha."""
    pixels = np.dstack([square(ARRAY)[::-1, :, ::-1], alpha[::-1]]).astype(np.uint8)
    head = struct.pack("<IiiHHIIiiII", 108, 64, 64, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 122 + pixels.nbytes, 0, 0, 122) + head + pixels.tobytes()


def test_an_alpha_of_zero_everywhere() -> None:
    """In a BMP it is an unused byte; elsewhere it hides the picture, which is told."""
    colour, none = square(ARRAY), np.zeros((64, 64), np.uint8)
    got, words = pixels(bmp(none))
    assert np.array_equal(got, colour)
    assert words == ("alpha_ignored",)
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    assert pixels(bmp(ramp))[1] == ("alpha_composited:255",)
    hidden = Image.fromarray(np.dstack([colour, none]))
    palette = Image.fromarray(colour).convert("P")
    palette.paste(3, (0, 0, 64, 64))
    white = Image.fromarray(np.dstack([np.full_like(colour, 255), ramp]))
    faint = Image.fromarray(np.dstack([colour, none + 1]))
    for data in (
        *(encode(hidden, kind) for kind in ("PNG", "TIFF", "WEBP")),
        encode(hidden.convert("LA"), "PNG"),
        encode(palette, "PNG", transparency=3),
        encode(palette, "GIF", transparency=3),
        encode(white, "PNG"),
        encode(faint, "PNG"),
    ):
        with pytest.raises(DataError, match="one colour") as caught:
            prepare(data, ImageSettings(), TILES)
        assert caught.value.code == "E1213"
    assert prepare(encode(white, "PNG"), ImageSettings(background=0), TILES).tiles.std() > 0


@pytest.mark.parametrize("background", [255, 0, 40])
def test_alpha_is_composited(background: int) -> None:
    colour = square(ARRAY)
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    got, words = pixels(
        encode(Image.fromarray(np.dstack([colour, alpha])), "PNG"), background=background
    )
    share = alpha[..., None] / 255
    assert np.abs(got - (colour * share + background * (1 - share))).max() <= 1
    assert (got[:, 0] == background).all()
    assert words == (f"alpha_composited:{background}",)


def test_other_modes_and_their_words() -> None:
    colour = Image.fromarray(square(ARRAY))
    two = Image.merge("LA", [colour.convert("L"), Image.new("L", (64, 64), 128)])
    palette = colour.convert("P")
    extra = Image.fromarray(np.dstack([square(ARRAY), square(ARRAY)[..., 0]]))
    cases = [
        (encode(two, "PNG"), ("alpha_composited:255",)),
        (encode(colour.convert("RGBA"), "PNG"), ("alpha_opaque",)),
        (encode(colour.convert("1"), "PNG"), ("bilevel",)),
        (encode(palette, "PNG"), ("palette",)),
        (
            encode(palette, "PNG", transparency=palette.getpixel((0, 0))),
            ("palette", "alpha_composited:255"),
        ),
        (encode(palette, "GIF"), ("palette",)),
        (encode(colour, "PNG", transparency=colour.getpixel((0, 0))), ("alpha_composited:255",)),
        (encode(colour.convert("CMYK"), "TIFF"), ("cmyk",)),
        (encode(colour.convert("CMYK"), "JPEG"), ("cmyk",)),
        (tiff_patched(encode(extra, "TIFF"), 338, 0), ("extra_channels_dropped",)),
    ]
    for data, want in cases:
        got, words = pixels(data)
        assert words == want
        assert got.std() > 0
    plain = np.asarray(colour).astype(int)
    assert np.abs(pixels(encode(colour.convert("CMYK"), "TIFF"))[0] - plain).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_several_frames(kind: str) -> None:
    frames = [RGB.rotate(90), RGB.rotate(180)]
    data = encode(RGB, kind, save_all=True, append_images=frames)
    got = prepare(data, ImageSettings(), TILES)
    assert got.warnings[0] == "first_of_frames:3"
    assert not any(word.startswith("trailing") for word in got.warnings)
    want = np.asarray(RGB.resize((32, 32))).astype(int)
    assert np.abs(got.tiles[0] - want).mean() < 8
    with pytest.raises(DataError) as caught:
        prepare(data, ImageSettings(frames="refuse"), TILES)
    assert caught.value.code == "E1210"


def test_bytes_behind_the_image() -> None:
    junk = RNG.bytes(100_000)
    for data in (
        JPEG,
        PNG,
        encode(RGB, "JPEG", progressive=True),
        encode(RGB, "JPEG", restart_marker_blocks=2),
    ):
        clean, dirty = (prepare(d, ImageSettings(), TILES) for d in (data, data + junk))
        assert clean.warnings == ()
        assert dirty.warnings == ("trailing_bytes:100000",)
        assert np.array_equal(clean.tiles, dirty.tiles)
        assert clean.sha256 != dirty.sha256


def test_the_end_of_a_jpeg_is_not_found_inside_its_thumbnail() -> None:
    exif = b"Exif\0\0" + encode(RGB, "JPEG")  # an end marker inside a segment
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert jpeg.read(data).end == len(data)
    assert jpeg.read(data + b"x").end == len(data)


def test_jpegs_that_end_in_decoder_grey() -> None:
    """128 is what decoders fill in; a picture that really is grey there is fine."""
    grey = ARRAY.copy()
    grey[24:] = 128
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 4}, {"subsampling": 0}):
        assert (
            prepare(
                encode(Image.fromarray(grey), "JPEG", **options), ImageSettings(), TILES
            ).warnings
            == ()
        )


def test_wiped_data_that_still_fill_the_picture_leave_a_word() -> None:
    noise = Image.fromarray(RNG.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    for image, quality, want in ((noise, 100, ("suspect_flat_tail",)), (RGB, 90, "E1203")):
        whole = encode(image.resize((640, 480)), "JPEG", quality=quality)
        wiped = whole[: len(whole) // 2] + bytes(len(whole) // 2) + b"\xff\xd9"
        assert outcome(wiped) == want


def outcome(data: bytes) -> tuple[str, ...] | str:
    """The warnings, or the code of the refusal."""
    try:
        return prepare(data, ImageSettings(), TILES).warnings
    except DataError as error:
        return error.code


@pytest.mark.parametrize("width", [1, 5, 8, 61])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_whole_pngs_of_any_width_and_depth_pass(mode: str, width: int) -> None:
    data = encode(RGB.resize((width, 37)).convert(mode), "PNG")
    assert prepare(data, ImageSettings(min_side=1), TILES).size_wh == (width, 37)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8), (21, 13)])
def test_interlaced_pngs(size: tuple[int, int]) -> None:
    width, height = size
    picture = RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    parts = [picture[y::dy, x::dx] for x, y, dx, dy in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.shape[1] for row in part)
    tiles = TileSettings("pad", max(size))
    got = prepare(png(width, height, rows, lace=1), ImageSettings(min_side=1), tiles)
    top, left = (max(size) - height) // 2, (max(size) - width) // 2
    assert np.array_equal(got.tiles[0][top : top + height, left : left + width], picture)
    with pytest.raises(DataError) as caught:
        prepare(png(width, height, rows[:-1], lace=1), ImageSettings(min_side=1), tiles)
    assert caught.value.code in ("E1203", "E1207")


def test_tiles_of_a_wide_picture() -> None:
    """Base tile first, then row by row; black above and below, grey when padded."""
    picture = np.full((40, 128, 3), 200, np.uint8)
    picture[:, 64:] = 90
    data = encode(Image.fromarray(picture), "PNG")
    grid = ((64, 64), (128, 64), (64, 128), (128, 128))
    got = prepare(data, ImageSettings(), TileSettings("anyres_max", 64, grid))
    assert got.tiles.shape == (3, 64, 64, 3)
    assert [int(tile[32, 32, 0]) for tile in got.tiles[1:]] == [200, 90]
    assert (got.tiles[1][:12] == 0).all()
    assert (got.tiles[1][52:] == 0).all()
    padded = prepare(data, ImageSettings(), TileSettings("pad", 128)).tiles[0]
    assert (padded[:44] == 127).all()
    assert np.array_equal(padded[44:84], picture)


def test_best_canvas_takes_the_first_of_equals() -> None:
    assert best_canvas((10, 10), [(20, 20), (20, 20)]) == (20, 20)
    assert best_canvas((300, 100), [(100, 300), (300, 100), (300, 300)]) == (300, 100)
    with pytest.raises(ValueError, match="empty"):
        best_canvas((1, 1), [])


def test_tiles_are_writable_and_hashed() -> None:
    got = prepare(PNG, ImageSettings(), TILES)
    assert isinstance(got, Prepared)
    assert got.tiles.dtype == np.uint8
    assert got.tiles.flags.writeable
    assert got.tiles.flags.c_contiguous


def test_neither_torch_nor_pillow_switches_are_touched() -> None:
    code = (
        "import sys, medv_ray.data.images, medv_ray.data.decode_child\n"
        "from PIL import Image, ImageFile\n"
        "print('torch' in sys.modules, 'pydantic' in sys.modules)\n"
        "print(ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "False", "89478485"]
