"""The folder between preparation and training: whole or absent, verified, readable at random."""

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medv_ray.data import dataset
from medv_ray.data.dataset import GROUP_ROWS, Dataset, image_path
from medv_ray.data.dataset_writer import Row, Skip, write_dataset
from medv_ray.errors import DataError, RunError


def row(number: int, images: tuple[bytes, ...] = (b"a picture",), **more: Any) -> Row:
    said = [
        {"from": "human", "value": f"<image>\nWhat is number {number}?"},
        {"from": "gpt", "value": f"It is {number}. Größe µ"},
    ]
    return Row(f"r{number}", images, said, **more)


def write(folder: Path, rows: int = 3, name: str = "toy", **splits: Any) -> dict[str, Any]:
    return write_dataset(folder, name, splits or {"train": map(row, range(rows))})


def code_of(call: Any) -> str:
    with pytest.raises((DataError, RunError)) as caught:
        call()
    assert str(Path.cwd().anchor + "tmp") not in str(caught.value)  # no absolute path
    return caught.value.code


def test_what_was_written_is_read(tmp_path: Path) -> None:
    two = row(7, (b"one", b"two"), answer_type="open", question_type="where", source="a.json:7")
    index = write(
        tmp_path / "d",
        train=[row(0), Skip("a.json:1", "no_answer", 3, "empty"), two],
        test=[row(9)],
    )
    assert index["splits"] == {"train": 2, "test": 1}
    assert index["skipped"] == {"no_answer": 1}
    data = Dataset.open(tmp_path / "d")
    assert len(data) == 2
    example = data[1]
    assert example.conversations == list(two.conversations)
    assert (example.id, example.answer_type, example.question_type) == ("r7", "open", "where")
    assert [data.image(sha) for sha in example.images] == [b"one", b"two"]
    assert [e.id for e in Dataset.open(tmp_path / "d", "test")] == ["r9"]
    assert (tmp_path / "d" / "skipped.csv").read_text().split() == [
        "split,source,reason,line,cause", "train,a.json:1,no_answer,3,empty"
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_an_image_is_stored_once(tmp_path: Path) -> None:
    index = write(tmp_path / "d", 50)
    assert index["counts"]["train"]["images"] == 1
    digest = hashlib.sha256(b"a picture").hexdigest()
    assert [p.name for p in (tmp_path / "d" / "images").rglob("*") if p.is_file()] == [digest]


def test_images_of_test_that_train_has_are_noted(tmp_path: Path) -> None:
    index = write(tmp_path / "d", train=[row(0)], test=[row(1), row(2, (b"new",))])
    assert index["notes"] == ["1 of the 2 images of test occur in train too"]


def test_random_access_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 8 * GROUP_ROWS + 1
    write(tmp_path / "d", total)
    data = Dataset.open(tmp_path / "d")
    size = data._read(0).nbytes
    monkeypatch.setattr(dataset, "KEPT_BYTES", 3 * size + 1)
    places = random.Random(0).sample(range(total), 40)
    assert [data[place].id for place in places] == [f"r{place}" for place in places]
    assert sum(table.nbytes for table in data._kept.values()) <= 3 * size + 1
    assert len(data._kept) >= 2
    assert data[total - 1].id == f"r{total - 1}"
    for outside in (total, -1):
        with pytest.raises(IndexError):
            data[outside]


def test_threads_read_the_same(tmp_path: Path) -> None:
    write(tmp_path / "d", 3 * GROUP_ROWS)
    data, wrong = Dataset.open(tmp_path / "d"), []

    def look(seed: int) -> None:
        for place in random.Random(seed).choices(range(len(data)), k=60):
            if data[place].id != f"r{place}":
                wrong.append(place)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_digest_follows_the_content_and_not_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a", 300)
    write(tmp_path / "b", 300, name="other")
    write(tmp_path / "c", 301)
    a, b, c = (Dataset.open(tmp_path / name).digest for name in "abc")
    assert a == b != c


def test_rows_exchanged_behind_the_index_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a", 3)
    write(tmp_path / "b", train=map(row, (0, 1, 5)))
    os.replace(tmp_path / "b" / "train.parquet", tmp_path / "a" / "train.parquet")
    assert code_of(lambda: Dataset.open(tmp_path / "a").digest) == "E1114"


def test_changed_and_missing_images(tmp_path: Path) -> None:
    write(tmp_path / "d")
    data = Dataset.open(tmp_path / "d")
    sha = data[0].images[0]
    path = image_path(tmp_path / "d", sha)
    path.write_bytes(b"a Picture")
    assert code_of(lambda: data.image(sha)) == "E1114"
    path.unlink()
    assert code_of(lambda: data.image(sha)) == "E1114"
    assert code_of(lambda: data.image("../../etc/passwd")) == "E1114"


def damage(path: Path) -> None:
    """Turn bytes around in the middle of the file, where the pages are."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 4
    data[middle : middle + 8] = bytes(255 - b for b in data[middle : middle + 8])
    path.write_bytes(data)


def test_damaged_pages_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "d", 200)
    damage(tmp_path / "d" / "train.parquet")
    assert code_of(lambda: Dataset.open(tmp_path / "d")[0]) == "E1114"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: (d / "dataset.json").unlink(), "E1113"),
        (lambda d: (d / "dataset.json").write_text("{"), "E1114"),
        (lambda d: (d / "dataset.json").write_text("[]"), "E1114"),
        (lambda d: edit(d, format=2), "E1113"),
        (lambda d: edit(d, splits={"train": 4}), "E1114"),
        (lambda d: edit(d, splits={"../train": 3}), "E1114"),
        (lambda d: (d / "train.parquet").unlink(), "E1114"),
        (lambda d: (d / "train.parquet").write_bytes(b"PAR1"), "E1114"),
        (lambda d: cut_columns(d / "train.parquet"), "E1113"),
    ],
)
def test_what_is_no_dataset_is_refused(tmp_path: Path, change: Any, code: str) -> None:
    write(tmp_path / "d")
    change(tmp_path / "d")
    assert code_of(lambda: Dataset.open(tmp_path / "d")) == code


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["source"]), path)


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "d")
    with pytest.raises(DataError, match="it has train"):
        Dataset.open(tmp_path / "d", "test")


def test_no_row_left_writes_nothing(tmp_path: Path) -> None:
    skips = [Skip("a:0", "image_missing")] * 2
    with pytest.raises(DataError, match="image_missing 2") as caught:
        write(tmp_path / "d", train=skips)
    assert caught.value.code == "E1110"
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_the_old_dataset(tmp_path: Path) -> None:
    write(tmp_path / "d", 3)

    def rows() -> Any:
        yield row(0)
        raise DataError("E1105", "the source ends here.")

    assert code_of(lambda: write(tmp_path / "d", train=rows())) == "E1105"
    assert len(Dataset.open(tmp_path / "d")) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_the_same_dataset_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "d", 3)
    write(tmp_path / "d", 5)
    assert len(Dataset.open(tmp_path / "d")) == 5
    assert code_of(lambda: write(tmp_path / "d", name="other")) == "E1507"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"")
    assert code_of(lambda: write(tmp_path / "photos")) == "E1507"
    (tmp_path / "file").write_text("")
    assert code_of(lambda: write(tmp_path / "file")) == "E1507"
    (tmp_path / "photos").rename(tmp_path / "x.tmp")
    assert code_of(lambda: write(tmp_path / "x")) == "E1507"
    assert (tmp_path / "x.tmp" / "me.jpg").exists()


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_the_last_steps_keeps_a_dataset_and_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    write(tmp_path / "d", 3)
    real, left = Path.rename, iter(range(1, 9))

    def killed(self: Path, target: Path) -> Path:
        if next(left) == rename:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    # nothing is tidied up, as after a SIGKILL
    monkeypatch.setattr("medv_ray.data.dataset_writer.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", 5)
    monkeypatch.undo()

    def broken() -> Iterator[Row]:
        raise DataError("E1105", "the source ends here.")
        yield

    # what was there stays, also when the next writer fails
    assert code_of(lambda: write(tmp_path / "d", train=broken())) == "E1105"
    assert len(Dataset.open(tmp_path / "d")) == 3
    write(tmp_path / "d", 4)
    assert len(Dataset.open(tmp_path / "d")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
    assert not (tmp_path / "d" / ".medv-dataset.lock").exists()


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path("."))
    assert len(Dataset.open(tmp_path / "here")) == 3


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:

        def rows() -> Any:
            yield row(0)
            os._exit(9)

        write(tmp_path / "d", train=rows())
    os.waitpid(child, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["d.tmp"]
    write(tmp_path / "d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    def rows() -> Any:
        assert code_of(lambda: write(tmp_path / "d")) == "E1501"
        yield row(0)

    write(tmp_path / "d", train=rows())
    assert len(Dataset.open(tmp_path / "d")) == 1


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert code_of(lambda: write(tmp_path / "d")) == "E1503"
    assert not list(tmp_path.iterdir())
