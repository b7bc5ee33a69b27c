"""DICOM pixels: any frame, any layout of bits and bytes, overlays, tables, windows asked for."""

import base64
import io
import struct

import numpy as np
import pytest
from imagecodecs import jpeg8_encode
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from medv_ray.data import dicom_decoders
from medv_ray.data.dicom import DicomFile
from medv_ray.data.frames import count_frames
from medv_ray.data.images import decode
from medv_ray.errors import DataError
from medv_ray.file_parts import FilePart
from medv_ray.settings import ImageSettings
from tests.dicom_files import (
    BIG,
    CAPTURE,
    CT,
    EXTENDED,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    RLE,
    add_overlay,
    dataset,
    dicom,
    encapsulated,
    encode,
    picture,
    table,
)

RNG = np.random.default_rng(3)
GREYS = RNG.integers(0, 256, (3, 17, 19), dtype=np.uint8)  # odd: frames of an odd length
COLOURS = RNG.integers(0, 256, (3, 17, 19, 3), dtype=np.uint8)
SIGNED = np.linspace(-1200, 3000, 18 * 20).astype(np.int16).reshape(18, 20)
WINDOW = {"WindowCenter": "40", "WindowWidth": "400"}
# 12 bits, progressive: 16 x 16 of 200 times the row and 60 times the column
TWELVE_PROGRESSIVE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4R"
    "DgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/wgALDAAQABABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAACgv/2gAIAQEA"
    "AAABkIqArrKA/8QAFhAAAwAAAAAAAAAAAAAAAAAAAAgJ/9oACAEBAAEFAl3hwLvDgXeHAu8OD//EABgQAAIDAAAA"
    "AAAAAAAAAAAAAAAEJUNR/9oACAEBAAY/AloDKhaAyoWgMqFoDKj/xAAWEAADAAAAAAAAAAAAAAAAAAAAwfD/2gAI"
    "AQEAAT8hvUXqL1F6j//aAAgBAQAAABDP/8QAFhAAAwAAAAAAAAAAAAAAAAAAAFHw/9oACAEBAAE/EKVClQpUKVD/"
    "/9k="
)


def seen(data: bytes | Dataset, frame: int = 0, **settings: object) -> tuple[np.ndarray, list[str]]:
    data = data if isinstance(data, bytes) else encode(data)
    shown, words = DicomFile(data, ImageSettings(**settings)).picture(frame)
    return np.asarray(shown).astype(int), words


