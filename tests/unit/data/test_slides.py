"""Slides: what is one, resolution, tiles, tissue, and pictures equal to the scan they are of."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from medv_ray.data.slide_tissue import otsu, shares, tissue_of
from medv_ray.data.slides import Slide, grid, plan_parts
from medv_ray.errors import DataError, SettingsError
from medv_ray.settings import SlideSettings, build
from medv_ray.slide_parts import SlidePart, shows_label, slide_kind
from tests.slides import GLASS, LABEL, PINK, scan, write_slide

SHARED = Path(__file__).parents[4] / "shared" / "data" / "wsi"


def tiles(**values: object) -> SlideSettings:
    return build(SlideSettings, {"read": "tiles", "magnification": 10, "tile": 64, **values})


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "a.svs", scan())


def refused(path: Path, settings: SlideSettings) -> str:
    with pytest.raises(DataError) as caught:
        plan_parts(Slide(str(path), 255), settings)
    assert str(path.parent) not in str(caught.value)
    return caught.value.code


def test_what_is_a_slide(slide: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.tiff"
    pages = [Image.new("RGB", (60, 40), PINK), Image.new("RGB", (30, 20), PINK)]
    pages[0].save(plain, save_all=True, append_images=pages[1:])
    levels = write_slide(tmp_path / "levels.tiff", scan((256, 192)), said=None)
    one_level = write_slide(tmp_path / "one.tiff", scan((128, 96)), shrink=(1,), said=None)
    leica = tmp_path / "leica.scn"
    said = '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
    tifffile.imwrite(leica, np.zeros((32, 32), np.uint8), description=said, metadata=None)
    sop_class = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    dicom = bytes(128) + b"DICM" + bytes(30) + sop_class
    files = {
        "aperio": (slide.read_bytes(), "scan"),
        "levels": (levels.read_bytes(), "scan"),
        "levels, big-endian": (_big_endian(levels), "scan"),
        "one level": (one_level.read_bytes(), None),
        "pages": (plain.read_bytes(), None),
        "cut": (slide.read_bytes()[:100], None),
        "first page is no scan": (leica.read_bytes(), "beside"),
        "dicom": (dicom + b"\2\0", "dicom"),
        "other dicom": (dicom + b".1", None),
        "mirax.mrxs": (b"\xff\xd8\xff", "beside"),
        "empty": (b"", None),
    }
    found = {name: slide_kind(io.BytesIO(data), name) for name, (data, _) in files.items()}
    assert found == {name: kind for name, (_, kind) in files.items()}


def _big_endian(path: Path) -> bytes:
    with tifffile.TiffFile(path) as file:
        levels = [page.asarray() for page in file.pages]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=">", bigtiff=True) as file:
        for level in levels:
            file.write(level, tile=(64, 64), photometric="rgb", metadata=None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("element", "want"),
    [
        (b"CS\x1a\0ORIGINAL\\PRIMARY\\LABEL\\NONE", True),
        (b"CS\x1a\0DERIVED\\PRIMARY\\OVERVIEW\\NONE", True),
        (b"\x1a\0\0\0ORIGINAL\\PRIMARY\\LABEL\\NONE", True),
        (b"CS\x1a\0DERIVED\\PRIMARY\\VOLUME\\NONE", False),
    ],
)
def test_labels_of_dicom_slides(element: bytes, want: bool) -> None:
    head = bytes(128) + b"DICM1.2.840.10008.5.1.4.1.1.77.1.6" + bytes(400)
    assert shows_label(head + b"\x08\0\x08\0" + element) == want
    assert not shows_label(bytes(600) + b"\x08\0\x08\0" + element)


def test_tiles_are_the_scan_at_the_magnification_asked_for(slide: Path) -> None:
    """Scanned at 20x with levels of 20x, 10x and 5x: 10x is the second level, bit for bit."""
    opened = Slide(str(slide), 255)
    second = np.asarray(scan().resize((512, 384), Image.Resampling.BOX))
    found = plan_parts(opened, tiles())
    assert [(p.x, p.y) for p in found[:3]] == [(128, 0), (256, 0), (0, 128)]
    for part in found:
        x, y = part.x // 2, part.y // 2
        assert (np.asarray(opened.read(part)) == second[y : y + 64, x : x + 64]).all()
        assert (part.width, part.height, part.magnification, part.mpp) == (128, 128, 10, 1.0)
        assert (part.planned, part.with_tissue, part.grid) == (len(found), len(found), 48)
        assert SlidePart.parse(part.text) == part
    # all tissue lies in the left upper quarter: 4 x 3 tiles, of which the corners show little
    assert all(part.x < 512 and part.y < 384 for part in found)
    assert 6 <= len(found) <= 12
    assert len({part.suffix for part in found}) == len(found)


def test_what_was_scanned_may_begin_anywhere(slide: Path) -> None:
    """The grid, the tissue and the thumbnail go by the same corner."""
    opened = Slide(str(slide), 255)
    settings = tiles(tissue=0.01)
    found = {(p.x, p.y): p.tissue for p in plan_parts(opened, settings)}
    opened.bounds = (256, 128, 512, 384)
    some = {(p.x, p.y): p.tissue for p in plan_parts(opened, settings)}
    inside = {at: share for at, share in found.items() if at[0] >= 256 and at[1] >= 128}
    assert some == pytest.approx(inside, abs=0.05)
    assert len(inside) > 2
    want = scan().crop((256, 128, 768, 512)).resize((128, 96), Image.Resampling.BOX)
    got = np.asarray(opened.read(opened.whole(128)), np.int16)
    assert np.abs(got - np.asarray(want, np.int16)).mean() < 3


@pytest.mark.parametrize(
    ("said", "bounds"), [(["8", "9", "100", "64"], (8, 9, 100, 64)), (["8", "9", "100", "0"], None)]
)
def test_bounds_without_a_size_are_none(
    slide: Path, said: list[str], bounds: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing was scanned, and its pictures have no size."""
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    known = dict(zip(names, said, strict=True))
    monkeypatch.setattr("openslide.OpenSlide.properties", property(lambda file: known))
    opened = Slide(str(slide), 255)
    assert opened.bounds == (bounds or (0, 0, *opened.size))


