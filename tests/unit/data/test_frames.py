"""Which frames and pages a file holds, and that one is decoded and no other."""

import io
import struct

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.data.frames import MOST_FRAMES, count_frames, tiff_frames
from medv_ray.data.images import decode, inspect
from medv_ray.errors import DataError, SettingsError
from medv_ray.file_parts import FilePart, Picture
from medv_ray.settings import ImageSettings, Settings, build
from tests.frame_files import SIDE, dicom, greys, page, tiff

GREYS = (10, 70, 130, 190)


def counted(data: bytes) -> int:
    return count_frames(io.BytesIO(data), len(data))


def shown(data: bytes, part: FilePart | None = None, **settings) -> tuple[int, list[str]]:
    """The picture's first value, and words."""
    image, words = decode(data, ImageSettings(**settings), part)
    return int(np.asarray(image)[0, 0, 0]), words


def sequences(undefined: bool) -> bytes:
    """Frames behind sequences in sequences, one of which has a number of frames of its own."""
    inner, outer = Dataset(), Dataset()
    inner.NumberOfFrames = "9"
    outer.ReferencedImageSequence = [inner, inner]
    outer.NumberOfFrames = "8"
    data = io.BytesIO(dicom(GREYS))

    ds = pydicom.dcmread(data)
    ds.SourceImageSequence = [outer, outer]
    for one in (ds["SourceImageSequence"], outer["ReferencedImageSequence"]):
        one.is_undefined_length = undefined
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


FILES = {
    "tiff": lambda: tiff([page(grey) for grey in GREYS]),
    "tiff, deflated": lambda: tiff([page(grey) for grey in GREYS], compression="tiff_deflate"),
    "big tiff": lambda: tiff([page(grey) for grey in GREYS], big_tiff=True),
    "gif": lambda: greys("GIF", GREYS),
    "webp": lambda: greys("WEBP", GREYS, lossless=True),
    "png": lambda: greys("PNG", GREYS),
    "png beside its animation": lambda: greys("PNG", GREYS, default_image=True),
    "dicom": lambda: dicom(GREYS),
    "dicom, implicit": lambda: dicom(GREYS, implicit=True),
    "dicom, sequences": lambda: sequences(False),
    "dicom, sequences without length": lambda: sequences(True),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_frame_by_its_number(kind: str) -> None:
    data = FILES[kind]()
    assert counted(data) == 4
    for number, grey in enumerate(GREYS, 1):
        value, words = shown(data, FilePart(number, 4), frames="all")
        assert value == pytest.approx(grey, abs=1)
        assert words[0] == f"frame:{number}/4"
    assert shown(data, frames="middle")[0] == pytest.approx(GREYS[2], abs=1)
    assert shown(data, frames="middle")[1][0] == "frame:3/4"
    assert shown(data)[1][0] == "first_of_frames:4"
    assert inspect(data, ImageSettings(), FilePart(2, 4)).warnings[0] == "frame:2/4"
    with pytest.raises(DataError) as caught:
        shown(data, frames="refuse")
    assert caught.value.code == "E1210"


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "JPEG", "BMP"])
def test_one_frame(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(buffer, kind)
    data = buffer.getvalue()
    assert counted(data) == 1
    for words in (shown(data)[1], shown(data, FilePart(1, 1), frames="all")[1]):
        assert not [word for word in words if "frame" in word]


def test_middle() -> None:
    places = [shown(dicom(range(count)), frames="middle")[0] for count in range(1, 7)]
    assert places == [0, 1, 1, 2, 2, 3]  # of numbers from 0


@pytest.mark.parametrize(
    ("kinds", "first", "words"),
    [
        ([1, 0, 0], 70, ["thumbnail_page_skipped", "first_of_frames:2"]),
        ([4, 0], 70, ["mask_page_skipped"]),
        ([5, 0, 1, 4], 70, ["thumbnail_page_skipped", "pages_left_out:2"]),
        ([0, 1, 1], 10, ["pages_left_out:2"]),
        ([2, 2, 2], 10, ["first_of_frames:3"]),
        ([1, 1], 10, ["pages_left_out:1"]),
    ],
)
def test_pages_that_are_no_pictures_of_their_own(kinds, first, words) -> None:
    pages = [page(grey, t254=kind) for grey, kind in zip(GREYS, kinds, strict=False)]
    data = tiff(pages)
    value, found = shown(data)
    assert value == first
    assert found[: len(words)] == words
    real = max(1, sum(not kind & 5 for kind in kinds))
    assert counted(data) == real
    if real == 2:
        assert shown(data, FilePart(2, 2), frames="all")[0] == GREYS[2]


def test_a_thumbnail_in_front_is_not_held_to_the_limits() -> None:
    small = Image.new("L", (4, 4), 255)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    assert shown(tiff([small, page(77)])) == (77, ["thumbnail_page_skipped"])
    with pytest.raises(DataError) as caught:
        shown(tiff([page(77), Image.new("L", (4, 4), 255)]), FilePart(2, 2), frames="all")
    assert caught.value.code == "E1205"


def test_old_subfile_type() -> None:
    assert shown(tiff([page(10, t255=2), page(70, t255=1)]))[0] == 70


def big_endian_tiff(greys: tuple[int, ...], loop: bool = False, cut: bool = False) -> bytes:
    """Written by hand: the pages' lists in front of all pixels."""
    tags, size = 8, 2 + 8 * 12 + 4
    data = struct.pack(">2sHL", b"MM", 42, 8)
    for number in range(len(greys)):
        pixels = 8 + size * len(greys) + 256 * number
        entries = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, pixels), (278, 16)]
        entries.append((279, 256))
        data += struct.pack(">H", tags)
        data += b"".join(struct.pack(">HHLL", tag, 4, 1, value) for tag, value in entries)
        link = 8 + size * (number + 1) if number + 1 < len(greys) else (8 if loop else 0)
        data += struct.pack(">L", 10**6 if cut and number == len(greys) - 1 else link)
    return data + b"".join(bytes([grey]) * 256 for grey in greys)


