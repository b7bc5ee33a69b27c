"""Samples made ahead by a thread: the same ones, in order, bounded, and none left behind."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.data.dataset import Dataset, image_path
from medv_ray.errors import DataError, RunError
from medv_ray.training import run, samples
from medv_ray.training.check import check
from medv_ray.training.job import TrainSettings
from medv_ray.training.order import Order, worker_positions
from medv_ray.training.prefetch import Prefetch
from medv_ray.training.remedies import memory_errors
from medv_ray.training.samples import Pictures
from tests.unit.training import tiny
from tests.unit.training.test_run import job, state, train

pytestmark = pytest.mark.integration


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def ahead(settings: TrainSettings, rows: int) -> TrainSettings:
    return settings.model_copy(update={"prefetch_rows": rows})


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_at_most_so_many_wait_and_they_come_in_order() -> None:
    made: list[int] = []

    def make(position: int) -> int:
        made.append(position)
        return position * 10

    with closing(Prefetch(make, iter([4, 2, 9, 7, 1]), 2)) as prefetch:
        wait_for(lambda: len(made) == 2)
        time.sleep(0.05)
        assert made == [4, 2]
        assert prefetch(4) == 40
        wait_for(lambda: len(made) == 3)
        assert [prefetch(position) for position in (2, 9, 7, 1)] == [20, 90, 70, 10]
        wait_for(lambda: not threads())
        with pytest.raises(AssertionError):  # nothing is left to wait for
            prefetch(5)
    with closing(Prefetch(make, [1, 2], 1)) as prefetch, pytest.raises(AssertionError):
        prefetch(2)
    assert threads() == []


def test_an_error_is_raised_where_its_position_is_asked_for() -> None:
    def make(position: int) -> int:
        if position == 2:
            raise DataError("E1114", "this one")
        return position

    with closing(Prefetch(make, range(9), 5)) as prefetch:
        wait_for(lambda: not threads())  # it has met the error by now
        assert [prefetch(0), prefetch(1)] == [0, 1]
        with pytest.raises(DataError, match="this one"):
            prefetch(2)
    assert threads() == []


def test_a_thread_that_waits_for_room_ends() -> None:
    begun = time.monotonic()
    Prefetch(lambda position: position, range(10**9), 3).close()
    assert threads() == []
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("trainable", [("projector", "language"), ("projector", "vision")])
def test_bits_are_the_same_with_and_without(
    home: Path, tmp_path: Path, trainable: tuple[str, ...]
) -> None:
    """Losses and the saved state, also over a resume from the middle."""
    found = []
    for rows in (0, 16):
        settings = ahead(job(home, tmp_path / str(rows), trainable=trainable), rows)
        reports = train(settings, steps=3) if rows == 16 else train(settings)
        if rows == 16:
            assert threads() == [], "a run that was left early"
            assert len(reports) == 3
            reports = reports[:2] + train(settings)
        found.append(([report.loss for report in reports], state(settings)))
        assert threads() == []
    assert found[0] == found[1]


def test_a_bad_row_ends_the_run_in_its_own_step(home: Path, tmp_path: Path) -> None:
    """Steps before it are done and saved, though its picture is read long before."""
    tiny.settings(tmp_path)
    settings = ahead(job(tmp_path, tmp_path, batch_size=1, micro_batch_size=1, seed=1), 16)
    identity, dataset = check(settings), Dataset.open(settings.data)
    order = Order(len(dataset), 1)
    position, row = next((p, order[p]) for p in (3, 4, 5) if dataset[order[p]].images)
    seen = {d for p in range(position) for d in dataset[order[p]].images}
    [digest] = dataset[row].images
    assert digest not in seen
    path = image_path(dataset.folder, digest)
    path.write_bytes(path.read_bytes() + b"x")
    run.begin(settings, identity)
    steps = []

    def go() -> None:
        for report in run.train_worker(settings, identity):
            wait_for(lambda: not threads())  # the thread is through
            steps.append(report.step)

    with pytest.raises(DataError, match=f"E1114: row {row} of train: the bytes of image"):
        go()
    assert steps == list(range(1, position + 1))
    assert (Path(settings.out) / "checkpoints" / f"step-{position // 2 * 2:08d}").is_dir()
    assert threads() == []


def test_a_thread_without_memory_is_a_run_without_memory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, tiles: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    settings = job(home, tmp_path)
    identity = check(settings)
    run.begin(settings, identity)
    monkeypatch.setattr(samples.FrozenTower, "__call__", full)
    with pytest.raises(RunError, match="E1605"):
        list(run.train_worker(settings, identity))
    assert threads() == []
    workers = settings.workers.model_copy(update={"num_gpus": 1})
    with (
        pytest.raises(RunError, match="device_cache_bytes=0"),
        memory_errors(settings.model_copy(update={"workers": workers})),
    ):
        raise MemoryError


def test_a_worker_s_positions_are_those_that_the_loop_asks_for(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = samples.Samples._make

    def noted(self: samples.Samples, position: int) -> Any:
        asked.append(position)
        return real(self, position)

    monkeypatch.setattr(samples.Samples, "_make", noted)
    train(ahead(job(home, tmp_path), 4), steps=2)
    assert asked[:8] == list(range(8))
    assert len(asked) <= 8 + 4
    two = [list(islice(worker_positions(range(3, 5), 8, rank, 2), 9)) for rank in (0, 1)]
    assert two == [[24, 25, 26, 27, 32, 33, 34, 35], [28, 29, 30, 31, 36, 37, 38, 39]]


def test_features_stay_on_the_device_while_there_is_room(home: Path, tmp_path: Path) -> None:
    """With a CPU as the device: what stays is the tower's own output and leaves no copy."""
    settings = job(home, tmp_path)
    dataset = Dataset.open(settings.data)
    digests = list({e.images[0]: None for e in dataset if e.images})[:3]
    held = Pictures(dataset, settings.stage, run.build_model(settings, "cpu"), 0)
    with closing(held):
        size = held.get(digests[0], False).features.nbytes + 1024  # type: ignore[union-attr]
    held = Pictures(dataset, settings.stage, run.build_model(settings, "cpu"), 10**6, 10**6)
    assert held._device_room == 0, "host memory has one limit"
    held._device_room = 2 * size
    with closing(held):
        first = [held.get(digest, False) for digest in digests]
        again = [held.get(digest, False) for digest in digests]
    assert held.tower_runs == 3
    assert list(held._on_device) == [(digest, False) for digest in digests[:2]]
    assert list(held._kept) == [(digests[2], False)]
    for one, other in zip(first, again, strict=True):
        assert one.features is not None
        assert other.features is not None
        assert torch.equal(one.features, other.features)
