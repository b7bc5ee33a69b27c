"""The paths of rows' pictures, as they are written."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.rows import image_paths
from medv_ray.errors import DataError

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


def write(make, cells, **how):
    table = pa.table({"image": cells, "question": ["a?"] * len(cells)})
    pq.write_table(table, make.archive / "a.parquet", **how)


NAMED = [{"bytes": b"x", "path": "0.png"}, {"bytes": None, "path": "1.png"}]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["1.png"] * 2).dictionary_encode(),
        pa.array([["1.png"]] * 2, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array([None] * 9000 + ["1.png"]),
        pa.array([{"bytes": None, "path": "1.png"}] * 2, IMAGE),
        pa.array(NAMED, IMAGE),
        pa.array([None, *NAMED], IMAGE),
        pa.array([NAMED, []], pa.list_(IMAGE)),
        pa.array([NAMED[:1], None, NAMED[1:]], pa.large_list(IMAGE)),
    ],
)
@pytest.mark.parametrize("how", [{}, {"row_group_size": 1}, {"write_statistics": False}])
def test_files_that_rows_name_are_looked_up(make, cells, how):
    if len(cells) > 9 and how:
        how = {"row_group_size": 4096}
    make.text("1.png", b"ONE")
    write(make, cells, **how)
    first = make.plan()
    assert (first.images.distinct, first.images.missing) == (1, 0)
    make.text("1.png", b"another")
    assert make.plan().images.digest != first.images.digest
    (make.archive / "1.png").unlink()
    assert make.plan().images.examples == ("1.png",)


def test_bytes_beside_paths_are_not_read_for_their_names(make, monkeypatch):
    write(make, pa.array(NAMED[:1] * 10, IMAGE))
    read: list[tuple] = []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: read.append(a) or whole(*a, **k)
    )
    assert make.plan().images.distinct == 0
    paths = (4096, [0], ["image.path"])  # looked through for the file, then for the row group
    assert [a[1:] for a in read] == [paths, paths, (1, [0], ["image.bytes"])]
    assert len(make.plan(limit=1).chunks) == 1


@pytest.mark.parametrize("fate", ["one", "all", "folder"])
def test_images_that_go_together_are_no_fault_of_their_rows(make, tmp_path, fate):
    make.text("a.csv", "image,question\n0.png,a?\n1.png,b?\n2.png,c?\n")
    images = tmp_path / "images"
    images.mkdir()
    for name in ("0.png", "1.png"):
        (images / name).write_bytes(b"png")
    planned = make.plan(images=str(images))
    assert [row.error is None for row in make.rows(planned)] == [True, True, False]
    for name in ("0.png", "1.png") if fate != "one" else ("0.png",):
        (images / name).unlink()
    if fate == "folder":
        images.rmdir()
    if fate == "one":
        assert [row.error and row.error.code for row in make.rows(planned)] == [
            *("E1111", None, "E1111")
        ]
        return
    with pytest.raises(DataError) as caught:
        make.rows(planned)
    assert caught.value.code == "E1107"
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_that_never_had_the_images_is_a_fault_of_the_rows(make, tmp_path):
    make.text("a.csv", "image,question\n0.png,a?\n")
    planned = make.plan(images=str(tmp_path / "none"))
    assert [row.error.code for row in make.rows(planned)] == ["E1111"]


def test_names_behind_the_limit_are_nobodys(make):
    write(make, pa.array(NAMED * 2, IMAGE))
    assert make.plan(limit=1).images.missing == 0
    assert make.plan(limit=2).images.missing == 1


def test_a_damaged_page_of_pictures_leaves_the_file_readable(make):
    held = [{"bytes": bytes([n]) * 999, "path": "no.png"} for n in range(9)]
    write(make, pa.array(held, IMAGE), row_group_size=3, write_page_checksum=True,
          compression="none", use_dictionary=False)  # fmt: skip
    path = make.archive / "a.parquet"
    data = path.read_bytes()
    path.write_bytes(data.replace(bytes([4]) * 999, bytes([44]) * 999, 1))
    planned = make.plan()
    assert planned.images.missing == 0
    rows = make.rows(planned)
    assert [row.error.code if row.error else None for row in rows] == (
        [None] * 3 + ["E1105"] * 3 + [None] * 3
    )
