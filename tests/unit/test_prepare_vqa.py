"""The job that prepares a dataset: its arguments, its table, its refusals."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from medv_ray.data.dataset import Dataset
from tests.unit.data.releases import official_row, write_csv, write_images, write_official

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The job as `python jobs/prepare_vqa.py ...`, in this process."""

    def job(*arguments: str) -> Done:
        path = str(ROOT / "jobs" / "prepare_vqa.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return job


def test_a_table_becomes_a_dataset(tmp_path: Path, run: Callable[..., Done]) -> None:
    rows = [{"bild": "1.png", "question": f"Is it {n}?", "answer": "yes"} for n in range(3)]
    rows.append({"bild": "2.png", "question": "Lost?", "answer": "yes"})
    write_csv(tmp_path / "ward.csv", rows)
    write_images(tmp_path, "1.png")
    done = run(
        "--kind", "table", "--source", str(tmp_path / "ward.csv"), "--split", "test",
        "--image-column", "bild", "--out", str(tmp_path / "out"), "--set", "name=ward",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "skipped in test: 1 image_missing" in done.stdout
    assert done.stdout.endswith("3 rows in out\n")
    assert Dataset.open(tmp_path / "out", "test").index["name"] == "ward"


def test_the_official_release_is_printed_beside_table_3(
    tmp_path: Path, run: Callable[..., Done]
) -> None:
    write_official(tmp_path, "val", [official_row("val_0001", 1, "Is it?", "yes", "yes/no")])
    write_images(tmp_path / "images", "val/val_0001.jpg")
    done = run(
        "--kind", "pathvqa-official", "--source", str(tmp_path), "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert "1 / 6279 (-6278)" in done.stdout
    assert "1 / 832 (-831)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--kind", "pathvqa"], "pathvqa"),
        (["--kind", "slake"], "E1115"),
        (["--kind", "slake", "--split", "val"], "one of train, validation, test"),
        (["--kind", "slake", "--language", "de"], "language"),
        (["--kind", "slake", "--set", "images_folder=x"], "images_folder"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, run: Callable[..., Done], arguments: list[str], word: str
) -> None:
    done = run(*arguments, "--source", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode in (1, 2)
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
