"""JPEGs whose data end before their picture: found by markers, and by what more data would change.

No sound one is called damaged.
"""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from medv_ray.canvases import TileSettings
from medv_ray.data import jpeg
from medv_ray.data.images import prepare
from medv_ray.errors import DataError
from medv_ray.settings import ImageSettings

Y, X = np.mgrid[:96, :131]
NOISE = np.random.default_rng(0).normal(0, 20, (96, 131, 3))
SMOOTH = np.dstack([X * 255 / 131, Y * 255 / 96, (X + Y) % 256])
PICTURE = Image.fromarray(np.clip(SMOOTH + NOISE, 0, 255).astype(np.uint8))
HALF = np.asarray(PICTURE).copy()
HALF[48:] = 128  # what decoders fill in
END = b"\xff\xd9"


def encode(image: Image.Image = PICTURE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


def outcome(data: bytes) -> tuple[str, ...] | str:
    """The warnings, or the code of the refusal."""
    try:
        return prepare(data, ImageSettings(), TileSettings("square", 32)).warnings
    except DataError as error:
        return error.code


def parts(data: bytes) -> tuple[bytes, list[bytes]]:
    """What stands before the first scan, and each scan with the tables in front of it."""
    first = next(start - 4 for marker, start, _ in jpeg._segments(data) if marker == 0xDA)
    scans, offset = [], first
    while data[offset : offset + 2] != END:
        begin, marker = offset, 0
        while marker != 0xDA:
            marker = data[offset + 1]
            offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        found = jpeg._MARKER.search(data, offset)
        assert found is not None
        offset = found.start()
        scans.append(data[begin:offset])
    return data[:first], scans


SOUND = [
    {"progressive": progressive, "subsampling": subsampling, **restarts}
    for progressive, subsampling, restarts in itertools.product(
        (False, True), (0, 2), ({}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1})
    )
]


@pytest.mark.parametrize("options", SOUND, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_sound_jpegs_pass_and_cut_ones_do_not(mode: str, options: dict[str, object]) -> None:
    for array in (np.asarray(PICTURE), HALF, np.full_like(HALF, 128)):
        data = encode(Image.fromarray(array).convert(mode), **options)
        assert outcome(data) == (("cmyk",) if mode == "CMYK" else ())
    data = encode(PICTURE.convert(mode), **options)
    for share in (0.5, 0.7, 0.9):
        cut = data[: int(len(data) * share)].rstrip(b"\xff")
        assert outcome(cut + END) == "E1203"


def test_a_progressive_jpeg_without_its_last_scans() -> None:
    """Cut between two scans it is a JPEG that the standard allows: shown, and said so."""
    for image in (PICTURE, PICTURE.convert("L")):
        head, scans = parts(encode(image, progressive=True))
        assert outcome(head + b"".join(scans) + END) == ()
        for count in range(1, len(scans)):
            assert outcome(head + b"".join(scans[:count]) + END) == ("scans_missing",)
        assert outcome(head + END) == "E1203"
        cut = scans[-1][: len(scans[-1]) * 2 // 3].rstrip(b"\xff")
        assert outcome(head + b"".join(scans[:-1]) + cut + END) == "E1203"


def test_components_without_a_scan() -> None:
    """Luminance alone decodes to a grey picture."""
    head, scans = parts(encode(progressive=True))
    names = jpeg.read(encode(progressive=True)).coding.components  # type: ignore[union-attr]
    mine = [scan for scan in scans if b"\xff\xda\x00\x08\x01" in scan]  # of one component each
    first = scans[0]
    sos = first.index(b"\xff\xda")
    alone = first[: sos + 2] + b"\x00\x08\x01" + bytes([names[0]]) + first[sos + 6 : sos + 7]
    alone += first[sos + 11 :]  # its data no longer fit, but its header tells
    assert outcome(head + alone + b"".join(mine) + END) == "E1203"
    assert jpeg.uncoded(jpeg.read(head + alone + END)) == names[1:]


def test_what_the_markers_tell() -> None:
    found = jpeg.read(encode())
    assert str(found.coding) == "8-bit baseline JPEG"
    assert found.coding is not None
    assert found.coding.plain
    assert not jpeg.unfinished(found)
    assert jpeg.uncoded(found) == ()
    progressive = jpeg.read(encode(progressive=True))
    assert str(progressive.coding) == "8-bit progressive JPEG"
    assert progressive.scans[0][1:] == (0, 0, 1)  # DC, one bit left for later
    assert jpeg.read(b"\xff\xd8\xff").end is None
    assert jpeg.read(b"") == jpeg.Markers(None, (), None)
