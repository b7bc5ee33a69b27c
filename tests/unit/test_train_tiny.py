"""The toy's training: the same seed gives the same bits, and the loss falls."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from jobs.train_tiny import Recipe, Stage, train_folder
from medv_ray.model import weights

STAGES = (
    Stage(30, captions=1.0),
    Stage(4, pairs=0.4, dialogues=0.3, all_targets=False),
    Stage(2, dialogues=0.5),
)
RECIPE = Recipe(stages=STAGES, num_tiles=24, batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "first"
    return folder, list(train_folder(RECIPE, folder))


def test_same_seed_gives_the_same_folder(first, tmp_path):
    folder, losses = first
    assert list(train_folder(RECIPE, tmp_path / "again")) == losses
    assert weights.digest(tmp_path / "again") == weights.digest(folder)


def test_another_seed_gives_other_weights(first, tmp_path):
    folder, _ = first
    recipe = Recipe(seed=1, stages=(Stage(2),), num_tiles=24, batch_size=8)
    list(train_folder(recipe, tmp_path))
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert one.keys() == other.keys()
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_loss_falls_over_the_captions(first):
    _, losses = first
    captions = losses[: STAGES[0].steps]
    assert len(losses) == RECIPE.steps
    assert sum(captions[-10:]) < 0.5 * sum(captions[:10])


def test_folder_holds_the_sampler_it_is_made_for(first):
    folder, _ = first
    config = json.loads((folder / "config.json").read_text())
    assert config["medv_defaults"] == {"gen_length": 8, "block_length": 8, "steps": 8}
    assert weights.load(folder).config.vision is not None
