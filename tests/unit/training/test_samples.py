"""Pictures of a run: made once, kept by use, tiled by what stands beside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.prompts import load_tokenizer
from medv_ray.training.order import Order, noise_seed
from medv_ray.training.run import build_model
from medv_ray.training.samples import FrozenTower, Pictures, Samples
from medv_ray.training.survey import survey_stage
from tests.unit.data.releases import picture
from tests.unit.training import tiny

TEXT = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "yes"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures in rows of their own, and two of them in one row."""
    folder = tmp_path_factory.mktemp("samples")
    files = [picture(colour) for colour in (0, 60, 120)]
    rows = [Row(f"r{i}", (file,), TEXT) for i, file in enumerate(files)]
    write_dataset(folder / "data", "tiny", {"train": [*rows, Row("two", tuple(files[:2]), TEXT)]})
    return folder


def pictures(home: Path, cache_bytes: int, **stage: Any) -> tuple[Pictures, list[str]]:
    settings = tiny.settings(home, **stage)
    dataset = Dataset.open(home / "data")
    model = build_model(settings, "cpu")
    return Pictures(dataset, settings.stage, model, cache_bytes), [
        example.images[0] for example in list(dataset)[:3]
    ]


@pytest.mark.parametrize(("room", "runs"), [(3, [1, 2, 3, 3, 3]), (2, [1, 2, 2, 3, 3]), (0, None)])
def test_a_frozen_tower_runs_once_while_there_is_room(
    home: Path, room: int, runs: list[int] | None
) -> None:
    held, (a, b, c) = pictures(home, 10**6)
    size = held.get(a, False).features.nbytes + 1024
    held.close()
    held, _ = pictures(home, room * size)
    found = []
    for digest in (a, b, c, a, c) if room == 3 else (a, b, a, c, a):  # b was used least lately
        held.get(digest, False)
        found.append(held.tower_runs)
    held.close()
    assert found == (runs or [1, 2, 3, 4, 5])


def test_features_go_to_the_host_beside_the_training_step(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tower's own stream, which stands here for a flag, and which alone is waited for."""
    seen: list[str] = []

    @contextmanager
    def beside(tower: FrozenTower) -> Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        seen.append("copy")
        return tensor.to("cpu")

    monkeypatch.setattr(FrozenTower, "_beside", beside)
    monkeypatch.setattr(FrozenTower, "_done", lambda tower: seen.append("done"))
    held, (a, *_) = pictures(home, 10**6)
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    held.get(a, False)
    held.close()
    assert seen == ["in", "out", "done", "in", "copy", "out", "done"]


def test_one_of_several_pictures_is_padded(home: Path) -> None:
    held, (a, *_) = pictures(home, 10**6, trainable=("projector", "vision"))
    alone, beside = held.get(a, False), held.get(a, True)
    held.close()
    assert held.tower_runs == 0
    assert alone.tiles.shape == beside.tiles.shape == (1, 32, 32, 3)
    assert not torch.equal(alone.tiles, beside.tiles)


def test_rows_of_two_pictures_ask_for_padded_ones(home: Path) -> None:
    settings = tiny.settings(home, trainable=("projector", "vision"), seed=3)
    dataset, tokenizer = Dataset.open(home / "data"), load_tokenizer(settings.model)
    samples = Samples(dataset, tokenizer, settings.stage, build_model(settings, "cpu"), 10**6)
    made, order = [samples(position) for position in range(8)], Order(4, 3)
    two = next(sample for sample in made if len(sample.pictures) == 2)
    one = next(s for i, s in enumerate(made) if order[i] == 0)
    samples.close()
    assert not torch.equal(one.pictures[0].tiles, two.pictures[0].tiles)
    assert [sample.seed for sample in made] == [noise_seed(3, position) for position in range(8)]


def test_the_filling_follows_the_row_of_the_dataset(home: Path) -> None:
    """Not the position: a row is filled to the same length in every epoch, as it was surveyed."""
    settings = tiny.settings(home, seed=3, answer_fill=(6, 9, 13), trainable=("vision",))
    dataset, tokenizer = Dataset.open(home / "data"), load_tokenizer(settings.model)
    model = build_model(settings, "cpu")
    samples = Samples(dataset, tokenizer, settings.stage, model, 10**6)
    made = {(samples.row(p), len(samples(p).ids)) for p in range(16) if samples.row(p) < 3}
    samples.close()
    first = min(length for _, length in made)
    assert made == {(0, first), (1, first + 3), (2, first + 7)}
    surveyed = [
        survey_stage(
            dataset,
            tokenizer,
            settings.stage.model_copy(update={"answer_fill": fill}),
            model.config,
        ).targets
        for fill in ((6, 9, 13), 6)
    ]
    assert surveyed[0] - surveyed[1] == 0 + 3 + 7 + 0


def test_noise_and_order_follow_seed_and_position() -> None:
    seeds = {noise_seed(seed, position) for seed in (0, 1) for position in range(-5, 50)}
    assert len(seeds) == 110
    assert all(0 <= seed < 2**63 for seed in seeds)
    orders = {tuple(Order(30, seed)[p] for p in range(30)) for seed in range(3)}
    epochs = {tuple(Order(30, 0)[p] for p in range(e, e + 30)) for e in (0, 30, 60)}
    assert len(orders) == len(epochs) == 3
