"""Rows come from the host and the model may be elsewhere: no operation mixes the two."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.training.loop import Tally
from medv_ray.training.objective import Objective, Outcome
from medv_ray.training.run import build_model
from medv_ray.training.samples import Samples
from tests.unit.training import tiny
from tests.unit.training.pretended_gpu import GPU, PretendedGpu, marked, move


class Alone:
    """An engine of one worker, as far as a tally needs it."""

    rank, num_workers = 0, 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.double()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.mark.parametrize(
    "stage",
    [
        {},
        {"trainable": ("projector", "language", "vision")},
        {"attention": "prefix"},
        {"attention": "dialogue", "targets": "answers"},
        {"gradient_checkpointing": True},
        {"lora": {"rank": 2}},
    ],
)
def test_a_step_of_a_model_that_is_elsewhere(home: Path, stage: dict[str, Any]) -> None:
    settings = tiny.settings(home, **stage)
    tokenizer = load_tokenizer(settings.model)
    model = build_model(settings, "cpu")
    samples = Samples(Dataset.open(settings.data), tokenizer, settings.stage, model, 10**6)
    rows = sorted(map(samples, range(19)), key=lambda row: len(row.pictures))[:4]
    samples.close()
    assert [len(row.pictures) for row in rows] == [0, 1, 1, 1]
    objective = Objective(model, SpecialIds.of(tokenizer).mask)
    want = objective(rows)
    move(objective)
    with PretendedGpu():
        assert model.device == GPU
        outcome = Outcome(*objective(rows))
        assert outcome.loss.device == GPU
        outcome.loss.backward()
        tally = Tally(len(rows), range(len(rows)))
        tally.add(rows, outcome)
    assert marked(outcome.by_row)
    assert torch.equal(outcome.by_row, want[1])
    assert outcome.num_masked == want[4]


def test_the_pretended_gpu_minds_the_difference() -> None:
    there, here = torch.ones(3), torch.ones(3)
    move(torch.nn.ParameterList([there]))
    table = torch.nn.Embedding(3, 2)
    move(table)
    with PretendedGpu():
        with pytest.raises(AssertionError, match="mixes devices"):
            table(torch.tensor([1]))
        gpu = here.to(GPU)
        assert (gpu + gpu).device == GPU
        with pytest.raises(AssertionError, match="mixes devices"):
            gpu / here
        assert gpu[torch.tensor([True, False, True])].device == GPU
        assert (gpu.cpu() + here).device.type == "cpu"
