"""An object store that fails: whatever raises, a user reads a code and no address or path."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from medv_ray.archive import cursor, listing, sources, store
from medv_ray.archive.plan import plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.errors import DataError, MedvError, RunError

SAID = "AWS Error NETWORK_CONNECTION: Failed to connect to 10.1.2.3:9000 for patient/17.png"


class Troubled:
    """A local filesystem that answers `left` calls, reads of opened files included, and then none,
    or all but one."""

    def __init__(self) -> None:
        self.real = fs.LocalFileSystem()
        self.left = 10**9
        self.once = False

    def count(self) -> None:
        trouble = not self.left
        self.left -= not trouble or self.once
        if trouble:
            raise OSError(SAID)

    def __getattr__(self, name):
        def call(*given, **more):
            self.count()
            return getattr(self.real, name)(*given, **more)

        return call

    def open_input_file(self, path):
        self.count()
        return pa.PythonFile(TroubledFile(io.BytesIO(Path(path).read_bytes()), self), "r")

    open_input_stream = open_input_file


class TroubledFile:
    def __init__(self, file, filesystem: Troubled) -> None:
        self.file, self.filesystem = file, filesystem

    def __getattr__(self, name):
        if name in ("read", "readinto"):
            self.filesystem.count()
        return getattr(self.file, name)


@pytest.fixture
def troubled(tmp_path, monkeypatch):
    """s3://bucket is `tmp_path`."""
    filesystem = Troubled()

    def resolve(uri):
        return filesystem, uri.replace("s3://bucket", str(tmp_path)).rstrip("/")

    for module in (store, listing, sources):
        monkeypatch.setattr(module, "resolve", resolve)
    listing.place_of.cache_clear()
    yield filesystem
    listing.place_of.cache_clear()


def clean(said: str) -> bool:
    return not any(word in said for word in ("AWS", "10.1.2.3", "patient", "/tmp", "bucket"))


def fill(make, kind: str) -> dict:
    images = ["pics/0.png"] * 5 + ["pics/1.png"] * 5
    for image in set(images):
        make.text(image, b"pixels")
    if kind == "parquet":
        make.parquet(rows=10, id=[str(row) for row in range(10)])
    elif kind == "paths":
        make.parquet(rows=10, image=images)
    elif kind == "table":
        make.text("q.csv", "image,question\n" + "".join(f"{image},what?\n" for image in images))
        return {"questions": "s3://bucket/archive/q.csv", "images": "s3://bucket/archive"}
    elif kind == "tar":
        members = [(f"{n}.{end}", b"text", {}) for n in range(10) for end in ("txt", "jpg")]
        make.tar(members)
    return {"question": "what?"} if kind == "images" else {}


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "paths", "table", "tar", "images"])
def test_trouble_at_any_call_is_told_cleanly_and_quarantines_nothing(make, troubled, kind, once):
    settings = ArchiveSettings(archive="s3://bucket/archive", chunk_rows=4, **fill(make, kind))
    troubled.once = once
    planning, reading = [], []
    for calls in range(10_000):
        cursor._open.cursor = None
        cursor._open.damaged.clear()
        troubled.left = calls
        met = planning
        try:
            planned = plan(open_archive(settings), "digest")
            met = reading
            rows = [row for chunk in planned.chunks for row in read_rows(planned.archive, chunk)]
        except MedvError as error:
            met.append(error)
            continue
        assert all(clean(file.detail) for file in planned.unreadable)
        assert [row.error for row in rows if row.error] == []
        if troubled.left >= 0:
            break
    assert all(clean(str(error)) for error in planning + reading)
    assert "E1110" in {error.code for error in planning}
    assert {error.code for error in reading} == {"E1107"}


@pytest.mark.parametrize("name", ["/pics/0.png", "pics//0.png", "pics/\0", "s3://x/y.png"])
@pytest.mark.integration
def test_one_odd_path_on_an_object_store_costs_one_row(make, s3_server, name):
    make.parquet(rows=3, image=["pics/0.png", name, "pics/0.png"])
    filesystem, _ = store.resolve("s3://bucket/odd")
    fs.copy_files(
        str(make.archive), "bucket/odd", destination_filesystem=filesystem,
        source_filesystem=fs.LocalFileSystem(),
    )  # fmt: skip
    with filesystem.open_output_stream("bucket/odd/pics/0.png") as file:
        file.write(b"pixels")
    planned = make.plan(archive="s3://bucket/odd")
    rows = make.rows(planned)
    found = [row.error.code if row.error else None for row in rows]
    assert found == [None, None if name.endswith("/0.png") else "E1108", None]


@pytest.mark.parametrize("method", ["read", "listing", "top", "exists", "delete", "write"])
def test_a_run_folder_that_does_not_answer(troubled, method):
    folder = Store("s3://bucket/run")
    troubled.left = 0
    arguments = {"top": (), "write": ("run.json", b"")}.get(method, ("run.json",))
    with pytest.raises(RunError) as caught:
        getattr(folder, method)(*arguments)
    assert caught.value.code == "E1511"
    assert clean(str(caught.value)), str(caught.value)


def test_a_listing_error_is_no_empty_archive(troubled):
    troubled.left = 0
    with pytest.raises(DataError, match="cannot be listed"):
        open_archive(ArchiveSettings(archive="s3://bucket/archive"))
