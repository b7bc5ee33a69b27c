"""What learns and at what rate: the schedule beside the Hugging Face Trainer's, the groups."""

from typing import Any

import pytest

from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv
from medv_ray.training.optim import choose_trainable, parameter_groups, schedule
from medv_ray.training.stages import StageSettings


def stage(**more: Any) -> StageSettings:
    return StageSettings.model_validate({"name": "x", "lr": 1.0, "batch_size": 1} | more)


@pytest.fixture(scope="module")
def model() -> Medv:
    language = LanguageConfig(20, 8, 8, 1, 1, 1, rope_theta=1e4)
    vision = VisionConfig(8, 8, 1, 1, image_size=8, patch_size=4)
    return Medv(ModelConfig(language, vision, "square", (), "spatial_unpad", max_length=64))


@pytest.mark.parametrize(
    ("num_steps", "ratio", "rates"),
    [
        (100, 0.02, {0: 0, 1: 0.5, 2: 1, 51: 0.5, 99: 2.5689e-4}),
        (110, 0.03, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 109: 2.1958e-4}),
        (1, 0.03, {0: 0}),
        (4, 0, {0: 1, 2: 0.5}),
    ],
)
def test_rates_are_those_of_the_hugging_face_trainer(
    num_steps: int, ratio: float, rates: dict[int, float]
) -> None:
    """From transformers.get_cosine_schedule_with_warmup, warm-up steps rounded up."""
    chosen = stage(warmup_ratio=ratio)
    found = {step: schedule(step, num_steps, chosen) for step in rates}
    assert found == pytest.approx(rates, rel=1e-4)


def test_a_constant_rate_has_a_warm_up_too() -> None:
    chosen = stage(schedule="constant", warmup_ratio=0.5)
    assert [schedule(step, 4, chosen) for step in range(4)] == [0, 0.5, 1, 1]


def test_parts_have_their_rates_and_matrices_decay(model: Medv) -> None:
    chosen = stage(
        trainable=("projector", "language", "vision"), projector_lr=2.0, vision_lr=3.0,
        weight_decay=0.1,
    )  # fmt: skip
    choose_trainable(model, chosen)
    groups = parameter_groups(model, chosen)
    found = {
        id(parameter): (group["peak_lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    learns = dict(model.named_parameters())
    # the tower's last norm is not part of what LLaDA-V takes features from
    unused = [name for name in learns if "post_layernorm" in name]
    assert {id(learns[name]) for name in learns if name not in unused} == set(found)
    for name, want in {
        "lm_head.weight": (1.0, 0.1),
        "model.norm.weight": (1.0, 0.0),
        "model.image_newline": (1.0, 0.0),
        "model.mm_projector.0.weight": (2.0, 0.1),
        "model.mm_projector.0.bias": (2.0, 0.0),
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.bias": (3.0, 0.0),
    }.items():
        assert found[id(learns[name])] == want, name


@pytest.mark.parametrize("part", ["projector", "language", "vision"])
def test_only_the_stages_parts_learn(model: Medv, part: str) -> None:
    choose_trainable(model, stage(trainable=(part,)))
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    marks = {"projector": "mm_projector", "vision": "vision_tower"}
    others = [mark for name, mark in marks.items() if name != part]
    assert learns
    assert not any(mark in name for name in learns for mark in others)
    assert all(marks.get(part, "") in name for name in learns)
