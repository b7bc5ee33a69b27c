"""The picture formats: told by their first bytes, and the endings and types that go with them.

One table for whoever asks what a picture is: the listing of folders and tars, the decoder, the
endpoint, the page and the docs. Nothing is decoded here.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

HEAD_BYTES = 256
"""How much of a file `format_of` looks at."""


class Format(NamedTuple):
    """A picture format."""

    name: str
    """Pillow's name, or DICOM; the words of `image.formats`."""
    endings: tuple[str, ...]
    """Lower case. A file of such an ending is taken for a picture without being opened."""
    media_type: str
    by_default: bool = True
    """Whether `image.formats` has it unless told otherwise."""


FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "image/jpeg"),
    Format("PNG", (".png",), "image/png"),
    Format("TIFF", (".tif", ".tiff", ".svs", ".ndpi", ".scn"), "image/tiff"),
    Format("BMP", (".bmp",), "image/bmp"),
    Format("GIF", (".gif",), "image/gif"),
    Format("WEBP", (".webp",), "image/webp"),
    Format("DICOM", (".dcm", ".dicom", ".dic", ".ima"), "application/dicom"),
    Format("JPEG2000", (".jp2", ".j2k", ".jpx", ".j2c"), "image/jp2", by_default=False),
    Format("AVIF", (".avif",), "image/avif", by_default=False),
    Format("HEIF", (".heic", ".heif"), "image/heif", by_default=False),
)
DEFAULT = tuple(one.name for one in FORMATS if one.by_default)
ENDINGS = frozenset(ending for one in FORMATS for ending in one.endings)
MEDIA_TYPES = {one.name: one.media_type for one in FORMATS}
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JPEG2000",
    # classic TIFF and BigTIFF of both byte orders, and two mixed ones that Pillow reads
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*"), "TIFF"),
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF"}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes of the header behind the file header
_OTHERS = {
    b"<": "HTML, XML or SVG text",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"\x1f\x8b": "gzip data",
    b"\xd0\xcf\x11\xe0": "an old Office file",
}
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
)
_LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def ending(name: str) -> str:
    """`a/B.JPG` -> `.jpg`."""
    return posixpath.splitext(name)[1].lower()


def format_of(head: bytes) -> str | None:
    """The name of the format that a file's first HEAD_BYTES say; None for no picture."""
    if head[128:132] == b"DICM":  # its first 128 bytes may be anything: a TIFF's, in some files
        return "DICOM"
    for start, name in _STARTS.items():
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return "DICOM" if dicom_start(head) is not None else None


def dicom_start(head: bytes) -> int | None:
    """Where the elements of a DICOM file begin: 132, or 0 for one without the preamble.

    Without it there is no mark, so the first two elements must look like a data set's: groups 2 or
    8, ascending tags, a known value representation or a short length.
    """
    if head[128:132] == b"DICM":
        return 132
    first, second = _tag(head, 0), _tag(head, _next_element(head))
    if first >> 16 not in (2, 8) or first & 0xFFFF > 0x1000:
        return None
    return 0 if first < second and second >> 16 in (2, 8, 0x10) else None


def _tag(head: bytes, at: int) -> int:
    """Group and element, little endian."""
    group, element = head[at : at + 2], head[at + 2 : at + 4]
    return int.from_bytes(group, "little") << 16 | int.from_bytes(element, "little")


def _next_element(head: bytes) -> int:
    """Where the second element begins: explicit or implicit value representation."""
    kind = head[4:6]
    if kind in _LONG_VRS:
        return 12 + int.from_bytes(head[8:12], "little")
    if kind in _VRS:
        return 8 + int.from_bytes(head[6:8], "little")
    return 8 + int.from_bytes(head[4:8], "little")


def looks_like(head: bytes) -> str | None:
    """In words, what bytes are that are not one of the allowed pictures, where they tell."""
    start = head.lstrip()
    other = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
    return other or format_of(head)
