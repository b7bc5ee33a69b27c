import io
from pathlib import Path

import pytest
from PIL import Image

from medv_ray.formats import (
    DEFAULT,
    ENDINGS,
    FORMATS,
    HEAD_BYTES,
    dicom_start,
    ending_of,
    format_of,
    looks_like,
)

DOCS = Path(__file__).parents[2] / "docs" / "images.md"
IMPLICIT = b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100\x08\x00\x16\x00\x1a\x00\x00\x00" + b"1" * 26
EXPLICIT = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x16\x00UI\x1a\x00" + b"1" * 26
META = b"\x02\x00\x00\x00UL\x04\x00\xc8\x00\x00\x00\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\0\1"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF"])
def test_what_pillow_writes_is_told_by_its_bytes(name):
    buffer = io.BytesIO()
    try:
        Image.new("RGB", (20, 20)).save(buffer, name)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {name}")
    assert format_of(buffer.getvalue()[:HEAD_BYTES]) == name


@pytest.mark.parametrize("bare", [IMPLICIT, EXPLICIT, META])
def test_dicom_with_and_without_its_preamble(bare):
    assert (format_of(bare), dicom_start(bare)) == ("DICOM", 0)
    for preamble in (bytes(128), b"II*\0" + bytes(124), b"MZ" + bytes(126)):
        whole = preamble + b"DICM" + bare
        assert (format_of(whole[:HEAD_BYTES]), dicom_start(whole)) == ("DICOM", 132)


@pytest.mark.parametrize(
    "head",
    [
        b"", b"BMI of the patients\n1,2", b"PK\x03\x04rest", b"\x08\x00", b"\x08\x00\x05\x00CS",
        b"\x02\x00\x00\x00" * 40, bytes(256), b"RIFF....WAVEfmt ", b"\0\0\0\x18ftypmp42", b"\xff\xd8",
        b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", IMPLICIT[:20], "größe".encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_picture(head):
    assert format_of(head) is None


def test_words_for_what_is_no_allowed_picture():
    assert looks_like(b"  <html>") == "HTML, XML or SVG text"
    assert looks_like(b"\0\0\0\x18ftypheic") == "HEIF"
    assert looks_like(b"anything") is None


def test_endings_belong_to_one_format_and_the_docs_show_the_table():
    listed = [ending for one in FORMATS for ending in one.endings]
    assert len(listed) == len(ENDINGS)
    assert all(ending == ending_of("x" + ending.upper()) for ending in listed)
    assert set(DEFAULT) == {"JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "DICOM"}
    for one in FORMATS:
        by_default = "yes" if one.by_default else "no"
        endings = " ".join(f"`{ending}`" for ending in one.endings)
        assert f"| {one.name} | {endings} | {by_default} |" in DOCS.read_text()
