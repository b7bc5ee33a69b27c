"""Which part of a slide a row shows, and what tells a slide from a picture by its bytes.

A slide is a scan under a microscope: too large to decode whole, so that it is read in parts, at a
resolution that is asked for. Source of the tags: TIFF 6.0, and the formats
that openslide.org describes.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import BinaryIO, Literal, NamedTuple, Protocol, Self

from medv_ray.tiff_walk import pages

_WIDTH, _HEIGHT, _DESCRIPTION, _TILE_WIDTH, _XML, _HAMAMATSU = 256, 257, 270, 322, 700, 65420
_WHOLE_SLIDE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.77\.1\.6(?![.\d])")
"""DICOM's VL Whole Slide Microscopy Image Storage: the class stands at the file's beginning."""
_LABEL = re.compile(rb"\x08\0\x08\0.{4,8}(?:[\w ]*\\){2} *(?:LABEL|OVERVIEW)", re.I | re.DOTALL)
"""ImageType, in either form of value representation. Some writers use small letters and blanks."""
_TAGS = (_WIDTH, _HEIGHT, _DESCRIPTION, _TILE_WIDTH, _XML, _HAMAMATSU)
_MOST_PAGES, _STEPS = 64, 2**15
_ASPECT = 0.05


MIRAX = ".mrxs"
SlideKind = Literal["scan", "beside", "dicom"]


class SlidePart(NamedTuple):
    """A picture that is read out of a slide."""

    name: str
    """tile; whole: the slide as a thumbnail; else the name of an associated image, as label."""
    x: int
    """Left upper corner and size in pixels of the slide's finest level."""
    y: int
    width: int
    height: int
    out_width: int
    """Size of the picture in pixels."""
    out_height: int
    mpp: float = 0.0
    """Micrometres a pixel of the picture; 0: not known."""
    magnification: float = 0.0
    """Power of an objective that shows so much; 0: not known."""
    tissue: float = -1.0
    """Share of a tile that shows tissue; -1: not looked for."""
    planned: int = 0
    """Tiles of the slide that are rows, of those with tissue, of those of its grid."""
    with_tissue: int = 0
    grid: int = 0

    @property
    def text(self) -> str:
        """One line that `parse` reads back."""
        return f"{self.name}={','.join(map(repr, self[1:]))}"

    @property
    def suffix(self) -> str:
        """What the row's id has behind the slide's name."""
        if self.name == "tile":
            return f"#tile={self.x},{self.y}"
        return "" if self.name == "whole" else f"#{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part that `text` was made of. Raises ValueError."""
        name, _, rest = text.partition("=")
        values = rest.split(",")
        whole, shares, counts = values[:6], values[6:9], values[9:]
        return cls(name, *map(int, whole), *map(float, shares), *map(int, counts))


def slide_kind(file: BinaryIO, name: str = "") -> SlideKind | None:
    """What a file is, as far as it is a slide: a scanner's TIFF, or a tiled one of several levels
    (`scan`; `beside` where its first page shows label or macro); DICOM's whole slide images; MIRAX
    by its name. None for any other file. Only headers are read, a few kilobytes.

    Raises OSError.
    """
    if name.lower().endswith(MIRAX):
        return "beside"
    file.seek(0)
    head = file.read(512)
    if head[128:132] == b"DICM":
        return "dicom" if _WHOLE_SLIDE.search(head) else None
    try:
        return _tiff_kind(file)
    except (struct.error, ValueError):
        return None  # a damaged directory is the decoder's to judge


def shows_label(head: bytes) -> bool:
    """Whether a DICOM file, by its first kilobytes, is the label or macro image of a slide."""
    return bool(_WHOLE_SLIDE.search(head[:512]) and _LABEL.search(head))


def _tiff_kind(file: BinaryIO) -> SlideKind | None:
    first: dict[int, bytes | int] | None = None
    for page in islice(pages(file, _TAGS, _STEPS), _MOST_PAGES):
        if first is None:
            first = page
            said = b"".join(
                text for tag in (_DESCRIPTION, _XML) if isinstance(text := page.get(tag), bytes)
            )
            if b"<iScan" in said or b"leica-microsystems" in said:
                return "beside"
            is_scan = _HAMAMATSU in page or said.startswith(b"Aperio") or b"Philips DP" in said
            if is_scan or _TILE_WIDTH not in page:
                return "scan" if is_scan else None
        elif _TILE_WIDTH in page and _is_smaller(page, first):
            return "scan"
    return None


def _is_smaller(page: dict[int, bytes | int], first: dict[int, bytes | int]) -> bool:
    """Whether a page is the first one again, in fewer pixels."""
    sizes = [one.get(tag) for one in (page, first) for tag in (_WIDTH, _HEIGHT)]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return False
    width, height, full_width, full_height = (int(size) for size in sizes)  # type: ignore[arg-type]
    aspect = (width / height) / (full_width / full_height)
    # of small levels the rounding of a side shows
    slack = _ASPECT + 1 / width + 1 / height
    return width < full_width and abs(aspect - 1) < slack


class SlideFiles(Protocol):
    """Reads pictures out of slides, which lie on a local disk."""

    def thumbnail(self, path: str) -> tuple[bytes, str]:
        """The whole slide as an encoded picture, and a word of warning. Raises DataError."""

    def picture(self, path: str, part: SlidePart) -> bytes:
        """A part of a slide as an encoded picture. Raises DataError."""
