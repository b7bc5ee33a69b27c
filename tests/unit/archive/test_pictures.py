"""The paths of rows' pictures, as they are written."""

import pyarrow as pa
import pytest

from medv_ray.archive.rows import image_paths

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def paths(make, **settings):
    return [image_paths(row) for row in make.rows(make.plan(**settings))]


def test_each_picture_has_its_own_path(make):
    held = [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": "b.png"}]
    make.parquet(rows=1, image=pa.array([held], pa.list_(IMAGE)))
    assert paths(make) == [[None, "b.png"]]


@pytest.mark.parametrize("kind", ["struct", "list"])
@pytest.mark.parametrize("why", ["question", "size", "cell"])
def test_a_refused_row_keeps_its_pictures_path(make, kind, why):
    cells = [{"bytes": b"x" * 200, "path": "r.png"}]
    if kind == "list":
        cells = [[*cells, None]] if why == "cell" else [cells]
    elif why == "cell":
        cells = [{"bytes": b"data:x,", "path": "r.png"}]
    image = pa.array(cells, pa.list_(IMAGE) if kind == "list" else IMAGE)
    make.parquet(rows=1, image=image, question=["" if why == "question" else "a?"])
    (row,) = make.rows(make.plan(max_image_bytes=100 if why == "size" else 1000))
    codes = {"question": "E1301", "size": "E1112", "cell": "E1111" if kind == "list" else "E1108"}
    assert getattr(row.error, "code", None) == codes[why]
    names = ["r.png", None] if kind == "list" and why == "cell" else ["r.png"]
    assert image_paths(row) == names


def test_absolute_paths_below_the_folder_are_written_relative_to_it(make, tmp_path):
    make.text("pics/1.png", b"ONE")
    (tmp_path / "link").symlink_to(make.archive)
    names = [f"{make.archive}/pics/1.png", f"{tmp_path}/link/pics/1.png", f"{make.archive}/no.png"]
    make.parquet(rows=3, image=names, question=["a?", "a?", "a?"])
    assert paths(make) == [["pics/1.png"], ["pics/1.png"], ["no.png"]]
    make.parquet(rows=3, image=names, question=["", "", ""])
    assert paths(make) == [["pics/1.png"], ["pics/1.png"], ["no.png"]]
    held = [{"bytes": b"x", "path": names[0]}]
    make.parquet(rows=1, image=pa.array(held, IMAGE), question=["a?"])
    planned = make.plan()
    assert [image_paths(row) for row in make.rows(planned)] == [["pics/1.png"]]