def test_big_endian_loops_and_lists_that_break_off() -> None:
    assert shown(big_endian_tiff(GREYS), FilePart(4, 4), frames="all") == (190, ["frame:4/4"])
    assert counted(big_endian_tiff(GREYS, loop=True)) == 4
    broken = big_endian_tiff(GREYS, cut=True)
    assert tiff_frames(io.BytesIO(broken)).words == ("page_list_broken",)
    value, words = shown(broken, FilePart(3, 4), frames="all")
    assert (value, words[:2]) == (130, ["page_list_broken", "frame:3/4"])


def test_lists_of_pages_that_are_no_lists(monkeypatch) -> None:
    """An offset that no file has, and more pages than are rows."""
    big = tiff([page(1), page(2)], big_tiff=True)
    [first] = struct.unpack("<Q", big[8:16])
    [entries] = struct.unpack("<Q", big[first : first + 8])
    link = first + 8 + 20 * entries
    assert counted(big) == 2
    assert counted(big[:8] + b"\xff" * 8 + big[16:]) == 1
    assert tiff_frames(io.BytesIO(big[:link] + b"\xff" * 8 + big[link + 8 :])) == (
        [0], ("page_list_broken",),
    )  # fmt: skip
    entry = struct.pack("<HHHLL", 1, 254, 4, 1, 0)
    offsets = [8 + 18 * number for number in range(1, 10)]
    monkeypatch.setattr("medv_ray.data.frames.MOST_FRAMES", 9)
    for count, want in ((9, 9), (10, 1)):
        links = [*offsets[: count - 1], 0]
        data = b"II*\0" + struct.pack("<L", 8)
        data += b"".join(entry + struct.pack("<L", link) for link in links)
        assert counted(data) == want


