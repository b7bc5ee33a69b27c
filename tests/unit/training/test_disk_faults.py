"""A disk that fails under a training run: it ends with the disk's code, what was published is
whole, and the same run goes on to the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from medv_ray.disk import disk_error
from medv_ray.errors import MedvError
from medv_ray.training import checkpoint
from medv_ray.training.job import TrainSettings
from tests.small_disk import small_disk
from tests.unit.training.test_run import job, state, train

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def ended(settings: TrainSettings) -> MedvError | None:
    """How it ended; errors of the disk as a worker tells them."""
    try:
        train(settings)
    except OSError as error:
        return disk_error("the run folder", error)
    except MedvError as error:
        return error
    return None


def steps_told(settings: TrainSettings) -> list[int]:
    lines = (Path(settings.out) / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_disk_that_is_full_at_any_size_of_a_save(home: Path, tmp_path: Path) -> None:
    """Slices, lists, manifest, events.jsonl and curves: whichever finds no room."""
    short = {"watch": ("tensorboard",), "save_every": 1}
    whole = job(home, tmp_path / "whole", max_steps=2).model_copy(update=short)
    train(whole)
    want = state(whole)
    size = sum(map(len, want.values()))
    codes = set()
    with small_disk(tmp_path / "disk", f"{4 * size // 1024 + 200}k") as disk:
        for free in (2_000, size // 2, size + 12_000, 3 * size + 100_000):
            cut = whole.model_copy(update={"out": str(disk.folder / f"free{free}" / "out")})
            with disk.filled(free):
                error = ended(cut)
            codes.add(error and error.code)
            assert error is None or str(disk.folder) not in str(error)
            assert ended(cut) is None
            assert state(cut) == want
            assert steps_told(cut) == [1, 2]
            for file in disk.folder.rglob("*"):
                if file.is_file():
                    file.unlink()
    assert codes == {None, "E1503"}


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [("fsync", errno.EIO, "E1511"), ("replace", errno.ENOSPC, "E1503")],
)
def test_a_disk_that_does_not_keep_what_it_took(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: str
) -> None:
    """From the second save on, at its first call of that name and at its last."""
    whole, cut = job(home, tmp_path / "whole"), job(home, tmp_path / "cut")
    train(whole)
    train(cut, steps=3)  # the state after 2 is saved

    def failing(*given: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        error = ended(cut)
    assert error is not None
    assert error.code == code
    published = sorted(path.name for path in (Path(cut.out) / "checkpoints").iterdir())
    assert published == ["step-00000002"]  # nothing half-written takes the room
    with monkeypatch.context() as patch:  # the name is there, and whether it stays is not known
        patch.setattr(checkpoint, "put_in_place", failing)
        error = ended(cut)
        assert error is not None
        assert error.code == code
    assert ended(cut) is None
    assert state(cut) == state(whole)
    assert steps_told(cut) == [1, 2, 3, 4, 5, 6]
