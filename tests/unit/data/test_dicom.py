"""DICOM: the file's window, refusals by code, real files against dcmtk where they are there."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from imagecodecs import jpeg8_encode
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space

from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.data.dicom_grey import Look, to_grey
from medv_ray.data.dicom_tables import Table
from medv_ray.data.images import decode, inspect, prepare
from medv_ray.errors import DataError
from medv_ray.settings import ImageSettings
from tests.dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    EXTENDED,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    RLE,
    SECRET,
    before_pixels,
    bomb,
    dataset,
    deep,
    dicom,
    encapsulated,
    encode,
    picture,
    table,
)

RNG = np.random.default_rng(0)
AS_IS = TileSettings("square", 64)
REAL = Path(__file__).parents[4] / "shared" / "data" / "dicom"
GREY = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
TWELVE_STORED = {"BitsStored": 12, "HighBit": 11}
SIGNED = np.linspace(-1200, 3000, 64 * 64).astype(np.int16).reshape(64, 64)
COLOUR = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def look(data: bytes, **settings: object) -> tuple[np.ndarray, tuple[str, ...]]:
    got = prepare(data, ImageSettings(**settings), AS_IS)
    assert got.size_wh == inspect(data, ImageSettings(**settings)).size_wh == (64, 64)
    return got.tiles[0], got.warnings


def grey(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    got, words = look(data)
    assert (got == got[..., :1]).all()
    return got[..., 0].astype(int), words


def scaled(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    return np.rint((array.astype(float) - low) * 255 / (high - low)).astype(int)


def raised(data: bytes, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(data, ImageSettings(**settings), AS_IS)
    text = str(caught.value)
    assert SECRET not in text
    assert "Canary" not in text
    assert " at 0x" not in text
    assert len(text) < 250
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def by_predictor(number: int) -> Callable[..., bytes]:
    """An encoder of lossless JPEGs of 12 bits."""
    return lambda a: jpeg8_encode(a, lossless=True, predictor=number, bitspersample=12)


def flat_lossless(restarts: int) -> bytes:
    """A lossless JPEG of 64 x 64 times 2048, with a restart after so many pixels.

    One bit codes a difference of 0.
    """
    table = b"\0\1\1" + bytes(14) + b"\0\1"
    sof, dri = b"\x0c\0\x40\0\x40\1\1\x11\0", restarts.to_bytes(2, "big")
    segments = ((0xC4, table), (0xC3, sof), (0xDD, dri), (0xDA, b"\1\1\0\1\0\0"))
    head = b"".join(bytes((255, m, 0, len(body) + 2)) + body for m, body in segments)
    marks = [b"", *(bytes((255, 0xD0 + n % 8)) for n in range(64 * 64 // restarts - 1))]
    return b"\xff\xd8" + head + b"".join(m + bytes(restarts // 8) for m in marks) + b"\xff\xd9"


def jpeg_scan(data: bytes) -> int:
    """Where the coded data begin."""
    start = data.index(b"\xff\xda") + 2
    return start + int.from_bytes(data[start : start + 2], "big")


def test_range_without_a_window() -> None:
    got, words = grey(dicom(GREY))
    assert np.array_equal(got, scaled(GREY))
    assert words == (f"dicom_range:{GREY.min()}..{GREY.max()}",)
    got, words = grey(dicom(SIGNED))
    assert np.array_equal(got, scaled(SIGNED))
    assert words == ("dicom_range:-1200..3000",)
    assert (grey(dicom(np.full((64, 64), 7, np.uint16)))[0] == 0).all()


def test_padding_is_left_out_of_the_range() -> None:
    values = SIGNED.copy()
    values[:8] = -2000
    got, words = grey(dicom(values, PixelPaddingValue=-2000))
    low = values[8:].min()
    assert words == (f"dicom_range:{low}..3000",)
    assert (got[:8] == 0).all()
    assert np.abs(got[8:] - scaled(values[8:])).max() <= 1  # ties of the rounding


def test_the_first_window_after_slope_and_intercept() -> None:
    data = dicom(
        SIGNED,
        RescaleSlope="2",
        RescaleIntercept="-1024",
        WindowCenter=["40", "300"],
        WindowWidth=["400", "1500"],
    )
    x = SIGNED.astype(float) * 2 - 1024
    want = np.where(
        x <= 39.5 - 199.5,
        0,
        np.where(x > 39.5 + 199.5, 255, ((x - 39.5) / 399 + 0.5) * 255),
    )
    got, words = grey(data)
    assert np.abs(got - want).max() <= 0.5 + 1e-9
    assert words == ("dicom_window:1:40:400",)


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT"])
def test_other_window_functions(function: str) -> None:
    data = dicom(SIGNED, WindowCenter="40", WindowWidth="400", VOILUTFunction=function)
    x = (SIGNED - 40) / 400
    want = 255 / (1 + np.exp(-4 * x)) if function == "SIGMOID" else np.clip((x + 0.5), 0, 1) * 255
    got, words = grey(data)
    assert np.abs(got - want).max() <= 0.5 + 1e-9
    assert words == (f"dicom_window:1:40:400:{function.lower()}",)


def test_monochrome1_is_inverted_after_the_window() -> None:
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    plain, _ = grey(dicom(SIGNED, **window))
    got, words = grey(dicom(SIGNED, "MONOCHROME1", **window))
    assert np.array_equal(got, 255 - plain)
    assert words == ("dicom_window:1:40:400", "monochrome1_inverted")
    # an inverse presentation says the same again
    both, _ = grey(dicom(SIGNED, "MONOCHROME1", PresentationLUTShape="INVERSE", **window))
    assert np.array_equal(both, got)
    # one that is as it is overrules it
    got, words = grey(dicom(SIGNED, "MONOCHROME1", PresentationLUTShape="IDENTITY", **window))
    assert np.array_equal(got, plain)
    assert words == ("presentation_identity", "dicom_window:1:40:400")
    got, words = grey(dicom(SIGNED, PresentationLUTShape="INVERSE", **window))
    assert np.array_equal(got, 255 - plain)
    assert words[-1] == "presentation_inverted"


@pytest.mark.parametrize(
    ("code", "element"),
    [
        ("MONOCHROME1", "PhotometricInterpretation"),
        ("INVERSE", "PresentationLUTShape"),
        ("SIGMOID", "VOILUTFunction"),
        ("YES", "BurnedInAnnotation"),
    ],
)
def test_codes_are_compared_without_case_and_padding(code: str, element: str) -> None:
    window = {"WindowCenter": "40", "WindowWidth": "400", element: code}
    data = dicom(SIGNED, **window)
    blank = code + " " * (len(code) % 2)
    want, words = look(data, burned_in="flag")
    assert words != ("dicom_window:1:40:400",)
    forms = [code.lower(), code.title(), f" {code}", f"{code}\0", f" {code.lower()} ", f"{code}\\"]
    for form in forms:
        padded = form + " " * (len(form) % 2)
        size = len(padded).to_bytes(2, "little")
        old = b"CS" + len(blank).to_bytes(2, "little") + blank.encode()
        assert data.count(old) == 1
        got, same = look(data.replace(old, b"CS" + size + padded.encode()), burned_in="flag")
        assert np.array_equal(got, want), form
        assert same == words


def test_lookup_tables() -> None:
    values = np.linspace(0, 4095, 256).astype(int)[::-1]
    modality = table(256, 0, 16, values)
    got, words = grey(dicom(GREY, ModalityLUTSequence=[modality]))
    assert np.array_equal(got, scaled(values[GREY]))
    assert words == (
        "modality_lut",
        f"dicom_range:{values[GREY].min()}..{values[GREY].max()}",
    )
    voi = table(256, 0, 12, values)
    got, words = grey(dicom(GREY, VOILUTSequence=[voi], WindowCenter="1", WindowWidth="2"))
    assert np.array_equal(got, np.rint(values[GREY] * (255 / 4095)).astype(int))
    assert words == ("dicom_voi_lut:1",)
    short = table(256, 0, 12, values[:100])
    assert raised(dicom(GREY, VOILUTSequence=[short])).code == "E1207"


def test_enhanced_objects_keep_the_window_in_groups() -> None:
    shared, macro, rescale = Dataset(), Dataset(), Dataset()
    macro.WindowCenter, macro.WindowWidth = "40", "400"
    rescale.RescaleSlope, rescale.RescaleIntercept = "1", "-100"
    shared.FrameVOILUTSequence = [macro]
    shared.PixelValueTransformationSequence = [rescale]
    got, words = grey(dicom(SIGNED, SharedFunctionalGroupsSequence=[shared]))
    top = {"RescaleSlope": "1", "RescaleIntercept": "-100"}
    want, _ = grey(dicom(SIGNED, WindowCenter="40", WindowWidth="400", **top))
    assert np.array_equal(got, want)
    assert words == ("dicom_window:1:40:400",)


def test_unused_bits_are_not_values() -> None:
    dirty = dataset(GREY.astype(np.uint16) | 0xF000)
    dirty.BitsStored, dirty.HighBit = 12, 11
    assert np.array_equal(grey(encode(dirty))[0], scaled(GREY))


def test_colours() -> None:
    got, words = look(dicom(COLOUR, "RGB"))
    assert np.array_equal(got, COLOUR)
    assert words == ()
    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    got, words = look(dicom(ybr, "YBR_FULL"))
    assert np.abs(got.astype(int) - COLOUR).max() <= 2
    assert words == ("ycbcr",)
    planar = dataset(COLOUR, "RGB", PlanarConfiguration=1)
    planar.PixelData = COLOUR.transpose(2, 0, 1).tobytes()
    assert np.array_equal(look(encode(planar))[0], COLOUR)
    deep = COLOUR.astype(np.uint16) * 8 + 7  # by the bits that the file names, not by its range
    got, words = look(dicom(deep, "RGB", BitsStored=12, HighBit=11))
    assert np.array_equal(got, np.rint(deep * (255 / 4095)))
    assert words == ("colour16_scaled:0..4095",)
    signed = (COLOUR.astype(np.int16) - 128).astype(np.int8)
    assert np.array_equal(look(dicom(signed, "RGB"))[0], COLOUR)
    assert raised(dicom(COLOUR, "YBR_RCT")).code == "E1207"  # which only JPEG 2000 makes


def palette(depth: int) -> dict[str, object]:
    names = [f"{c}PaletteColorLookupTable" for c in ("Red", "Green", "Blue")]
    entries = RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    found: dict[str, object] = {"entries": entries}
    for name, values in zip(names, entries, strict=True):
        found[name + "Descriptor"] = [256, 0, depth]
        data = values << 8 if depth == 16 else values
        found[name + "Data"] = data.astype("<u2" if depth == 16 else "u1").tobytes()
    return found


@pytest.mark.parametrize("depth", [8, 16])
def test_palettes(depth: int) -> None:
    elements = palette(depth)
    entries = elements.pop("entries")
    got, words = look(dicom(GREY, "PALETTE COLOR", **elements))
    assert np.array_equal(got, entries.T[GREY])  # type: ignore[attr-defined]
    assert words == ("palette",)
    assert raised(dicom(GREY, "PALETTE COLOR")).code == "E1207"


def test_several_frames() -> None:
    frames = np.stack([GREY, 255 - GREY, GREY // 2])
    got, words = grey(dicom(frames))
    assert np.array_equal(got, scaled(GREY))
    assert words[0] == "first_of_frames:3"
    assert inspect(dicom(frames), ImageSettings()).warnings == ("first_of_frames:3",)
    assert raised(dicom(frames), frames="refuse").code == "E1210"


def test_the_label_of_a_slide_is_not_shown() -> None:
    slide = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}
    for kind, code in (
        ("LABEL", "E1216"),
        ("OVERVIEW", "E1216"),
        ("label", "E1216"),
        (" LABEL", "E1216"),
        ("VOLUME", ""),
    ):
        data = dicom(COLOUR, "RGB", ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"], **slide)
        if code:
            assert raised(data).code == code
        else:
            assert np.array_equal(look(data)[0], COLOUR)


def rle(ds: Dataset) -> bytes:
    ds.compress(RLE)
    return encode(ds)


def test_compressed_and_other_syntaxes() -> None:
    big = dataset(SIGNED)
    big.file_meta.TransferSyntaxUID = BIG
    big.PixelData = SIGNED.astype(">i2").tobytes()
    deflated = dataset(SIGNED)
    deflated.file_meta.TransferSyntaxUID = DEFLATED
    for data in (rle(dataset(SIGNED)), encode(big), encode(deflated)):
        got, words = grey(data)
        assert np.array_equal(got, scaled(SIGNED))
        assert words == ("dicom_range:-1200..3000",)
    assert np.array_equal(look(rle(dataset(COLOUR, "RGB")))[0], COLOUR)
    lossless = picture(GREY, "JPEG2000", no_jp2=True)
    assert np.array_equal(grey(encapsulated(GREY, JPEG_2000, [lossless]))[0], scaled(GREY))
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    jpeg = encapsulated(smooth, JPEG, [picture(smooth, "JPEG", quality=95)] * 2, NumberOfFrames=2)
    got, words = grey(jpeg)
    assert np.abs(got - scaled(smooth)).max() <= 8
    assert words[0] == "first_of_frames:2"


SLOPE = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint16) * 16
MIDDLE = np.full((64, 64), 2048, np.uint16)
CODINGS: dict[str, tuple[str, np.ndarray, Callable[..., bytes], dict[str, object]]] = {
    "baseline": (JPEG, GREY, lambda a: picture(a, "JPEG"), {}),
    "baseline grey": (JPEG, np.full((64, 64), 128, np.uint8), lambda a: picture(a, "JPEG"), {}),
    "colours": (JPEG, COLOUR, lambda a: picture(a, "JPEG", subsampling=2), {}),
    "restarts": (JPEG, GREY, lambda a: picture(a, "JPEG", restart_marker_rows=1), {}),
    "progressive": (EXTENDED, GREY, lambda a: picture(a, "JPEG", progressive=True), {}),
    "12 bits": (EXTENDED, SLOPE, lambda a: jpeg8_encode(a, bitspersample=12), TWELVE_STORED),
    "12 bits grey": (EXTENDED, MIDDLE, lambda a: jpeg8_encode(a, bitspersample=12), TWELVE_STORED),
    "lossless": (LOSSLESS, SLOPE, by_predictor(1), TWELVE_STORED),
    "lossless 4": (LOSSLESS, SLOPE, by_predictor(4), TWELVE_STORED),
    "lossless, 8 bits": (LOSSLESS, GREY, lambda a: jpeg8_encode(a, lossless=True), {}),
    "lossless, restarts": (LOSSLESS, MIDDLE, lambda _: flat_lossless(64), TWELVE_STORED),
}


@pytest.mark.parametrize("kind", CODINGS)
def test_a_jpeg_that_was_cut_and_closed_is_damaged_and_a_whole_one_is_not(kind: str) -> None:
    syntax, array, code, elements = CODINGS[kind]
    whole = code(array)
    got, words = look(encapsulated(array, syntax, [whole], **elements))
    assert words
    assert np.ptp(array) == 0 or np.ptp(got[-8:]) > 0
    begin = jpeg_scan(whole)
    for part in (0.1, 0.5, 0.9):
        if np.ptp(array):  # the rest of a constant one is as it should be
            cut = whole[: begin + int((len(whole) - begin) * part)].rstrip(b"\xff") + b"\xff\xd9"
            assert raised(encapsulated(array, syntax, [cut], **elements)).code == "E1203"


def without(name: str) -> bytes:
    return dicom(GREY, **{name: None})


def random_frame(syntax: str) -> Callable[[], bytes]:
    return lambda: encapsulated(GREY, syntax, [RNG.bytes(400)])


def unknown_syntax(uid: str) -> Callable[[], bytes]:
    """pydicom writes none."""
    assert len(uid) == len(JPEG_LS)
    return lambda: random_frame(JPEG_LS)().replace(JPEG_LS.encode(), uid.encode())


def resized(rows: int, syntax: str, frame: bytes) -> Callable[[], bytes]:
    return lambda: encapsulated(GREY, syntax, [frame], Rows=rows)


def rle_resized(rows: int) -> bytes:
    ds = dataset(GREY)
    ds.compress(RLE)
    ds.Rows = rows
    return encode(ds)


WHOLE = dicom(GREY)
J2K_FRAME, JPEG_FRAME = picture(GREY, "JPEG2000", no_jp2=True), picture(GREY, "JPEG")
SOF = JPEG_FRAME.index(b"\xff\xc0")
TWELVE = JPEG_FRAME[: SOF + 1] + b"\xc1" + JPEG_FRAME[SOF + 2 : SOF + 4] + b"\x0c"
TWELVE += JPEG_FRAME[SOF + 5 :]
RGB_FRAME = picture(COLOUR, "JPEG")
SOF = RGB_FRAME.index(b"\xff\xc0")
TWELVE_RGB = RGB_FRAME[: SOF + 1] + b"\xc1" + RGB_FRAME[SOF + 2 : SOF + 4] + b"\x0c"
TWELVE_RGB += RGB_FRAME[SOF + 5 :]
ARITHMETIC = JPEG_FRAME.replace(b"\xff\xc0", b"\xff\xc9")
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "31 cut at 50 %": (lambda: WHOLE[: len(WHOLE) // 2], "E1203 E1207"),
    "32 cut in the header": (lambda: WHOLE[:300], "E1203 E1207"),
    "33 preamble only": (lambda: WHOLE[:132], "E1203"),
    "33 preamble and zeros": (lambda: WHOLE[:132] + bytes(100), "E1203"),
    "34 no DICM": (lambda: WHOLE[:128] + b"MCID" + WHOLE[132:], "E1202"),
    "37 rows doubled": (lambda: dicom(GREY, Rows=128), "E1207"),
    "37 rows doubled, RLE": (lambda: rle_resized(128), "E1203 E1207"),
    "37 rows doubled, JPEG 2000": (resized(128, JPEG_2000, J2K_FRAME), "E1203 E1207"),
    "37 rows doubled, JPEG": (resized(128, JPEG, JPEG_FRAME), "E1203 E1207"),
    "38 rows halved": (lambda: dicom(GREY, Rows=32), "E1207"),
    "38 rows halved, RLE": (lambda: rle_resized(32), "E1203 E1207"),
    "38 rows halved, JPEG 2000": (resized(32, JPEG_2000, J2K_FRAME), "E1203 E1207"),
    "38 rows halved, JPEG": (resized(32, JPEG, JPEG_FRAME), "E1203 E1207"),
    "39 no rows": (lambda: dicom(GREY, Rows=0), "E1207"),
    "40 65535 x 65535": (lambda: dicom(GREY, Rows=65535, Columns=65535), "E1204"),
    "41 a thousand million frames": (lambda: dicom(GREY, NumberOfFrames=10**9), "E1207"),
    "41 the same, encapsulated": (
        lambda: encapsulated(GREY, JPEG, [JPEG_FRAME], NumberOfFrames=10**9),
        "E1207",
    ),
    "42 minus one frame": (lambda: dicom(GREY, NumberOfFrames=-1), "E1207"),
    "43 no PixelData": (lambda: without("PixelData"), "E1203"),
    "43 float pixels": (
        lambda: encode(
            (lambda ds: (delattr(ds, "PixelData"), ds)[1])(
                dataset(GREY, FloatPixelData=bytes(4 * 64 * 64))
            )
        ),
        "E1211",
    ),
    "44 empty PixelData": (lambda: dicom(GREY, PixelData=b""), "E1203"),
    "45 no PhotometricInterpretation": (lambda: without("PhotometricInterpretation"), "E1207"),
    "45 no Columns": (lambda: without("Columns"), "E1207"),
    "45 no BitsAllocated": (lambda: without("BitsAllocated"), "E1207"),
    "47 palette without a table": (lambda: dicom(GREY, "PALETTE COLOR"), "E1207"),
    "48 colours without a rule": (lambda: dicom(COLOUR, "CMYK"), "E1211"),
    "48 one sample of RGB": (lambda: dicom(GREY, "RGB"), "E1207"),
    "49 more bits stored than allocated": (lambda: dicom(GREY, BitsStored=12), "E1207"),
    "50 slope 0": (lambda: dicom(GREY, RescaleSlope="0"), "E1207"),
    "51 slope NaN": (lambda: dicom(GREY, RescaleSlope="nan"), "E1207"),
    "51 slope 1e308": (lambda: dicom(SIGNED, RescaleSlope="1e308"), "E1208"),
    "52 window width 0": (lambda: dicom(GREY, WindowCenter="1", WindowWidth="0"), "E1207"),
    "52 window width -1": (lambda: dicom(GREY, WindowCenter="1", WindowWidth="-1"), "E1207"),
    "52 window width NaN": (lambda: dicom(GREY, WindowCenter="1", WindowWidth="nan"), "E1207"),
    "54 deflated bomb": (lambda: bomb(dataset(GREY, syntax=DEFLATED), 64), "E1209"),
    "55 20,000 sequences deep": (lambda: deep(WHOLE), "E1203"),
    "55 200,000 elements": (
        lambda: before_pixels(WHOLE, b"\x19\0\x10\x10LO\0\0" * 200_000),
        "E1209",
    ),
    "56 random JPEG": (random_frame(JPEG), "E1203"),
    "56 JPEG of 12 bits, cut": (lambda: encapsulated(GREY, EXTENDED, [TWELVE[:400]]), "E1203"),
    "56 JPEG of 12 bits and colours": (
        lambda: encapsulated(COLOUR.astype(np.uint16), EXTENDED, [TWELVE_RGB]),
        "E1211",
    ),
    "56 arithmetic-coded JPEG": (lambda: encapsulated(GREY, JPEG, [ARITHMETIC]), "E1211"),
    "56 random JPEG 2000": (random_frame(JPEG_2000), "E1203"),
    "56 random JPEG-LS": (random_frame(JPEG_LS), "E1203 E1211"),
    "56 random RLE": (random_frame(RLE), "E1203"),
    "56 unknown transfer syntax": (unknown_syntax("1.2.840.10008.1.2.4.99"), "E1211"),
    "56 burned-in annotation": (lambda: dicom(GREY, BurnedInAnnotation="YES"), "E1212"),
    "too small": (lambda: dicom(GREY[:4]), "E1205"),
}


@pytest.mark.parametrize(("make", "codes"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_by_code(make: Callable[[], bytes], codes: str) -> None:
    found = raised(make(), max_bytes=2**24)
    assert found.code in codes.split(), str(found)


def test_messages_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    message = raised(unknown_syntax("1.2.840.10008.1.2.4.99")()).detail
    assert "1.2.840.10008.1.2.4.99;" in message
    assert "medv-ray[dicom]" in message
    assert "private" in raised(unknown_syntax("1.2.276.0.99.123456789")()).detail
    monkeypatch.setitem(sys.modules, "pydicom", None)
    found = raised(WHOLE)
    assert found.code == "E1211"
    assert "pip install 'medv-ray[dicom]'" in found.detail
    assert raised(WHOLE, formats=("PNG",)).code == "E1202"


def test_a_program_in_the_preamble_leaves_a_word() -> None:
    for start in (b"MZ\x90\0", b"\x7fELF"):
        _, words = grey(start + WHOLE[len(start) :])
        assert words[0] == "executable_preamble"
    assert inspect(b"II*\0" + WHOLE[4:], ImageSettings()).size_wh == (64, 64)


def test_a_missing_transfer_syntax_is_assumed() -> None:
    element = (
        b"\2\0\x10\0UI" + len(EXPLICIT + "\0").to_bytes(2, "little") + EXPLICIT.encode() + b"\0"
    )
    assert element in WHOLE
    got, words = grey(WHOLE.replace(element, b""))
    assert np.array_equal(got, scaled(GREY))
    assert words[0] == "transfer_syntax_assumed"


def test_overlays_and_zero_padding_are_stated() -> None:
    ds = dataset(GREY, PixelData=GREY.tobytes() + bytes(128))
    ds.add_new(0x60003000, "OW", bytes(512))
    got, words = grey(encode(ds))
    assert np.array_equal(got, scaled(GREY))
    assert words[-1] == "overlays_ignored"


def test_nothing_of_the_header_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    ds = dataset(GREY, WindowCenter="40", WindowWidth="400", ImageComments=SECRET)
    data = encode(ds).replace(b"1.2.3.4\0", b"1.2/../x")  # pydicom would warn
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = prepare(data, ImageSettings(), AS_IS)
    assert not said
    assert got.warnings == ("dicom_window:1:40:400",)
    assert capfd.readouterr() == ("", "")


def test_the_child_decodes_within_its_limits() -> None:
    data = dicom(SIGNED, WindowCenter="40", WindowWidth="400")
    with Decoder(ImageSettings(max_bytes=2**24), AS_IS) as decoder:
        got = decoder.prepare(data)
        here = prepare(data, ImageSettings(), AS_IS)
        assert np.array_equal(got.tiles, here.tiles)
        assert got.warnings == here.warnings
        for make, codes in BAD.values():
            with pytest.raises(DataError) as caught:
                decoder.prepare(make())
            assert caught.value.code in codes.split()
    with Decoder(ImageSettings(), None) as decoder:
        assert decoder.prepare(data).size_wh == (64, 64)


def test_pydicom_is_imported_for_dicom_alone() -> None:
    code = (
        "import sys; from medv_ray.canvases import TileSettings\n"
        "from medv_ray.data.images import *; from medv_ray.settings import *\n"
        "data, png = sys.stdin.buffer.read(), int(sys.argv[1])\n"
        "for one in (data[:png], data[png:]):\n"
        "    prepare(one, ImageSettings(), TileSettings('square', 32))\n"
        "    print('pydicom' in sys.modules)"
    )
    png = picture(GREY, "PNG")
    command = [sys.executable, "-c", code, str(len(png))]
    run = subprocess.run(command, input=png + WHOLE, capture_output=True, check=True)
    assert run.stdout.split() == [b"False", b"True"]


def test_flipped_bytes_raise_nothing_else() -> None:
    elements = palette(16)
    elements.pop("entries")
    small = GREY[:16, :16]
    files = [
        dicom(small, WindowCenter="40", WindowWidth="400", RescaleSlope="2"),
        rle(dataset(small)),
        encapsulated(small, JPEG, [picture(small, "JPEG")]),
        dicom(small, "PALETTE COLOR", **elements),
    ]
    rng = np.random.default_rng(1)
    refused = 0
    for turn in range(160):
        data = bytearray(files[turn % len(files)])
        for place in rng.integers(132, len(data), 1 + turn % 3):
            data[place] = rng.integers(256)
        try:
            prepare(bytes(data), ImageSettings(max_pixels=2**20), AS_IS)
        except DataError:
            refused += 1
    assert 0 < refused < 160


# What each real file ends as: the most grey levels apart from dcmtk's render, a code, or `seen`
# where dcmtk 3.6.7 has none.
ENDS: dict[str, int | str] = {
    **dict.fromkeys(
        [
            "CT_small",
            "MR_small_bigendian",
            "MR_small_expb",
            "MR_small_padded",
            "MR_small_RLE",
            "JPEG-lossy",
            "SC_ybr_full_422_uncompressed",
            "dicomdirtests_77654033_CR1_6154",
            "dicomdirtests_98892003_MR1_15820",
            "693_UNCR",
            "JPEG-LL",
            "JPGLosslessP14SV1_1s_1f_8b",
            "MR2_UNCR",
            "RG3_UNCR",
            "emri_small",
            "mlut_18",
            "bad_sequence",
            "examples_overlay",
        ],
        1,
    ),
    **dict.fromkeys(
        [
            "image_dfl",
            "examples_rgb_color",
            "examples_ybr_color",
            "SC_rgb_jpeg_dcmtk",
            "SC_rgb_rle_16bit_2frame",
            "SC_rgb_small_odd",
            "OBXXXX1A",
            "OBXXXX1A_rle_2frame",
            "OT-PAL-8-face",
            "US1_UNCR",
            "color-pl",
            "color-px",
            "vlut_04",
        ],
        0,
    ),
    # dcmtk does not look for the window in functional groups
    "eCT_Supplemental": 217,
    **dict.fromkeys(
        [
            "MR_small_jp2klossless",
            "MR_small_jpeg_ls_lossless",
            "693_J2KI",
            "JPEG2000",
            "J2K_pixelrep_mismatch",
            "JPEGLSNearLossless_08",
            "JPEGLSNearLossless_16",
            "MR2_J2KI",
            "RG3_J2KI",
            "examples_jpeg2k",
            "explicit_VR-UN",
        ],
        "seen",
    ),
    # no picture, or no DICOM: its first byte is another
    **dict.fromkeys(
        ["reportsi", "test-SR", "rtplan", "liver", "liver_1frame", "badVR", "no_meta"], "E1202"
    ),
    "DICOMDIR": "E1202",
    # only the mark behind its last piece of pixel data is missing
    "emri_small_jpeg_2k_lossless_too_short": "seen",
}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_each_real_file_ends_as_listed() -> None:
    files = sorted((REAL / "files").iterdir())
    assert {file.name.removesuffix(".dcm") for file in files} == set(ENDS)
    for file in files:
        end = ENDS[file.name.removesuffix(".dcm")]
        try:
            shown, words = decode(file.read_bytes(), ImageSettings(min_side=1))
        except DataError as error:
            assert error.code == end, file.name  # noqa: PT017
            continue
        render = REAL / "expected_dcmtk" / f"{file.name}.png"
        assert render.exists() == (end != "seen"), file.name
        if render.exists():
            want = np.asarray(Image.open(render).convert("RGB")).astype(int)
            assert np.abs(np.asarray(shown).astype(int) - want).max() == end, (file.name, words)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_masks_equal_dcmtk_where_they_are_asked_for() -> None:
    image = ImageSettings(min_side=1, maps="draw")
    for name in ("liver", "liver_1frame"):
        shown, _ = decode((REAL / "files" / f"{name}.dcm").read_bytes(), image)
        want = Image.open(REAL / "expected_dcmtk" / f"{name}.dcm.png").convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(want))
    # a dose grid of 15 frames whose number is written `1A`: dcmtk shows the first
    with pytest.raises(DataError, match="calls for 400 bytes of pixels, there are more"):
        decode((REAL / "files" / "badVR.dcm").read_bytes(), image)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files")
def test_an_enhanced_ct_by_its_range_equals_dcmtk() -> None:
    """dcmtk does not look for the window in functional groups, so it took the range."""
    name = "eCT_Supplemental.dcm"
    ds = pydicom.dcmread(REAL / "files" / name)
    own = Look.of(ds)
    assert (own.window, own.slope, own.intercept) == ((49, 102), 1, -1024)
    got, words = to_grey(ds.pixel_array[0], replace(own, window=None))
    want = np.asarray(Image.open(REAL / "expected_dcmtk" / f"{name}.png")).astype(int)
    assert np.abs(got - want).max() <= 1
    assert words == ["dicom_range:-1024..172"]


@pytest.mark.parametrize("inverted", ["", "inverted:MONOCHROME1"])
@pytest.mark.parametrize(
    "look",
    [
        Look(),
        Look(window=(40.0, 301.5)),
        Look(window=(40.5, 300.0), function="LINEAR_EXACT"),
        Look(window=(-3.0, 77.7), function="SIGMOID"),
        Look(window=(9.0, 1.0)),
        Look(slope=-0.37, intercept=11.3, padding=(7, 9)),
        Look(modality=Table(-90, np.arange(200.0) ** 1.3, 8), voi=Table(5, np.arange(256.0), 8)),
    ],
)
def test_a_grey_does_not_depend_on_how_many_pixels_share_it(look: Look, inverted: str) -> None:
    """Of many pixels with few values, each value is converted once; of few pixels, each pixel."""
    look = replace(look, inverted=inverted)
    for kind in ("int8", "int16", "uint16", "int32"):
        values = np.arange(-100, 101) if kind.startswith("i") else np.arange(65_335, 65_536)
        values = values.astype(kind)
        many = np.random.default_rng(3).permutation(np.repeat(values, 40)).reshape(-1, 30)
        got, words = to_grey(many, look)
        few, same = to_grey(values.reshape(1, -1), look)
        assert words == same
        assert np.array_equal(got, few[0][many.astype(int) - int(values[0])])


def test_values_far_apart_need_no_table_of_all_between() -> None:
    stored = np.zeros((300, 300), np.int32)
    stored[0, 0], stored[9, 9] = -(2**31), 2**31 - 1
    grey, _ = to_grey(stored, Look())
    assert (grey[0, 0], grey[9, 9], grey[1, 1]) == (0, 255, 128)
