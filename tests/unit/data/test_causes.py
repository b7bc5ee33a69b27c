"""Damaged, not read here, or a broken environment: each error is what it says."""

import errno
import io
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from medv_ray.canvases import TileSettings
from medv_ray.data import causes, decode_child, dicom_decoders, pixels
from medv_ray.data.decode_child import Decoder
from medv_ray.data.images import prepare
from medv_ray.errors import DataError, MedvError, RunError
from medv_ray.settings import ImageSettings

pytestmark = pytest.mark.usefixtures("own_decoders")
TILES = TileSettings("square", 32)
NOISE = Image.effect_noise((64, 48), 90)


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, TIFF = encode("JPEG"), encode("TIFF", compression="tiff_lzw")
SOF = JPEG.index(b"\xff\xc0")


def frame(marker: int, bits: int = 8) -> bytes:
    """The JPEG with another way of coding in its header."""
    changed = bytearray(JPEG)
    changed[SOF + 1], changed[SOF + 4] = marker, bits
    return bytes(changed)


def compressed(number: int) -> bytes:
    """The TIFF with another number of a compression."""
    return retagged(259, number)


def retagged(tag: int, number: int) -> bytes:
    """The TIFF with another value of a tag."""
    (start,) = struct.unpack_from("<I", TIFF, 4)
    offset = TIFF.index(struct.pack("<HH", tag, 3), start)
    return TIFF[: offset + 8] + struct.pack("<I", number) + TIFF[offset + 12 :]


