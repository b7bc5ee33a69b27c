"""Slides behind the child process: pictures, refusals in our words, and what splits them."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from medv_ray.data import slide_child
from medv_ray.data.frames import count_frames, splitter
from medv_ray.data.images import decode
from medv_ray.data.slide_child import SlideReader, splitter_of
from medv_ray.errors import DataError, SettingsError
from medv_ray.file_parts import FilePart
from medv_ray.settings import ImageSettings, SlideSettings
from tests.slides import GLASS, LABEL, NoProcess, scan, write_slide

SHARED = Path(__file__).parents[4] / "shared" / "data" / "wsi"
IMAGE = ImageSettings()
TILES = SlideSettings(read="tiles", magnification=10, tile=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide, a slide cut in the middle, one without tissue, one without resolution, a picture."""
    root = tmp_path_factory.mktemp("slides")
    whole = write_slide(root / "a.svs", scan((512, 384)))
    data = bytearray(whole.read_bytes())
    with Image.open(whole) as file:
        at = file.tag_v2[324][9]
    data[at : at + 8] = bytes(8)  # a tile of the finest level
    (root / "damaged.svs").write_bytes(data)
    write_slide(root / "glass.svs", Image.new("RGB", (256, 192), GLASS))
    write_slide(root / "nothing_said.tiff", scan((256, 192)), said=None)
    scan((64, 48)).save(root / "picture.png")
    return root


@pytest.fixture(scope="module")
def reader() -> SlideReader:
    return NoProcess(IMAGE, TILES)


def test_tiles_come_as_pictures(folder: Path, reader: SlideReader) -> None:
    path = str(folder / "a.svs")
    parts = reader.parts(path)
    assert [part.suffix for part in parts[:2]] == ["#tile=0,0", "#tile=128,0"]
    second = np.asarray(scan((512, 384)).resize((256, 192), Image.Resampling.BOX))
    for part in parts:
        shown, words = decode(reader.picture(path, part), IMAGE)
        x, y = part.x // 2, part.y // 2
        assert (np.asarray(shown) == second[y : y + 64, x : x + 64]).all()
        assert words == []


def test_a_thumbnail_is_the_whole_slide(folder: Path) -> None:
    opened = NoProcess(IMAGE, SlideSettings(thumbnail_side=128))
    data, word = opened.thumbnail(str(folder / "a.svs"))
    want = scan((512, 384)).resize((128, 96), Image.Resampling.BOX)
    assert word == "slide_thumbnail:512x384"
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(want)).all()


def test_what_cannot_be_read_is_refused_in_our_words(folder: Path, reader: SlideReader) -> None:
    codes = {}
    for name in ("glass.svs", "nothing_said.tiff", "picture.png", "missing.svs"):
        with pytest.raises(DataError) as caught:
            reader.parts(str(folder / name))
        codes[name] = caught.value.code
        assert str(folder) not in str(caught.value)
    assert codes == {
        "glass.svs": "E1215",
        "nothing_said.tiff": "E1214",
        "picture.png": "E1211",
        "missing.svs": "E1211",
    }
    damaged = str(folder / "damaged.svs")
    parts = reader.parts(damaged)
    whole = parts[0]._replace(name="whole", width=512, height=384, out_width=512, out_height=384)
    for _ in range(2):  # it opens, and fails again
        with pytest.raises(DataError, match="E1203"):
            reader.picture(damaged, whole)
    assert reader.parts(str(folder / "a.svs"))
    with pytest.raises(DataError, match="E1215"):  # a slide without tiles is no thumbnail
        reader.thumbnail(str(folder / "glass.svs"))
    too_large = parts[0]._replace(out_width=20000, out_height=20000)
    with pytest.raises(DataError, match="E1204"):
        reader.picture(damaged, too_large)


def test_the_child_answers_as_this_process_does(folder: Path, reader: SlideReader) -> None:
    path = str(folder / "a.svs")
    [part, *_] = reader.parts(path)
    with pickle.loads(pickle.dumps(SlideReader(IMAGE, TILES))) as child:
        assert child.parts(path) == reader.parts(path)
        assert child.picture(path, part) == reader.picture(path, part)
        with pytest.raises(DataError, match="E1215"):
            child.parts(str(folder / "glass.svs"))
        assert child.picture(path, part) == reader.picture(path, part)
    with SlideReader(IMAGE, TILES.model_copy(update={"seconds": 0.0})) as slow:
        slow._check_alive = lambda: None  # type: ignore[method-assign]
        with pytest.raises(DataError, match="E1209.*a slide"):
            slow.parts(path)


@pytest.mark.skipif(not SHARED.exists(), reason="real slides lie beside the checkout")
def test_a_dicom_slide_is_read_by_its_first_file() -> None:
    opened = NoProcess(IMAGE, SlideSettings())
    data, word = opened.thumbnail(str(SHARED / "boxes_0.dcm"))
    assert (word, Image.open(io.BytesIO(data)).size) == ("slide_thumbnail:16x16", (16, 16))
    with pytest.raises(DataError, match="E1216"):
        opened.thumbnail(str(SHARED / "boxes_1.dcm"))  # a thumbnail of the same slide


def test_splitting(folder: Path, reader: SlideReader, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = fs.LocalFileSystem()
    every = splitter("all")
    assert every is not None
    counted = {}
    for name, split in {
        "tiles": splitter_of(reader, TILES, None, True),
        "frames": splitter_of(None, SlideSettings(), every, True),
    }.items():
        assert split is not None
        found = [split.parts(disk, str(folder / one)) for one in ("a.svs", "glass.svs")]
        found.append(split.parts(disk, str(folder / "picture.png")))
        counted[name] = [len(parts) for parts in found]
    # no frame of a slide: they may be its label; a slide without tiles is a row that says why
    assert counted == {"tiles": [2, 0, 0], "frames": [0, 0, 1]}
    assert splitter_of(reader, SlideSettings(), None, True) is None
    with pytest.raises(SettingsError, match="E1003.*wsi"):
        splitter_of(None, TILES, None, True)
    with pytest.raises(SettingsError, match="E1001.*disk"):
        splitter_of(reader, TILES, None, False)
    keys = {splitter_of(reader, one, every, True).key for one in (
        TILES, SlideSettings(**{**TILES.model_dump(), "tile": 128}), SlideSettings(),
        SlideSettings(**{**TILES.model_dump(), "seconds": 9}),
    )}  # fmt: skip
    assert len(keys) == 3
    monkeypatch.setattr(slide_child, "find_spec", lambda name: None)
    assert slide_child.reader_of(IMAGE, TILES) is None


def test_pages_of_a_slide_are_not_its_frames(tmp_path: Path) -> None:
    """Without OpenSlide the scan itself is shown, whatever the policy: the others may be labels."""
    path = write_slide(tmp_path / "a.svs", scan((128, 96)), shrink=(1,))
    for policy in ("first", "middle", "all"):
        shown, words = decode(path.read_bytes(), ImageSettings(frames=policy))
        assert (np.asarray(shown) == np.asarray(scan((128, 96)))).all()
        assert LABEL not in {colour for _, colour in shown.getcolors(2**16)}
    pages = count_frames(io.BytesIO(path.read_bytes()), 0)
    for number in range(2, pages + 1):
        with pytest.raises(DataError, match="E1216"):
            decode(path.read_bytes(), ImageSettings(frames="all"), FilePart(number, pages))
    assert pages > 1