def code_of(data: bytes | Dataset, frame: int = 0, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        seen(data, frame, **settings)
    return caught.value.code


def scaled(array: np.ndarray) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    return np.rint((array.astype(float) - low) * 255 / max(high - low, 1)).astype(int)


def swapped(data: bytes) -> bytes:
    return np.frombuffer(data, np.uint16).byteswap().tobytes()


def test_any_frame_of_any_layout() -> None:
    big_words = dataset(GREYS)
    big_words.file_meta.TransferSyntaxUID = BIG
    big_words.PixelData = swapped(big_words.PixelData)
    big_words["PixelData"].VR = "OW"
    bits = GREYS > 127
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    one_bit = dataset(GREYS, BitsAllocated=1, BitsStored=1, HighBit=0)
    one_bit.PixelData = packed + bytes(len(packed) % 2)
    planes = dataset(COLOURS, "RGB", PlanarConfiguration=1)
    planes.PixelData = COLOURS.transpose(0, 3, 1, 2).tobytes() + b"\0"
    rle = dataset(np.repeat(GREYS, 2, axis=2))
    rle.compress(RLE)
    for ds, frames in (
        (dataset(GREYS), GREYS),
        (big_words, GREYS),
        (one_bit, bits.astype(int)),
        (rle, np.repeat(GREYS, 2, axis=2)),
    ):
        for frame in range(3):
            got, words = seen(ds, frame)
            assert np.array_equal(got, scaled(frames[frame]))
            low, high = frames[frame].min(), frames[frame].max()
            assert words == [f"dicom_range:{low}..{high}"]
    for ds in (dataset(COLOURS, "RGB"), planes):
        assert all(np.array_equal(seen(ds, frame)[0], COLOURS[frame]) for frame in range(3))
    assert code_of(dataset(GREYS), 3) == code_of(dataset(GREYS), -1) == "E1210"


def test_only_the_frame_asked_for_is_decoded() -> None:
    smooth = np.add.outer(np.arange(20) * 5, np.arange(24) * 3).astype(np.uint8)
    frames = [picture(smooth, "JPEG", quality=95), RNG.bytes(500), picture(255 - smooth, "JPEG")]
    data = encapsulated(smooth, JPEG, frames, NumberOfFrames=3)
    file = DicomFile(data, ImageSettings())
    assert file.n_frames == 3
    last = np.asarray(file.picture(2)[0]).astype(int)
    assert np.abs(last - scaled(255 - smooth)).max() <= 10
    assert code_of(data, 1) == "E1203"
    # cut within the last frame: the file is damaged, whichever frame is asked for
    assert code_of(data[:-40]) == "E1203"


def test_frames_in_several_pieces_are_told_apart() -> None:
    """By which of them begin a frame, else by the table of offsets, else by where a JPEG ends."""
    smooth = np.add.outer(np.arange(20) * 5, np.arange(24) * 3).astype(np.uint8)
    frames = [np.roll(smooth, 7 * number, axis=1) for number in range(3)]
    jpegs = [picture(frame, "JPEG", quality=98) for frame in frames]
    compressed = dataset(np.stack(frames))
    compressed.compress(RLE)
    rle = list(generate_frames(compressed.PixelData, number_of_frames=3))
    for pieces, syntax, has_table in (
        (jpegs, JPEG, True),
        (jpegs, JPEG, False),
        (rle, RLE, True),
        (rle, RLE, False),
    ):
        ds = dataset(smooth, syntax=syntax, NumberOfFrames=3)
        ds.PixelData = encapsulate(pieces, fragments_per_frame=2, has_bot=has_table)
        ds["PixelData"].is_undefined_length = True
        for number, frame in enumerate(frames):
            assert np.abs(seen(ds, number)[0] - scaled(frame)).max() <= 4, (syntax, number)


@pytest.mark.parametrize("syntax", [JPEG, JPEG_2000, RLE])
def test_frames_beyond_the_number_announced_are_refused(syntax: str) -> None:
    """As the same file uncompressed is. A frame in several pieces is not several frames."""
    if syntax == RLE:
        compressed = dataset(GREYS)
        compressed.compress(RLE, encoding_plugin="pydicom")  # gdcm's crashes on odd lengths
        coded = list(generate_frames(compressed.PixelData, number_of_frames=3))
    else:
        kind, options = ("JPEG", {}) if syntax == JPEG else ("JPEG2000", {"no_jp2": True})
        coded = [picture(grey, kind, **options) for grey in GREYS]
    assert code_of(dicom(GREYS[0], PixelData=GREYS[:2].tobytes())) == "E1207"
    for frames in (None, 2):
        elements = {} if frames is None else {"NumberOfFrames": frames}
        assert code_of(encapsulated(GREYS[0], syntax, coded, **elements)) == "E1207"
    ds = dataset(GREYS[0], syntax=syntax)
    ds.PixelData = encapsulate(coded[:1], fragments_per_frame=3)
    ds["PixelData"].is_undefined_length = True
    assert seen(ds)[0].any()


def test_a_piece_of_odd_length_is_read() -> None:
    """Which the standard does not allow, and some writers make."""
    frame = picture(GREYS[0], "JPEG2000", no_jp2=True)
    frame += bytes(1 - len(frame) % 2)
    data, even = encapsulated(GREYS[0], JPEG_2000, [frame]), struct.pack("<L", len(frame) + 1)
    before, behind = data.split(even + frame + b"\0")
    data = before + struct.pack("<L", len(frame)) + frame + behind
    assert np.array_equal(seen(data)[0], scaled(GREYS[0]))


def test_padding_is_a_range_of_stored_values() -> None:
    values = SIGNED.copy()
    values[:2], values[2] = -2000, -1995
    lowest = int(values[3:].min())
    for first, last in ((-2000, -1990), (-1990, -2000)):
        ds = dataset(values, PixelPaddingValue=first, PixelPaddingRangeLimit=last)
        assert seen(ds)[1] == [f"dicom_range:{lowest}..3000"]
    alone = dataset(values, PixelPaddingValue=-2000)
    assert seen(alone)[1] == ["dicom_range:-1995..3000"]
    without_sign = dataset(values, RescaleSlope="2", RescaleIntercept="0")
    without_sign.add_new(0x00280120, "US", 2**16 - 2000)
    without_sign.add_new(0x00280121, "US", 2**16 - 1990)
    assert seen(without_sign)[1] == [f"dicom_range:{2 * lowest}..6000"]


def test_values_lie_where_the_high_bit_says() -> None:
    values = np.linspace(0, 4095, 18 * 20).astype(np.uint16).reshape(18, 20)
    for high, stored in ((11, values | 0xF000), (15, values << 4 | 9), (13, values << 2 | 0xC001)):
        got, _ = seen(dataset(stored, BitsStored=12, HighBit=high))
        assert np.abs(got - scaled(values)).max() <= 1, high  # ties of the rounding
    signed = (SIGNED // 2).astype(np.uint16) & 0xFFF | 0x5000
    got, words = seen(dataset(signed, BitsStored=12, HighBit=11, PixelRepresentation=1))
    assert np.abs(got - scaled(SIGNED // 2)).max() <= 1
    assert words == ["dicom_range:-600..1500"]
    got, words = seen(dataset(values, BitsStored=12, HighBit=3))
    assert np.abs(got - scaled(values)).max() <= 1
    assert words[0] == "high_bit_read_as:11"


@pytest.mark.parametrize("syntax", [RLE, LOSSLESS, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("kind", ["uint16", "int16"])
def test_compressed_words_hold_values_where_the_high_bit_says(syntax: str, kind: str) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    words = values << 4 | 9
    if syntax == LOSSLESS:
        coded = jpeg8_encode(words, lossless=True, bitspersample=16)
    else:
        ds = dataset(words)
        ds.compress(syntax)
        coded = next(generate_frames(ds.PixelData, number_of_frames=1))
    elements = {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": int(kind == "int16")}
    got, said = seen(encapsulated(words, syntax, [coded], **elements))
    want = words.view(kind) >> 4
    assert said == [f"dicom_range:{want.min()}..{want.max()}"]
    assert np.abs(got - scaled(want)).max() <= 1


@pytest.mark.parametrize("rows", [8, 16, 17])
def test_rle_words_of_more_rows_than_announced(rows: int) -> None:
    """Too long ones end the decoder in a way that is no Exception."""
    ds = dataset(SIGNED)
    ds.compress(RLE)
    ds.Rows = rows
    with pytest.raises(DataError, match="more rows than the header announces"):
        seen(ds, min_side=1)


def test_compressed_frames_that_are_not_what_the_header_says_are_refused_as_such() -> None:
    """Some were shown in part, some called damaged, and gdcm ended the process by others."""
    wide = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    grey = (wide >> 4).astype(np.uint8)
    rgb = np.stack([grey, grey.T, grey], -1)

    def coded(array: np.ndarray, syntax: str) -> bytes:
        if syntax == JPEG:
            return picture(array, "JPEG")
        if syntax == LOSSLESS:
            bits = 8 * array.dtype.itemsize
            return jpeg8_encode(array, lossless=True, bitspersample=bits)
        ds = dataset(array, "RGB" if array.ndim == 3 else "MONOCHROME2")
        ds.compress(syntax)
        return next(generate_frames(ds.PixelData, number_of_frames=1))

    for syntax in (JPEG, LOSSLESS, JPEG_LS, JPEG_2000, RLE):
        cases = [(rgb, grey, "1 samples per pixel"), (grey, rgb, "3 samples per pixel")]
        if syntax != RLE:
            cases.append((grey[:32], grey, "of 64 x 64, the header announces 64 x 32"))
        if syntax not in (JPEG, RLE):
            cases.append((grey, wide, "of 16 bits, the header allocates 8"))
        for said, held, text in cases:
            with pytest.raises(DataError, match=text) as caught:
                seen(encapsulated(said, syntax, [coded(held, syntax)]))
            assert caught.value.code == "E1207"


def test_a_jpeg_of_8_bits_under_16_allocated_is_read() -> None:
    smooth = np.add.outer(np.arange(32) * 5, np.arange(40) * 2).astype(np.uint8)
    wide = smooth.astype(np.uint16)
    for elements in ({"BitsStored": 8, "HighBit": 7}, {"BitsStored": 12, "HighBit": 11}):
        for syntax in (JPEG, EXTENDED):
            data = encapsulated(wide, syntax, [picture(smooth, "JPEG", quality=95)], **elements)
            assert np.abs(seen(data)[0] - scaled(smooth)).max() <= 4


def test_a_number_with_a_backslash_behind_it_is_one_number() -> None:
    data = encode(dataset(SIGNED, **WINDOW))
    old = b"\x28\0\x50\x10DS\2\x0040"
    assert old in data
    got = seen(data.replace(old, b"\x28\0\x50\x10DS\4\x0040\\ "))
    assert got[1] == ["dicom_window:1:40:400"]


def test_a_window_of_zeros_is_none() -> None:
    """As scanners write it where there is none. A centre with a width of 0 is refused."""
    got, words = seen(dataset(SIGNED, WindowCenter="0", WindowWidth="0"))
    assert np.array_equal(got, scaled(SIGNED))
    assert words == ["window_unset", "dicom_range:-1200..3000"]
    two = dataset(SIGNED, WindowCenter=["40", "0"], WindowWidth=["400", "0"])
    assert seen(two)[1] == ["dicom_window:1:40:400"]
    assert seen(two, window="number:2")[1] == words
    assert code_of(dataset(SIGNED, WindowCenter="1", WindowWidth="0")) == "E1207"


def test_each_frame_has_its_own_groups() -> None:
    def groups(centre: str, intercept: str) -> Dataset:
        group, window, rescale = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = centre, "400"
        rescale.RescaleSlope, rescale.RescaleIntercept = "1", intercept
        group.FrameVOILUTSequence = [window]
        group.PixelValueTransformationSequence = [rescale]
        return group

    both = np.stack([SIGNED, SIGNED])
    ds = dataset(both, PerFrameFunctionalGroupsSequence=[groups("40", "0"), groups("300", "-50")])
    for frame, centre, intercept in ((0, "40", "0"), (1, "300", "-50")):
        alone = dataset(SIGNED, WindowCenter=centre, WindowWidth="400")
        alone.RescaleSlope, alone.RescaleIntercept = "1", intercept
        got, words = seen(ds, frame)
        assert np.array_equal(got, seen(alone)[0])
        assert words == [f"dicom_window:1:{centre}:400"]


def test_windows_that_are_asked_for() -> None:
    hounsfield = {"RescaleSlope": "1", "RescaleIntercept": "-24", "SOPClassUID": CT}
    ct = dataset(SIGNED, **hounsfield, WindowCenter=["40", "300"], WindowWidth=["400", "1500"])
    values = SIGNED.astype(float) - 24

    def shown(centre: float, width: float) -> np.ndarray:
        return np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)

    for asked, centre, width, word in (
        ("file", 40, 400, "1:40:400"),
        ("number:2", 300, 1500, "2:300:1500"),
        ("lung", -600, 1500, "lung:-600:1500"),
        ("-100/50.5", -100, 50.5, "set:-100:50.5"),
    ):
        got, words = seen(ct, window=asked)
        assert np.abs(got - shown(centre, width)).max() <= 0.5 + 1e-9
        assert words == [f"dicom_window:{word}"]
    plain = seen(ct)[0]
    got, words = seen(ct, window="number:3")
    assert np.array_equal(got, plain)
    assert words == ["window_not_applied:number:3", "dicom_window:1:40:400"]
    # a preset is in Hounsfield units: not for MR, nor for CT values of another kind
    mr = dataset(SIGNED, RescaleSlope="1", RescaleIntercept="-24", **WINDOW)
    for ds in (mr, dataset(SIGNED, **hounsfield, RescaleType="Z_EFF", **WINDOW)):
        got, words = seen(ds, window="lung")
        assert np.array_equal(got, plain)
        assert words == ["window_not_applied:lung", "dicom_window:1:40:400"]
    assert seen(mr, window="40/400")[1] == ["dicom_window:set:40:400"]
    # in place of a lookup table, too, and before the inversion
    luts = dataset(SIGNED, "MONOCHROME1", **hounsfield)
    luts.VOILUTSequence = [table(10, 0, 8, np.arange(10))]
    got, words = seen(luts, window="40/400")
    assert np.array_equal(got, 255 - plain)
    assert words == ["dicom_window:set:40:400", "monochrome1_inverted"]


def test_half_a_rescaling_is_none() -> None:
    plain = seen(dataset(SIGNED, **WINDOW))[0]
    for name in ("RescaleSlope", "RescaleIntercept"):
        got, words = seen(dataset(SIGNED, **WINDOW, **{name: "20"}))
        assert np.array_equal(got, plain)
        assert words[0] == "rescale_incomplete"


def test_overlays() -> None:
    plain = seen(dataset(SIGNED, **WINDOW))[0]
    plane = RNG.random(SIGNED.shape) < 0.3
    want = np.where(plane, 255, plain)
    got, words = seen(add_overlay(dataset(SIGNED, **WINDOW), plane))
    assert np.array_equal(got, want)
    assert words == ["dicom_window:1:40:400", "overlays_drawn:1"]
    got, words = seen(add_overlay(dataset(SIGNED, **WINDOW), plane), overlays="ignore")
    assert np.array_equal(got, plain)
    assert words[-1] == "overlays_ignored"
    # white also where the picture is inverted
    inverted = add_overlay(dataset(SIGNED, "MONOCHROME1", **WINDOW), plane, 0x601E)
    assert np.array_equal(seen(inverted)[0], np.where(plane, 255, 255 - plain))
    for origin, cut, rest in (
        ((3, 5), (slice(2, None), slice(4, None)), plane[:-2, :-4]),
        ((-1, 0), (slice(None, -2), slice(None, -1)), plane[2:, 1:]),
    ):
        moved = plain.copy()
        moved[cut][rest] = 255
        assert np.array_equal(
            seen(add_overlay(dataset(SIGNED, **WINDOW), plane, origin=origin))[0], moved
        )
    for kind, group in (("R", 0x6000), ("G", 0x6020), ("G", 0x6001)):
        assert np.array_equal(
            seen(add_overlay(dataset(SIGNED, **WINDOW), plane, group, kind=kind))[0], plain
        )
    nowhere = add_overlay(dataset(SIGNED, **WINDOW), plane)
    del nowhere[0x60000050]
    got, words = seen(nowhere)
    assert np.array_equal(got, plain)
    assert words[-1] == "overlays_ignored"
    cut_short = add_overlay(dataset(SIGNED, **WINDOW), plane)
    cut_short[0x60003000].value = bytes(10)
    assert seen(cut_short)[1][-1] == "overlays_ignored"
    embedded = (np.maximum(SIGNED, 0) | plane.astype(np.int16) << 13).view(np.uint16)
    ds = add_overlay(dataset(embedded, BitsStored=12, HighBit=11, **WINDOW), plane)
    del ds[0x60003000]
    ds[0x60000100].value, ds[0x60000102].value = 16, 13
    low = seen(dataset(np.maximum(SIGNED, 0).astype(np.uint16), **WINDOW))[0]
    assert np.array_equal(seen(ds)[0], np.where(plane, 255, low))
    big = add_overlay(dataset(SIGNED, syntax=BIG, **WINDOW), plane)
    for element in (big[0x60003000], big["PixelData"]):
        element.value = swapped(element.value)
    assert np.array_equal(seen(big)[0], want)


def test_overlays_of_frames() -> None:
    frames = np.stack([SIGNED] * 4)
    planes = RNG.random((2, *SIGNED.shape)) < 0.3
    plain = seen(dataset(SIGNED, **WINDOW))[0]
    ds = add_overlay(dataset(frames, **WINDOW), planes, first_frame=2)
    for frame, plane in enumerate((None, planes[0], planes[1], None)):
        want = plain if plane is None else np.where(plane, 255, plain)
        assert np.array_equal(seen(ds, frame)[0], want), frame
    every = add_overlay(dataset(frames, **WINDOW), planes[0])
    assert np.array_equal(seen(every, 3)[0], np.where(planes[0], 255, plain))


@pytest.mark.parametrize(("first", "kind"), [(-1200, "SS"), (64336, "US")])
def test_tables_for_negative_values(first: int, kind: str) -> None:
    """Some writers put a negative first value into an element without a sign."""
    entries = np.linspace(0, 65535, 4201).astype(int)
    want = entries[np.clip(SIGNED.astype(int) + 1200, 0, 4200)]
    item = table(4201, first, 16, entries, kind)
    got, words = seen(dataset(SIGNED, VOILUTSequence=[item]))
    assert np.array_equal(got, np.rint(want * (255 / 65535)))
    assert words == ["dicom_voi_lut:1"]
    got, words = seen(dataset(SIGNED, ModalityLUTSequence=[item]))
    assert np.abs(got - scaled(want)).max() <= 1
    shifted = dataset(
        (SIGNED.astype(int) + 1200).astype(np.uint16),
        RescaleSlope="1",
        RescaleIntercept="-1200",
        VOILUTSequence=[item],
    )
    assert np.array_equal(seen(shifted)[0], np.rint(want * (255 / 65535)))
    wide = table(256, 0, 8, np.arange(256) * 16)
    assert code_of(dataset(GREYS[0], VOILUTSequence=[wide])) == "E1207"


def with_palette(ds: Dataset, descriptor: list[int], data: bytes, segmented: bool) -> Dataset:
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTable"
        ds.add_new(tag_for_keyword(f"{name}Descriptor"), "US", descriptor)
        setattr(ds, f"{'Segmented' if segmented else ''}{name}Data", data)
    return ds


def test_segmented_palettes() -> None:
    # 2 entries as they are, 4 up to 40960, 2 constant; then the line again, by its byte offset
    words = [0, 2, 0, 8192, 1, 4, 40960, 1, 2, 40960, 2, 1, 8, 0]
    entries = np.array([0, 8192, 16384, 24576, 32768, 40960, 40960, 40960, *[40960] * 4])
    index = RNG.integers(0, 14, (17, 19), dtype=np.uint8)
    data = struct.pack(f"<{len(words)}H", *words)
    ds = with_palette(dataset(index, "PALETTE COLOR"), [12, 0, 16], data, True)
    got, said = seen(ds)
    assert np.array_equal(got, (entries >> 8)[np.clip(index, 0, 11)][..., None].repeat(3, -1))
    assert said == ["palette"]
    short = struct.pack("<3H", 0, 5, 1)
    assert code_of(with_palette(dataset(index, "PALETTE COLOR"), [12, 0, 16], short, True)) == (
        "E1207"
    )
    # a few bytes that would unroll to millions of entries end at the table's own number
    many = struct.pack("<4H", 0, 1, 5, 0)[:6] + struct.pack("<3H", 1, 65535, 9) * 3000
    many += struct.pack("<4H", 2, 3000, 6, 0) * 3000
    assert seen(with_palette(dataset(index, "PALETTE COLOR"), [0, 0, 16], many, True))[0].any()


@pytest.mark.parametrize(("scale", "depth"), [(256, 16), (257, 16), (16, 16)])
def test_palettes_of_16_bits_keep_their_high_byte(scale: int, depth: int) -> None:
    """PS3.3 C.7.6.3.1.6: the entries span 16 bits, also where none is high."""
    entries = np.arange(256) * scale
    data = entries.astype("<u2").tobytes()
    got, _ = seen(with_palette(dataset(GREYS[0], "PALETTE COLOR"), [256, 0, depth], data, False))
    assert np.array_equal(got[..., 0], (entries >> 8)[GREYS[0]])


@pytest.mark.parametrize(("scale", "depth"), [(256, 8), (257, 8), (257, 12), (16, 8), (100, 12)])
def test_palettes_that_hold_more_than_their_bits(scale: int, depth: int) -> None:
    """Entries of 16 bits under a smaller number are shown, others are refused."""
    entries = np.arange(256) * scale
    ds = dataset(GREYS[0], "PALETTE COLOR")
    ds = with_palette(ds, [256, 0, depth], entries.astype("<u2").tobytes(), False)
    if scale < 256:
        assert code_of(ds) == "E1207"
        return
    got, words = seen(ds)
    assert np.array_equal(got[..., 0], GREYS[0])
    assert words == ["palette", "palette16"]


def test_ybr_of_pixel_pairs() -> None:
    luma = RNG.integers(60, 190, (8, 12), dtype=np.uint8)
    chroma = RNG.integers(110, 146, (8, 6, 2), dtype=np.uint8)
    whole = np.concatenate([luma[..., None], chroma.repeat(2, 1)], -1)
    ds = dataset(whole, "YBR_FULL_422")
    pairs = np.concatenate([luma.reshape(8, 6, 2), chroma], -1)
    ds.PixelData = pairs.tobytes()
    y, blue, red = np.moveaxis(whole - np.array([0.0, 128, 128]), -1, 0)
    want = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1)
    got, words = seen(ds)
    assert np.abs(got - want).max() <= 1.05
    assert words == ["ycbcr"]
    assert np.abs(seen(dataset(whole, "YBR_FULL"))[0] - want).max() <= 1.05
    odd = dataset(whole[:, :11], "YBR_FULL_422")
    assert code_of(odd) == "E1207"


def test_every_frame_of_pixel_pairs_is_counted() -> None:
    pairs = np.arange(3 * 64 * 64 * 2, dtype=np.uint32).reshape(3, 64, 64, 2).astype(np.uint8)
    for colours in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        ds = dataset(np.zeros((3, 64, 64, 3), np.uint8), colours, PixelData=pairs.tobytes())
        data = encode(ds)
        assert count_frames(io.BytesIO(data), len(data)) == 3
        _, words = decode(data, ImageSettings(), FilePart(3, 3))
        assert "ycbcr" in words


def test_a_jpeg_of_pixel_pairs_may_have_an_odd_column() -> None:
    smooth = np.add.outer(np.arange(33), 4 * np.arange(33))[..., None] + [0, 40, 80]
    coded = picture(smooth.astype(np.uint8), "JPEG", quality=95, subsampling=1)
    elements = {"PhotometricInterpretation": "YBR_FULL_422"}
    got, _ = seen(encapsulated(smooth.astype(np.uint8), JPEG, [coded], **elements))
    assert got.shape == (33, 33, 3)
    assert np.abs(got.astype(int) - smooth).max() <= 8


def test_ybr_with_room_at_both_ends() -> None:
    """Black, white, red, green and blue of ITU-R BT.601."""
    coded = [(16, 128, 128), (235, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110)]
    want = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    ds = dataset(np.zeros((5, 8, 3), np.uint8), "YBR_PARTIAL_422")
    ds.PixelData = b"".join(bytes([y, y, blue, red]) * 4 for y, blue, red in coded)
    got, words = seen(ds, min_side=1)
    assert np.abs(got - np.array(want)[:, None]).max() <= 2
    assert words == ["ycbcr"]


def test_colours_of_a_jpeg_that_contradicts_its_header() -> None:
    """The markers are nearer to the data: a JFIF file's colours are YBR."""
    smooth = np.stack([np.add.outer(np.arange(32) * 5, np.arange(40) * 2)] * 3, -1).astype(np.uint8)
    smooth[..., 1] //= 2
    frame = picture(smooth, "JPEG", quality=98, subsampling=0)
    assert b"JFIF" in frame[:32]
    got, words = seen(encapsulated(smooth, JPEG, [frame]))  # the header says RGB
    assert np.abs(got - smooth).max() <= 4
    assert words == ["colours_by_jpeg_markers"]


def test_jpegs_of_12_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.add.outer(np.arange(64) * 30, np.arange(48) * 40).astype(np.uint16)
    frame = jpeg8_encode(smooth, level=98, bitspersample=12)
    data = encapsulated(smooth, EXTENDED, [frame], BitsStored=12, HighBit=11)
    got, words = seen(data)
    assert np.abs(got - scaled(smooth)).max() <= 2
    assert words[0].startswith("dicom_range:")
    monkeypatch.setattr(dicom_decoders, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="imagecodecs") as caught:
        seen(data)
    assert caught.value.code == "E1211"


@pytest.mark.parametrize("number", [53, 55])
def test_progressive_jpegs_by_their_retired_syntaxes(number: int) -> None:
    syntax = f"1.2.840.10008.1.2.4.{number}"
    smooth = np.add.outer(np.arange(32) * 5, np.arange(40) * 2).astype(np.uint8)
    coded = picture(smooth, "JPEG", quality=95, progressive=True)
    assert np.abs(seen(encapsulated(smooth, syntax, [coded]))[0] - scaled(smooth)).max() <= 4
    deep = np.add.outer(np.arange(16) * 200, np.arange(16) * 60).astype(np.uint16)
    elements = {"BitsStored": 12, "HighBit": 11}
    data = encapsulated(deep, syntax, [TWELVE_PROGRESSIVE], **elements)
    assert np.abs(seen(data)[0] - scaled(deep)).max() <= 2
    cut = TWELVE_PROGRESSIVE[:-40] + b"\xff\xd9"
    assert code_of(encapsulated(deep, syntax, [cut], **elements)) == "E1203"


def test_colours_of_jpeg_ls_are_those_of_the_same_pixels_uncompressed() -> None:
    plain = dataset(COLOURS[0], "YBR_FULL")
    ds = dataset(COLOURS[0], "YBR_FULL")
    ds.compress(JPEG_LS)
    got, words = seen(ds)
    assert np.array_equal(got, seen(plain)[0])
    assert words == ["ycbcr"]


def test_colours_of_32_bits() -> None:
    ds = dataset(COLOURS.astype(np.uint32) * 0x01010101, "RGB")
    got, words = seen(ds, 2)
    assert np.array_equal(got, COLOURS[2])
    assert words == ["colour32_scaled:0..4294967295"]


def test_what_has_no_rule_is_named() -> None:
    floats = dataset(GREYS[0], FloatPixelData=bytes(4 * GREYS[0].size), BitsAllocated=32)
    del floats.PixelData
    for ds, text in (
        (dataset(COLOURS[0], "HSV"), r"colours that the DICOM header names \(HSV\)"),
        (dataset(COLOURS[0], "CANARY"), r"colours that the DICOM header names; RGB"),
        (dataset(GREYS[0].astype(np.uint64)), "64 bits allocated"),
        (floats, "floats"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            seen(ds)
        assert caught.value.code == "E1211"


KINDS = {
    "1.2.840.10008.5.1.4.1.1.88.22": "structured report",
    "1.2.840.10008.5.1.4.1.1.88.59": "key object",
    "1.2.840.10008.5.1.4.1.1.9.1.1": "waveform",
    "1.2.840.10008.5.1.4.1.1.11.1": "presentation state",
    "1.2.840.10008.5.1.4.1.1.481.3": "structure set",
    "1.2.840.10008.5.1.4.1.1.481.5": "plan",
    "1.2.840.10008.5.1.4.1.1.481.13": "plan",
    "1.2.840.10008.5.1.4.1.1.481.16": "treatment record",
    "1.2.840.10008.5.1.4.1.1.481.25": "plan",
    "1.2.840.10008.5.1.4.1.1.91.1": "annotations",
    "1.2.840.10008.5.1.4.1.1.104.1": "PDF",
    "1.2.840.10008.1.3.10": "DICOMDIR",
}


@pytest.mark.parametrize(("uid", "words"), KINDS.items())
def test_objects_without_a_picture_are_named(uid: str, words: str) -> None:
    ds = Dataset()
    ds.file_meta = dataset(GREYS[0]).file_meta
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid, "1.2.3", "OT"
    ds.ContentDate = "20200101"
    with pytest.raises(DataError, match=words) as caught:
        DicomFile(encode(ds), ImageSettings())
    assert caught.value.code == "E1202"


def test_masks_and_doses_are_no_pictures_unless_asked_for() -> None:
    mask = dataset(GREYS[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    dose = dataset(GREYS[0].astype(np.uint32), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    for ds, word in ((mask, "segmentation"), (dose, "dose grid")):
        with pytest.raises(DataError, match=word) as caught:
            seen(ds)
        assert caught.value.code == "E1202"
        assert np.array_equal(seen(ds, maps="draw")[0], scaled(GREYS[0]))
    for number in (1, 23):  # portal images of radiotherapy
        assert seen(dataset(GREYS[0], SOPClassUID=f"1.2.840.10008.5.1.4.1.1.481.{number}"))[0].any()


def test_burned_in_annotation() -> None:
    frames = dataset(GREYS, BurnedInAnnotation="YES")
    for frame in range(3):
        assert code_of(frames, frame) == "E1212"
        assert "burned_in_annotation" in seen(frames, frame, burned_in="flag")[1]
    capture = {"SOPClassUID": CAPTURE}
    assert "burned_in_unknown" in seen(dataset(GREYS[0], **capture))[1]
    assert "burned_in_unknown" in seen(dataset(GREYS[0], Modality="US"))[1]
    for said in ("Y", "UNKNOWN", "N"):
        assert "burned_in_unknown" in seen(dataset(GREYS[0], BurnedInAnnotation=said))[1]
    for elements in ({"BurnedInAnnotation": "NO", **capture}, {"Modality": "MR"}):
        assert not any("burned" in word for word in seen(dataset(GREYS[0], **elements))[1])


@pytest.mark.parametrize(("text", "word"), [(b"1A", "1"), (b"0 ", "1"), (b"1 ", "")])
def test_a_number_of_frames_that_is_none(text: bytes, word: str) -> None:
    data = dicom(GREYS[0], NumberOfFrames="10").replace(b"IS\2\x0010", b"IS\2\0" + text)
    got, words = seen(data)
    assert np.array_equal(got, scaled(GREYS[0]))
    assert words[:-1] == ([f"number_of_frames_read_as:{word}"] if word else [])
    # it must fit the pixels
    assert code_of(data.replace(b"IS\2\0" + text, b"IS\2\x002A")) == "E1207"


def test_a_missing_transfer_syntax_of_an_implicit_file() -> None:
    ds = dataset(SIGNED, **WINDOW)
    ds.file_meta.TransferSyntaxUID = IMPLICIT
    data = encode(ds)
    element = b"\2\0\x10\0UI\x12\0" + IMPLICIT.encode() + b"\0"
    assert element in data
    got, words = seen(data.replace(element, b""))
    assert np.array_equal(got, seen(dataset(SIGNED, **WINDOW))[0])
    assert words[0] == "transfer_syntax_assumed"


def test_an_enhanced_object_of_many_frames_is_read() -> None:
    group, window = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = "40", "400"
    group.FrameVOILUTSequence = [window]
    frames = np.zeros((300, 4, 4), np.uint8)
    data = dicom(frames, PerFrameFunctionalGroupsSequence=[group] * 300)
    assert seen(data, 299, min_side=1)[1] == ["dicom_window:1:40:400"]
