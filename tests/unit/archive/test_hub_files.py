"""An archive on the hub: pinned to a commit, listed in pages, read by ranges, tried again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medv_ray.archive.hub_files import pinned
from medv_ray.archive.plan import plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import resolve
from medv_ray.errors import DataError, SettingsError
from tests.hub_server import Hub, Reply, hub

pytestmark = pytest.mark.integration

NAME = "datasets/org/scans"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(monkeypatch, str(tmp_path / "cache")) as held:
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()
        yield held


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def table(rows: int, start: int = 0) -> bytes:
    numbers = range(start, start + rows)
    made = pa.table({
        "id": [f"r{n}" for n in numbers],
        "question": ["what?"] * rows,
        "image": [picture(n) for n in numbers],
    })  # fmt: skip
    out = io.BytesIO()
    pq.write_table(made, out)
    return out.getvalue()


def ids(uri: str, **more: str) -> list[str]:
    archive = open_archive(ArchiveSettings(archive=uri, **more))
    made = plan(archive, "x")
    return [row.id for chunk in made.chunks for row in read_rows(archive, chunk)]


def test_rows_of_a_dataset(served: Hub) -> None:
    files = {"data/a.parquet": table(3), "data/b.parquet": table(2, 3), "README.md": b"#"}
    commit = served.put(NAME, files)
    assert ids(f"hf://{NAME}/data") == ["r0", "r1", "r2", "r3", "r4"]
    assert ids(f"hf://{NAME}@main/data/b*.parquet") == ["r3", "r4"]
    assert ids(f"hf://{NAME}@{commit}/data/a.parquet") == ["r0", "r1", "r2"]
    assert open_archive(ArchiveSettings(archive=f"hf://{NAME}")).uri == f"hf://{NAME}@{commit}"


def test_a_folder_of_images_in_pages(served: Hub) -> None:
    served.page = 3
    served.put(NAME, {f"png/{n:02}.png": picture(n) for n in range(10)})
    found = ids(f"hf://{NAME}/png", question="what?")
    assert len(found) == 10
    assert len([one for one in served.asked if "/tree/" in one]) > 3


def test_a_commit_in_between_is_not_seen(served: Hub) -> None:
    served.put(NAME, {"a.parquet": table(3)})
    archive = open_archive(ArchiveSettings(archive=f"hf://{NAME}"))
    made = plan(archive, "x")
    served.put(NAME, {"a.parquet": table(3, 100)})
    rows = [row.id for chunk in made.chunks for row in read_rows(archive, chunk)]
    assert rows == ["r0", "r1", "r2"]


def test_a_resume_sees_what_changed_and_nothing_else(served: Hub) -> None:
    def identity() -> object:
        return plan(open_archive(ArchiveSettings(archive=f"hf://{NAME}/d")), "x").identity()

    served.put(NAME, {"d/a.parquet": table(3), "README.md": b"1"})
    before = identity()
    served.put(NAME, {"d/a.parquet": table(3), "README.md": b"2"})
    assert identity() == before
    served.put(NAME, {"d/a.parquet": table(3, 7), "README.md": b"2"})
    assert identity() != before


def test_half_an_answer_is_asked_for_again_and_never_taken_for_the_end(served: Hub) -> None:
    served.put(NAME, {"a.parquet": table(40)})
    data = table(40)
    cuts = []

    def cut(method: str, path: str) -> Reply | None:
        if method == "GET" and "/resolve/" in path and len(cuts) < 2:
            cuts.append(path)
            whole = {"Content-Length": str(len(data)), "ETag": '"x"'}
            return (
                Reply(206, data, whole, cut=len(data) // 2) if len(cuts) == 1 else Reply(206, b"")
            )
        return None

    served.faults.append(cut)
    assert len(ids(f"hf://{NAME}")) == 40
    assert len(cuts) == 2
    served.faults[:] = [lambda m, p: Reply(206, b"x") if m == "GET" and "/resolve/" in p else None]
    filesystem, path = resolve(pinned(f"hf://{NAME}") + "/a.parquet")
    with filesystem.open_input_file(path) as file, pytest.raises(OSError, match="less than"):
        file.read(100)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("hf://datasets/org/nothing/a", "E1415"),
        (f"hf://{NAME}@v9/a", "E1415"),
        (f"hf://{NAME}/no/such/folder", "E1110"),
        ("hf://org/model/a", "E1001"),
        ("hf://datasets/org", "E1001"),
        ("hf://spaces/org/name/a", "E1001"),
    ],
)
def test_what_is_not_there(served: Hub, uri: str, code: str) -> None:
    served.put(NAME, {"a.parquet": table(1)})
    with pytest.raises((DataError, SettingsError)) as raised:
        open_archive(ArchiveSettings(archive=uri))
    assert raised.value.code == code
    assert "127.0.0.1" not in str(raised.value)


def test_a_hub_that_stops_answering(served: Hub) -> None:
    served.put(NAME, {"a.parquet": table(1)})
    served.faults.append(lambda method, path: Reply(503))
    with pytest.raises(DataError, match="E1417: org/scans@main: the hub answers 503"):
        open_archive(ArchiveSettings(archive=f"hf://{NAME}"))
