"""What a JPEG's markers tell without decoding: how it is coded, which scans it holds, its end.

Source: ITU-T T.81, B.1 (markers), B.2 (frame and scan headers) and G.1.1 (progressive scans).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

SOF0, SOF1, SOF2, SOF3 = 0xC0, 0xC1, 0xC2, 0xC3
HUFFMAN_DCT = (SOF0, SOF1, SOF2)
ARITHMETIC = (0xC9, 0xCA, 0xCB)
JPEG_LS = 0xF7
_FRAMES = {
    SOF0: "baseline JPEG",
    SOF1: "extended JPEG",
    SOF2: "progressive JPEG",
    SOF3: "lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    **dict.fromkeys(ARITHMETIC, "arithmetic-coded JPEG"),
    JPEG_LS: "JPEG-LS",
}
READERS = {
    JPEG_LS: "pyjpegls or imagecodecs",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "libjpeg of JPEG XT"),
}
"""What reads the ways of coding that no Pillow does; imagecodecs reads the others."""
_SOS, _EOI = 0xDA, 0xD9
# A marker that ends entropy-coded data: not a stuffed zero, a fill byte or a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class Coding(NamedTuple):
    """What the frame header says."""

    marker: int
    bits: int
    """Of a sample."""
    components: tuple[int, ...]
    """Their identifiers."""
    size: tuple[int, int]
    """Width and height; height 0 where it comes behind the first scan."""

    def __str__(self) -> str:
        return f"{self.bits}-bit {_FRAMES[self.marker]}"

    @property
    def plain(self) -> bool:
        """Whether it is coded in a way that every JPEG decoder reads."""
        return self.marker in HUFFMAN_DCT and self.bits == 8


class Markers(NamedTuple):
    """A whole walk over the file."""

    coding: Coding | None
    scans: tuple[tuple[tuple[int, ...], int, int, int], ...]
    """(components, first and last coefficient, bits of them still to come) of each scan."""
    end: int | None
    """Offset just behind the end marker; None without one."""


def read(data: bytes) -> Markers:
    """The markers of a JPEG file or frame; a damaged one has no end."""
    coding: Coding | None = None
    scans: list[tuple[tuple[int, ...], int, int, int]] = []
    for marker, start, stop in _segments(data):
        if marker == _EOI:
            return Markers(coding, tuple(scans), stop)
        body = data[start:stop]
        if marker in _FRAMES and coding is None and len(body) >= 6:
            names = tuple(body[6 : 6 + 3 * body[5] : 3])
            height, width = (int.from_bytes(body[at : at + 2], "big") for at in (1, 3))
            coding = Coding(marker, body[0], names, (width, height))
        if marker == _SOS and body and len(body) >= 2 * body[0] + 4:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            scans.append((tuple(body[1 : 1 + 2 * body[0] : 2]), first, last, bits & 15))
    return Markers(coding, tuple(scans), None)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment's content, without its length; of the end marker
    itself. Nothing behind a JPEG-LS frame's scan can be told from its data.
    """
    offset = 2
    while (offset := data.find(b"\xff", offset)) >= 0 and offset + 2 <= len(data):
        marker = data[offset + 1]
        if marker == _EOI:
            yield marker, offset, offset + 2
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # no length follows
            offset += 1 if marker == 0xFF else 2
            continue
        start = offset + 4
        offset += 2 + max(int.from_bytes(data[offset + 2 : offset + 4], "big"), 2)
        yield marker, start, offset
        if marker == _SOS:
            found = _MARKER.search(data, offset)
            if found is None:
                return
            offset = found.start()


def uncoded(markers: Markers) -> tuple[int, ...]:
    """Components of which no scan holds the mean values: those parts of the picture are not there.

    T.81 has every component in a scan, and of a progressive one its DC coefficients at least.
    """
    coding = markers.coding
    marker, named = (coding.marker, coding.components) if coding else (None, ())
    # the first number of a lossless scan is its predictor
    scans = [names for names, first, _, _ in markers.scans if first == 0 or marker == SOF3]
    present = {one for names in scans for one in names}
    return tuple(one for one in named if one not in present)


def unfinished(markers: Markers) -> bool:
    """Whether a progressive JPEG lacks scans: coefficients that never came, or not to their last
    bit.

    T.81 allows such files (libjpeg's jcmaster.c: "the spec does not require that all bits of all
    coefficients be transmitted"), and a download that ended between two scans is one.
    """
    if markers.coding is None or markers.coding.marker not in (SOF2, 0xCA):
        return False
    missing = dict.fromkeys(
        ((one, index) for one in markers.coding.components for index in range(64)), 13
    )
    for names, first, last, bits in markers.scans:
        missing.update({(one, index): bits for one in names for index in range(first, last + 1)})
    return any(missing.values())


def prolonged(data: bytes, end: int, with_restarts: bool = True) -> bytes:
    """The same JPEG with more coded data in front of its end marker, restart markers among them.

    A decoder that has read the whole picture passes over them; one whose data ended early takes
    them for the rest of it.
    """
    more = bytes(range(1, 128)) * 8
    restarts = b"".join(bytes((0xFF, 0xD0 + count % 8)) + more for count in range(16))
    restarts = restarts if with_restarts else b""
    return data[: end - 2] + more + restarts + b"\xff\xd9"