def test_between_levels_the_finer_one_is_resized(slide: Path) -> None:
    opened = Slide(str(slide), 255)
    part = plan_parts(opened, tiles(magnification=None, mpp=1.5))[0]
    assert (part.width, part.out_width) == (192, 64)
    second = scan().resize((512, 384), Image.Resampling.BOX)
    want = second.crop((0, 0, 96, 96)).resize((64, 64), Image.Resampling.BICUBIC)
    assert (np.asarray(opened.read(part)) == np.asarray(want)).all()


def test_large_pictures_are_read_in_blocks(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Slide(str(slide), 255)
    whole = opened.whole(700)
    want = np.asarray(opened.read(whole), np.int16)
    monkeypatch.setattr("medv_ray.data.slides._BLOCK", 100)
    assert np.abs(np.asarray(opened.read(whole), np.int16) - want).max() <= 24  # at block borders
    assert np.abs(np.asarray(opened.read(whole), np.int16) - want).mean() < 0.2


def test_tiles_beyond_the_edge_show_the_background(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", scan((96, 96), PINK), shrink=(1,))
    opened = Slide(str(path), 200)
    last = plan_parts(opened, tiles(magnification=20, tissue=0.2))[-1]
    picture = opened.read(last)
    assert (last.x, last.y, last.tissue) == (64, 64, 0.25)
    assert picture.getpixel((31, 31)) == PINK
    assert picture.getpixel((33, 33)) == (200, 200, 200)


@pytest.mark.parametrize(
    ("said", "settings", "code"),
    [
        (None, tiles(), "E1214"),
        ("|AppMag = 20|MPP = 0.5", tiles(magnification=40), "E1214"),
        ("|MPP = 0.5", tiles(magnification=40), "E1214"),
        ("|MPP = nonsense", tiles(), "E1214"),
        ("|MPP = 352.8", tiles(), "E1214"),
        ("|AppMag = 20", tiles(tissue=0.99), "E1215"),
    ],
)
def test_slides_that_have_no_such_tiles(
    tmp_path: Path, said: str | None, settings: SlideSettings, code: str
) -> None:
    path = write_slide(tmp_path / "a.svs", scan((256, 192)), said=said)
    assert refused(path, settings) == code


@pytest.mark.parametrize(
    ("said", "assume", "downsample"),
    [(None, 0.5, 2), ("|MPP = 0.25", None, 4), ("|AppMag = 40", 9.0, 4), ("|MPP = 0.9999", 9, 1)],
)
def test_one_of_magnification_and_mpp_is_enough(
    tmp_path: Path, said: str | None, assume: float | None, downsample: int
) -> None:
    path = write_slide(tmp_path / "a.svs", scan(), said=said)
    [part] = plan_parts(Slide(str(path), 255), tiles(assume_mpp=assume, most_tiles=1))
    assert part.width == 64 * downsample


def test_most_tiles_are_taken_evenly(slide: Path) -> None:
    opened = Slide(str(slide), 255)
    every = plan_parts(opened, tiles(tissue=0))
    some = plan_parts(opened, tiles(tissue=0, most_tiles=6))
    assert [(p.x, p.y) for p in some] == [(p.x, p.y) for p in every[4::8]]
    assert (some[0].planned, some[0].with_tissue, some[0].grid) == (6, 48, 48)
    assert {part.tissue for part in every} == {-1.0}


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "corners"),
    [
        ((100, 50), 50, 0, [0, 50]),
        ((101, 50), 50, 0, [0, 50, 100]),
        ((100, 50), 50, 10, [0, 40, 80]),
        ((90, 50), 50, 10, [0, 40]),
        ((20, 50), 50, 0, [0]),
    ],
)
def test_grid(size: tuple[int, int], tile: int, overlap: int, corners: list[int]) -> None:
    x, y = grid((7, 3, *size), tiles(tile=tile, overlap=overlap), 1.0)
    assert x.tolist() == [7 + corner for corner in corners]
    assert set(y.tolist()) == {3}