def raised(data: bytes, **settings: object) -> MedvError:
    with pytest.raises(MedvError) as caught:
        prepare(data, ImageSettings(**settings), TILES)
    return caught.value


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What was found out about the environment."""
    yield
    causes.works.cache_clear()
    dicom_decoders.works.cache_clear()


def subsampled() -> bytes:
    """A grey JPEG 2000, each sample of which stands for 2 x 2 pixels."""
    data = bytearray(encode("JPEG2000"))
    siz = data.index(b"\xff\x4f\xff\x51") + 8
    for at in (0, 4, 16, 20):  # sizes of picture and tile
        struct.pack_into(">I", data, siz + at, 2 * struct.unpack_from(">I", data, siz + at)[0])
    data[siz + 35 : siz + 37] = b"\2\2"
    return bytes(data)


def many_colours() -> bytes:
    """A BMP of 8 bits a pixel whose palette has 300 entries."""
    palette, pixels = bytes(4 * 300), bytes(64 * 48)
    head = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 8, 0, len(pixels), 0, 0, 300, 0)
    start = 14 + len(head) + len(palette)
    size = start + len(pixels)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, start) + head + palette + pixels


NOT_READ = {
    "300 colours in a BMP": (many_colours(), "E1211", "of a kind not decoded"),
    "12 bits": (frame(0xC1, 12), "E1211", "12-bit extended JPEG, which imagecodecs"),
    "lossless of 16 bits": (frame(0xC3, 16), "E1211", "16-bit lossless JPEG"),
    "JPEG-LS": (frame(0xF7), "E1211", "JPEG-LS, which pyjpegls"),
    "hierarchical": (frame(0xC5), "E1211", "hierarchical"),
    "JPEG 2000 in TIFF": (compressed(34712), "E1211", "JPEG 2000.*imagecodecs"),
    "LERC in TIFF": (compressed(34887), "E1211", "LERC"),
    "a private compression": (compressed(65000), "E1211", "65000"),
    "floats of 64 bits": (retagged(258, 64), "E1211", "samples of 64 bits, which tifffile"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(64), "E1202", "pillow-heif"),
    "HEIC of another brand": (b"\0\0\0\x18ftyphevc" + bytes(64), "E1202", "pillow-heif"),
    "AVIF": (b"\0\0\0\x1cftypavif" + bytes(64), "E1202", "AVIF"),
    "JPEG XL": (b"\xff\x0a" + bytes(64), "E1202", "JPEG XL, which imagecodecs"),
    "JPEG XR": (b"II\xbc\x01" + bytes(64), "E1202", "JPEG XR"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), "E1202", "image.formats"),
    "an HTML page": (b"\n <!DOCTYPE html>", "E1202", "HTML"),
    "a PDF": (b"%PDF-1.7", "E1202", "PDF"),
    "text": (b"no picture at all", "E1202", "none of the allowed formats"),
    "damaged JPEG": (JPEG[: SOF + 12] + JPEG[SOF + 40 :], "E1203", "damaged"),
    "12 bits, cut": (frame(0xC1, 12)[:-400], "E1211", "12-bit"),
    "damaged TIFF": (TIFF[: len(TIFF) // 2], "E1203", "damaged"),
    "damaged PNG": (encode("PNG")[:400], "E1203", "damaged"),
}


@pytest.mark.parametrize(("data", "code", "message"), NOT_READ.values(), ids=NOT_READ)
def test_what_is_not_read_is_not_called_damaged(data: bytes, code: str, message: str) -> None:
    found = raised(data)
    assert found.code == code
    assert re.search(message, found.detail)


def test_subsampled_grey_is_not_called_damaged() -> None:
    found = raised(subsampled(), formats=("JPEG2000",))
    assert found.code == "E1211"
    assert "subsampled grey, which OpenJPEG reads" in found.detail
    assert raised(subsampled()[:-20], formats=("JPEG2000",)).code == "E1203"


def without(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """Pillow as if it were built without a library."""
    real = Image._getdecoder

    def get(mode: str, name: str, args: object, extra: object = ()) -> object:
        if name == codec:
            raise OSError(f"decoder {name} not available")
        return real(mode, name, args, extra)

    monkeypatch.setattr(Image, "_getdecoder", get)


@pytest.mark.parametrize(("codec", "data"), [("jpeg", JPEG), ("libtiff", TIFF)])
def test_a_missing_library_is_no_pictures_fault(
    codec: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, codec)
    found = raised(data)
    assert (type(found), found.code, found.exit_code) == (RunError, "E1513", 6)
    assert raised(encode("PNG")[:400]).code == "E1203"


def test_a_pillow_without_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode("WEBP")
    factory, _ = Image.OPEN["WEBP"]
    monkeypatch.setitem(Image.OPEN, "WEBP", (factory, lambda _: "WEBP support not installed"))
    assert raised(data).code == "E1513"
    assert raised(data, formats=("PNG",)).code == "E1202"
    assert prepare(JPEG, ImageSettings(), TILES).warnings == ()


def test_a_defect_of_ours_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    NOISE.convert("I").save(buffer, "TIFF")
    monkeypatch.delattr(pixels, "stretch")
    assert raised(buffer.getvalue()).code == "E1509"


def test_a_version_that_decodes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on every picture is no damage."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: 1 / 0)
    assert raised(JPEG).code == "E1513"


def package(folder: Path, name: str) -> None:
    """A package that is installed and does not load."""
    (folder / name).mkdir()
    text = 'raise ImportError("libx.so.1: cannot open shared object file")'
    (folder / name / "__init__.py").write_text(text)


DICOM = bytes(128) + b"DICM" + bytes(200)


@pytest.mark.parametrize(("name", "data"), [("pydicom", DICOM), ("PIL", JPEG)])
def test_a_package_that_does_not_load(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Decoder(ImageSettings(), TILES) as decoder, pytest.raises(RunError) as caught:
        decoder.prepare(data)
    assert caught.value.code == "E1513"
    assert "libx" not in str(caught.value)


def test_a_dicom_plugin_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    lossless = UID("1.2.840.10008.1.2.4.70")
    monkeypatch.setattr(get_decoder(lossless), "_available", {})  # as where gdcm is not there
    with pytest.raises(DataError, match="python-gdcm") as message:
        dicom_decoders.check_available(lossless)
    assert message.value.code == "E1211"
    package(tmp_path, "gdcm")
    monkeypatch.delitem(sys.modules, "gdcm", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunError, match="does not load: gdcm") as caught:
        dicom_decoders.check_available(lossless)
    assert caught.value.code == "E1513"


def test_a_decoder_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/secret")

    monkeypatch.setattr(decode_child.subprocess, "Popen", refuse)
    with Decoder(ImageSettings(), TILES) as decoder, pytest.raises(RunError) as caught:
        decoder.prepare(JPEG)
    assert caught.value.code == "E1513"
    assert "(EMFILE)" in caught.value.detail


def test_a_decoder_that_ends_on_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends on this picture alone costs a row; one that ends on any costs none."""

    def start(_: Decoder) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(Decoder, "_start", start)
    with Decoder(ImageSettings(), TILES) as decoder, pytest.raises(RunError) as caught:
        decoder.prepare(JPEG)
    assert caught.value.code == "E1513"


def test_a_child_that_says_so_is_replaced_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture may have spoilt it; the next child is asked before the job ends."""
    with Decoder(ImageSettings(), TILES) as decoder:
        decoder.prepare(JPEG)
        first = decoder._process
        real = Decoder._exchange

        def lie(
            self: Decoder, process: subprocess.Popen[bytes], data: bytes, *rest: object
        ) -> tuple[object, bytearray]:
            if process is first:
                return {"code": "E1513", "detail": "broken."}, bytearray()
            return real(self, process, data, *rest)

        monkeypatch.setattr(Decoder, "_exchange", lie)
        assert decoder.prepare(JPEG).size_wh == (64, 48)
        assert decoder._process is not first