def poisoned_tiff() -> bytes:
    data = tiff([page(grey) for grey in GREYS], compression="tiff_deflate")
    source = Image.open(io.BytesIO(data))
    for number in (0, 2, 3):
        source.seek(number)
        start, size = source.tag_v2[273][0], source.tag_v2[279][0]
        data = data[:start] + b"\xff" * size + data[start + size :]
    return data


def poisoned_dicom() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 70).save(buffer, "JPEG")
    pieces = [b"\xff\xd8 no JPEG" + bytes(40)] * 4
    pieces[1] = buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)

    ds = pydicom.dcmread(io.BytesIO(dicom(GREYS)))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate(pieces)
    ds["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [poisoned_tiff, poisoned_dicom])
def test_only_the_frame_asked_for_is_decoded(make) -> None:
    """Every other one would be refused."""
    data = make()
    assert shown(data, FilePart(2, 4), frames="all")[0] == pytest.approx(70, abs=1)
    for number in (1, 3, 4):
        with pytest.raises(DataError) as caught:
            shown(data, FilePart(number, 4), frames="all")
        assert caught.value.code == "E1203"


@pytest.mark.parametrize("part", [FilePart(1, 1), FilePart(1, 3), FilePart(5, 5)])
def test_a_file_of_other_frames_than_were_planned(part: FilePart) -> None:
    with pytest.raises(DataError, match="4 frames") as caught:
        shown(dicom(GREYS), part, frames="all")
    assert caught.value.code == "E1207"


def test_policies_of_several_rows_need_a_plan() -> None:
    class Here(Settings):
        image: ImageSettings = ImageSettings()

    with pytest.raises(SettingsError, match="frames=every:2") as caught:
        shown(dicom(GREYS), frames="every:2")
    assert caught.value.code == "E1001"
    for wrong in ("every:0", "every", "last", "every:-1", "All"):
        with pytest.raises(SettingsError, match="every:N"):
            build(Here, {"image": {"frames": wrong}})


@pytest.mark.parametrize(
    "data",
    [
        *(dicom(GREYS, NumberOfFrames=text) for text in ("1000000000", "0", "-3")),
        dicom(GREYS, NumberOfFrames="50"),
        dicom(GREYS)[:160],
        tiff([page(1), page(2)])[:9],
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"\x89PNG\r\n\x1a\n" + struct.pack(">L4sLL", 8, b"acTL", MOST_FRAMES + 1, 0),
    ],
)
def test_headers_that_lie_or_end_are_one_row(data: bytes) -> None:
    assert counted(data) == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_an_animation_that_was_cut_says_so(kind: str) -> None:
    whole = greys(kind, GREYS)
    assert "frame_list_broken" not in shown(whole)[1]
    for cut in (whole[:-1], whole[:-20]):
        value, words = shown(cut)
        assert value == GREYS[0]
        assert "frame_list_broken" in words


def test_parts_of_one_file_are_sent_to_the_child_once(monkeypatch) -> None:
    sent = []
    real = Decoder._exchange

    def exchange(self, process, data, seconds, part=""):
        sent.append(len(data))
        return real(self, process, data, seconds, part)

    monkeypatch.setattr(Decoder, "_exchange", exchange)
    first, second = dicom(GREYS), tiff([page(grey) for grey in GREYS])
    asked = [(first, "a", 1), (first, "a", 4), (second, "b", 2), (first, "a", 3), (first, "a", 2)]
    with Decoder(ImageSettings(), TileSettings("square", 32)) as decoder:
        for data, digest, number in asked:
            got = decoder.prepare(Picture(data, digest, FilePart(number, 4)))
            assert got.tiles[0, 0, 0, 0] == GREYS[number - 1]
            assert (got.sha256, got.part) == (digest, FilePart(number, 4))
        whole = decoder.prepare(greys("PNG", [5]))
        assert (whole.part, len(whole.sha256)) == (None, 64)
        decoder.prepare(Picture(first, "a", FilePart(1, 4)))
    assert sent[:5] == [len(first), 0, len(second), len(first), 0]
    assert sent[6] == len(first)
