"""Rows in a random order: every kind of input, one row at a time."""

from __future__ import annotations

import csv
import io
import tarfile
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.settings import ArchiveSettings
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.engine import Request
from medv_ray.errors import DataError, SettingsError
from medv_ray.on_ray.sampled_rows import open_rows, sample
from tests.integration import stub

NUMBER = 7


def parquet(folder: Path) -> ArchiveSettings:
    stub.write_archive(folder / "in.parquet", [f"q{i}" for i in range(NUMBER)], per_image=1)
    return ArchiveSettings(archive=str(folder / "in.parquet"), chunk_rows=3)


def table(folder: Path) -> ArchiveSettings:
    for i in range(NUMBER):
        (folder / f"{i}.png").write_bytes(stub.png(i))
    with (folder / "q.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows([f"{i}.png", f"q{i}", "yes"] for i in range(NUMBER))
    return ArchiveSettings(archive=str(folder), questions=str(folder / "q.csv"), chunk_rows=3)


def tar(folder: Path) -> ArchiveSettings:
    with tarfile.open(folder / "in.tar", "w") as file:
        for i in range(NUMBER):
            for name, data in ((f"{i}.png", stub.png(i)), (f"{i}.txt", f"q{i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return ArchiveSettings(archive=str(folder / "in.tar"), chunk_rows=3, question="q")


def pictures(folder: Path) -> ArchiveSettings:
    for i in range(NUMBER):
        (folder / f"{i}.png").write_bytes(stub.png(i))
    return ArchiveSettings(archive=str(folder), question="q", chunk_rows=3)


def dataset(folder: Path) -> ArchiveSettings:
    rows = (
        Row(str(i), (stub.png(i),), on_one_image([(f"q{i}", "yes")]), "closed")
        for i in range(NUMBER)
    )
    write_dataset(folder / "set", "made", {"test": rows}, licence="none")
    return ArchiveSettings(archive=str(folder / "set"))


@pytest.mark.parametrize("make", [parquet, table, tar, pictures, dataset])
def test_each_row_comes_alone_and_once(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    rows = open_rows(make(tmp_path), "test", seed=0)
    assert len(rows) == NUMBER
    read = [rows.read(number) for number in (*range(NUMBER), 0)]
    images = [one.request.images[0] for one in read if isinstance(one.request, Request)]
    assert images == [stub.png(i) for i in (*range(NUMBER), 0)]
    assert len({one.id for one in read}) == NUMBER
    if make in (parquet, table, dataset):
        assert [one.request.question for one in read[:NUMBER]] == [f"q{i}" for i in range(NUMBER)]
        assert {(one.reference, one.kind) for one in read} == {("yes", "closed")}


def test_what_a_dataset_cannot_take_is_refused(tmp_path: Path) -> None:
    settings = dataset(tmp_path).model_copy(update={"limit": 2, "question": "q?"})
    with pytest.raises(SettingsError, match="E1001: question, limit: not for a prepared dataset"):
        open_rows(settings, "test", 0)


@pytest.mark.parametrize("made", ["archive", "dataset"])
def test_a_row_is_of_the_kind_that_the_input_says(tmp_path: Path, made: str) -> None:
    said = [("closed", "left"), ("open", "yes"), (None, "no"), (None, "lung")]
    if made == "dataset":
        rows = (
            Row(str(i), (stub.png(i),), on_one_image([(f"q{i}", answer)]), kind)
            for i, (kind, answer) in enumerate(said)
        )
        write_dataset(tmp_path / "in", "made", {"test": rows}, licence="none")
    else:
        (tmp_path / "in").mkdir()
        table = [
            {"image": stub.png(i), "question": f"q{i}", "answer": answer, "answer_type": kind}
            for i, (kind, answer) in enumerate(said)
        ]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "in" / "a.parquet")
    found = open_rows(ArchiveSettings(archive=str(tmp_path / "in")), "test", 0)
    kinds = [found.read(number).kind for number in range(4)]
    assert kinds == ["closed", "open", "closed", "open"]


def test_a_bad_row_brings_its_error(tmp_path: Path) -> None:
    settings = table(tmp_path)
    (tmp_path / "3.png").unlink()
    request = open_rows(settings, "test", 0).read(3).request
    assert isinstance(request, DataError)
    assert request.code == "E1111"


def test_a_longer_sample_begins_with_a_shorter_one() -> None:
    for total in (1, 2, 5, 1000):
        whole = list(sample(total, 3))
        assert sorted(whole) == list(range(total))
    assert list(sample(1000, 3)) == whole != list(sample(1000, 4))
    assert list(islice(sample(1000, 3), 30)) == whole[:30]
    assert len(set(islice(sample(10**12, 0), 50))) == 50
