"""One file, several rows: planned, read, resumed, grown, exported."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medv_ray.archive import images
from medv_ray.archive.exports import write_csv
from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.results import Choice, rows_of
from medv_ray.archive.rows import read_run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.survey import survey
from medv_ray.data.frames import FrameSplitter, splitter
from medv_ray.errors import SHOW_NAMES, RunError, SettingsError
from tests.frame_files import dicom, greys, page, tiff

FIRST = ["c.png", "scan.tif", "study:a.dcm"]
ALL = [
    "c.png",
    *(f"scan.tif#frame={frame}" for frame in (1, 2, 3)),
    *(f"study:a.dcm#frame={frame}" for frame in (1, 2, 3, 4)),
]


class Folder:
    """A folder of images, planned and scored as a job does it."""

    def __init__(self, make) -> None:
        self.make = make
        self.out = make.root / "out"
        make.text("c.png", greys("PNG", [7]))
        make.text("scan.tif", tiff([page(grey) for grey in (10, 20, 30)]))
        make.text("study/a.dcm", dicom([10, 20, 30, 40]))

    def plan(self, policy: str = "all", split: FrameSplitter | None = None, **settings):
        settings = {"archive": str(self.make.archive), "chunk_rows": 3, **settings}
        prior = Prior.read(str(self.out))
        archive = open_archive(ArchiveSettings(question="What?", **settings), prior.images)
        return plan(archive, policy, prior, split or splitter(policy))

    def job(self, planned, **options):
        return self.make.job(planned, self.out, **options)

    def column(self, name: str) -> list:
        tables = [table.sort_by("row") for table in read_run(str(self.out))]
        rows = [row for table in tables for row in table.to_pylist()]
        return [row[name] for row in sorted(rows, key=lambda row: row["row"])]


class Closed(FrameSplitter):
    """Opens no file."""

    def parts(self, filesystem, path):
        raise AssertionError(path)


@pytest.fixture
def folder(make) -> Folder:
    return Folder(make)


@pytest.mark.parametrize(
    ("policy", "ids"),
    [
        ("first", FIRST),
        ("middle", FIRST),
        ("all", ALL),
        ("every:2", [ALL[0], ALL[1], ALL[3], ALL[4], ALL[6]]),
        ("every:3", [ALL[0], ALL[1], ALL[4], ALL[7]]),
        ("every:50", [ALL[0], ALL[1], ALL[4]]),
    ],
)
def test_policies(folder: Folder, policy: str, ids: list[str]) -> None:
    planned = folder.plan(policy)
    rows = folder.make.rows(planned)
    assert planned.rows == len(ids)
    assert [row.id for row in rows] == ids
    assert {row.image_name for row in rows} == {"c.png", "scan.tif", "study/a.dcm"}
    of_several = [row for row in rows if "#" in row.id]
    assert [row.id for row in of_several] == [
        f"{row.image_name.replace('/', ':')}#frame={row.frame}" for row in of_several
    ]
    assert all(row.frame is None for row in rows if "#" not in row.id)
    counts = {"by": f"image.frames={policy}", "files": 3, "rows": len(ids)}
    counts["files_of_several"] = {"every:3": 1, "every:50": 0}.get(policy, 2)  # pages: 3, frames: 4
    assert planned.several_rows == (None if ids is FIRST else counts)


def test_ids_of_many_frames_are_in_order_as_text(make) -> None:
    make.text("a.dcm", dicom(range(12)))
    folder = Folder(make)
    ids = [row.id for row in folder.make.rows(folder.plan()) if row.image_name == "a.dcm"]
    assert ids == sorted(ids) == [f"a.dcm#frame={frame:02d}" for frame in range(1, 13)]


def test_a_file_is_read_once_a_chunk(folder: Folder, monkeypatch) -> None:
    read = []
    real = images.read_picture
    monkeypatch.setattr(
        images, "read_picture", lambda a, name: (read.append(name), real(a, name))[1]
    )
    planned = folder.plan(chunk_rows=4)
    rows = folder.make.rows(planned)
    first, second = rows[:4], rows[4:]
    assert read == ["c.png", "scan.tif", "study/a.dcm"]
    assert len({id(row.image) for row in second}) == 1
    assert [row.part.frame for row in second] == [1, 2, 3, 4]
    assert {row.file_sha256 for row in second} != {row.file_sha256 for row in first[1:]}


def test_killed_and_resumed(folder: Folder) -> None:
    folder.job(folder.plan(), stop_after=1)
    assert len(folder.column("id")) == 3
    again = folder.plan(split=Closed("all"))  # planned parts are taken over
    assert survey(again, str(folder.out)).done_rows == 3
    summary = folder.job(again)
    assert (summary.rows, summary.answered) == (8, 8)
    assert folder.column("id") == ALL
    assert folder.column("frame") == [None, 1, 2, 3, 1, 2, 3, 4]
    assert folder.column("answer") == [f"answer to {name}" for name in ALL]


def test_grown(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHOW_NAMES, "1")
    first = folder.plan()
    folder.job(first, stop_after=2)
    folder.make.text("b.tif", tiff([page(1), page(2)]))  # in the middle, by name
    grown = folder.plan()
    assert grown.growth.rows == 2
    assert [chunk.key for chunk in grown.chunks[:3]] == [chunk.key for chunk in first.chunks]
    with pytest.raises(RunError, match=r"b\.tif' added"):
        folder.job(grown)
    summary = folder.job(grown, allow_added=True)
    assert (summary.rows, summary.answered) == (10, 10)
    assert folder.column("id") == [*ALL, "b.tif#frame=1", "b.tif#frame=2"]
    assert folder.job(folder.plan(split=Closed("all"))).rows == 10


def test_a_file_with_another_page_is_a_change(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOW_NAMES, "1")
    folder.job(folder.plan())
    folder.make.text("scan.tif", tiff([page(grey) for grey in (10, 20, 30, 40)]))
    with pytest.raises(RunError, match=r"image 'scan\.tif' changed"):
        folder.job(folder.plan(), allow_added=True)


@pytest.mark.parametrize(
    ("before", "after"), [("first", "all"), ("all", "every:2"), ("all", "first")]
)
def test_another_policy(folder: Folder, before: str, after: str) -> None:
    identity = {"settings": {"image": {"frames": before}}}
    folder.job(folder.plan(before), identity=identity)
    other = {"settings": {"image": {"frames": after}}}
    planned = folder.plan(after)
    with pytest.raises(RunError, match="frames") as caught:
        folder.job(planned, identity=other)
    assert caught.value.code == "E1502"
    summary = folder.job(planned, identity=other, allow_mixed=True)
    assert summary.rows == summary.answered == planned.rows
    assert folder.column("id") == [row.id for row in folder.make.rows(planned)]


def test_quarantined_rows_and_exports(folder: Folder, tmp_path: Path) -> None:
    size = (folder.make.archive / "study" / "a.dcm").stat().st_size
    summary = folder.job(folder.plan(max_image_bytes=size - 1))
    assert (summary.answered, summary.quarantined) == (4, 4)
    found = pq.read_table(folder.out / "quarantine" / "quarantine.parquet").to_pylist()
    assert [(row["id"], row["frame"], row["code"]) for row in found] == [
        (name, frame, "E1112") for frame, name in enumerate(ALL[4:], 1)
    ]
    write_csv(str(tmp_path / "rows.csv"), rows_of(str(folder.out), Choice(sort="row")))
    with (tmp_path / "rows.csv").open() as file:
        assert [row["frame"] for row in csv.DictReader(file)] == ["", *"123", *"1234"]


def test_limit_counts_rows(folder: Folder) -> None:
    assert [row.id for row in folder.make.rows(folder.plan(limit=6))] == ALL[:6]


def test_a_header_that_cannot_be_read_is_one_row(folder: Folder) -> None:
    for name in ("scan.tif", "study/a.dcm"):
        path = folder.make.archive / name
        path.write_bytes(path.read_bytes()[:150])
    assert [row.id for row in folder.make.rows(folder.plan())] == FIRST


@pytest.mark.parametrize("kind", ["table", "tar", "parquet"])
def test_rows_of_tables_and_tars_stay_rows(make, kind: str) -> None:
    if kind == "table":
        make.text("q.csv", "image,question\na.tif,what?\n")
    elif kind == "parquet":
        make.parquet()
    else:
        make.tar([("a.jpg", b"x", {}), ("a.txt", b"what?", {})])
    archive = open_archive(ArchiveSettings(archive=str(make.archive)))
    with pytest.raises(SettingsError, match=r"image\.frames=all.*--question") as caught:
        plan(archive, "", splitter=splitter("all"))
    assert caught.value.code == "E1001"


def test_two_files_of_one_name(folder: Folder) -> None:
    """An id that a frame's looks like is told apart, as any that comes twice."""
    folder.make.text("scan.tif#frame=2", greys("PNG", [7]))
    rows = folder.make.rows(folder.plan())
    assert len({row.id for row in rows}) == len(rows) == 9
