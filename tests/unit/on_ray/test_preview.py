"""`--plan` on archives whose bad rows are known."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.sources import Archive
from medv_ray.errors import DataError
from medv_ray.on_ray import preview as previewing
from medv_ray.on_ray.preview import preview, without_root
from tests.integration import stub


def write(folder: Path, images: list[bytes]) -> None:
    ids = ["\0" if not number else f"r{number}" for number in range(len(images))]
    table = {"id": ids, "image": images, "question": ["what is this?"] * len(images)}
    pq.write_table(pa.table(table), folder / "in.parquet")


def told_of(folder: Path, **more: Any) -> dict[str, Any]:
    return preview(stub.settings(folder, **more), factory=stub.STUB)


def test_every_row_of_a_small_archive_is_counted(tmp_path: Path) -> None:
    """The broken pictures lie where no sample of 16 chunks looks."""
    images = [stub.png(number // 2) for number in range(400)]
    images[101:104] = [b"<html>"] * 3
    images[205:207] = [stub.png(7)[:60]] * 2  # the header is whole
    write(tmp_path, images)
    said = told_of(tmp_path, chunk_rows=4)
    assert said["every_row"] == {
        "rows": 400,
        "distinct_images": len(set(images)),
        "problems": {"E1202": 3},
        "warnings": {"id_unusable": 1},
    }
    assert said["counted"].startswith("every row")
    assert said["sample"]["rows"] == 64
    assert not (tmp_path / "run").exists()


def test_rows_of_one_broken_picture_are_problems_all(tmp_path: Path) -> None:
    write(tmp_path, [stub.png(1), *[stub.png(2)[:60]] * 5, stub.png(3)])
    sample = told_of(tmp_path)["sample"]
    assert sample["distinct_images"] == 3
    assert sample["problems"] == {"E1203": 5}


@pytest.mark.parametrize(
    ("limit", "value", "word"), [("EXACT_ROWS", 50, "more than 50"), ("EXACT_S", -1.0, "takes")]
)
def test_of_a_large_archive_a_sample_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, word: str
) -> None:
    write(tmp_path, [stub.png(number) for number in range(128)])
    monkeypatch.setattr(previewing, limit, value)
    said = told_of(tmp_path, chunk_rows=4)
    assert said["every_row"] is None
    assert said["counted"].startswith("a sample only")
    assert word in said["counted"]
    assert said["sample"]["rows"] == 64


def test_a_sample_reaches_the_end_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """31 chunks are fewer than two for each place of the sample."""
    write(tmp_path, [stub.png(number) for number in range(124)])
    seen = []
    real = previewing.read_rows

    def read(archive: Archive, chunk: Chunk) -> list[Row]:
        seen.append(chunk.rows[0])
        return real(archive, chunk)

    monkeypatch.setattr(previewing, "read_rows", read)
    monkeypatch.setattr(previewing, "EXACT_ROWS", 1)
    told_of(tmp_path, chunk_rows=4)
    assert max(seen) >= 112


def test_a_chunk_that_cannot_be_read_counts_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [stub.png(1)] * 8)

    def gone(*_: object) -> None:
        raise DataError("E1107", "in.parquet is not there any more.")

    monkeypatch.setattr(previewing, "read_rows", gone)
    said = told_of(tmp_path)
    assert said["every_row"]["problems"] == {"E1107": 8}
    assert "estimate" not in said


def test_without_a_gpu_here_a_gpu_job_gets_no_estimate(tmp_path: Path) -> None:
    write(tmp_path, [stub.png(1)] * 8)
    said = told_of(tmp_path, pool={"num_gpus": 1})
    assert "no GPU" in said["probe"]["skipped"]
    assert "estimate" not in said


def test_the_estimate_is_for_the_rows_that_are_left(tmp_path: Path) -> None:
    write(tmp_path, [stub.png(1)] * 8)
    said = told_of(tmp_path, pool={"max_actors": 3}, chunk_rows=2)
    assert (said["estimate"]["rows"], said["estimate"]["actors"]) == (8, 3)
    assert told_of(tmp_path, pool={"max_actors": 9})["estimate"]["actors"] == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a/1.png", "a/1.png"), ("/etc/hostname", "hostname"), ("C:\\data\\p7.png", "p7.png"),
     ("\\\\server\\p.png", "p.png"), ("pics\\p4.png", "pics\\p4.png")],
)  # fmt: skip
def test_an_absolute_path_of_a_row_is_not_printed(name: str, shown: str) -> None:
    assert without_root(name) == shown