def test_associated_images_only_where_they_are_named(slide: Path) -> None:
    opened = Slide(str(slide), 255)
    touched = []
    images = opened._file.associated_images

    class Watched(dict):
        def __getitem__(self, name: str) -> Image.Image:
            touched.append(name)
            return images[name]

    file = opened._file
    opened._file = type("File", (), {
        "associated_images": Watched.fromkeys(images), "read_region": file.read_region,
    })()  # fmt: skip
    for settings in (SlideSettings(), tiles()):
        for part in plan_parts(opened, settings):
            opened.read(part)
    assert not touched
    parts = plan_parts(opened, SlideSettings(associated=("label",)))
    assert [part.suffix for part in parts] == ["", "#label"]
    assert opened.read(parts[1]).getpixel((5, 5)) == LABEL
    assert set(touched) == {"label"}


def painted(ground: tuple[int, int, int], *boxes: tuple[tuple[int, ...], tuple[int, ...]]):
    picture = Image.new("RGB", (200, 100), ground)
    for box, colour in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill=colour)
    return picture


HALF, STRIPE = (0, 0, 99, 99), (150, 0, 169, 99)


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        (painted((255, 255, 255)), 0),
        (painted(GLASS), 0),
        (painted((128, 128, 128)), 0),  # out of focus, or no stain
        (painted((0, 0, 0), (HALF, (255, 255, 255))), 0),
        (painted(PINK), 1),  # tissue from edge to edge
        (painted(GLASS, (HALF, PINK)), 0.5),
        (painted(GLASS, (HALF, (112, 66, 172))), 0.5),  # haematoxylin
        (painted(GLASS, (HALF, (142, 98, 58))), 0.5),  # DAB
        (painted(GLASS, (HALF, (150, 190, 165))), 0.5),  # light green
        (painted(GLASS, (HALF, (235, 215, 228))), 0.5),  # pale
        (painted(GLASS, (HALF, PINK), (STRIPE, (20, 40, 190))), 0.5),  # pens
        (painted(GLASS, (HALF, PINK), (STRIPE, (20, 140, 70))), 0.5),
        (painted(GLASS, (HALF, PINK), (STRIPE, (20, 20, 24))), 0.5),
        (painted(GLASS, ((50, 50, 51, 50), PINK)), 0),  # dust
        (painted(GLASS, (HALF, (255, 0, 0))), 0.5),  # all that is coloured is no pen
    ],
)
def test_tissue(picture: Image.Image, want: float) -> None:
    assert tissue_of(picture).mean() == pytest.approx(want, abs=0.02)


def test_otsu_and_shares() -> None:
    assert otsu(np.array([3, 3, 3, 40, 41], np.int16)) == 3
    assert otsu(np.full(5, 7, np.int16)) == 0
    mask = np.zeros((4, 4), np.bool_)
    mask[:2, :2] = True
    boxes = np.array([[0, 0, 2, 2], [0, 0, 4, 4], [1, 1, 3, 3], [2, 2, 6, 6], [0, 0, 0.2, 0.2]])
    assert shares(mask, boxes).tolist() == [1, 0.25, 0.25, 0, 1]


@pytest.mark.parametrize(
    "values",
    [
        {"read": "tiles"},
        {"read": "tiles", "magnification": 10, "mpp": 1},
        {"tile": 64, "overlap": 64},
        {"associated": ["name"]},
    ],
)
def test_settings_that_mean_nothing(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        build(SlideSettings, values)


@pytest.mark.skipif(not SHARED.exists(), reason="real slides lie beside the checkout")
def test_real_slides() -> None:
    want = np.asarray(Image.open(SHARED / "boxes.png").convert("RGB"))
    boxes = Slide(str(SHARED / "boxes.tiff"), 255)
    assert (np.asarray(boxes.read(boxes.whole(1536))) == want).all()
    assert refused(SHARED / "boxes.tiff", tiles()) == "E1214"  # 353 micrometres: a screen's
    settings = tiles(magnification=20, assume_mpp=0.5)
    for part in plan_parts(boxes, settings):
        x, y = part.x, part.y
        piece = want[y : y + 64, x : x + 64]
        assert (np.asarray(boxes.read(part))[: len(piece), : len(piece[0])] == piece).all()
    pictures = [Slide(str(SHARED / name), 255) for name in ("small.svs", "boxes_0.dcm")]
    first, second = (np.asarray(one.read(one.whole(64)), np.int16) for one in pictures)
    assert np.abs(first - second).max() <= 8  # the same scan, once more as a JPEG
    broken = Slide(str(SHARED / "unreadable.svs"), 255)
    with pytest.raises(DataError, match="E1203"):
        broken.read(broken.whole(64))
