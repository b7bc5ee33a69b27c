"""A toy model with every part: 2 language layers, shared key-value heads, 2 vision layers."""

import pytest
import torch

from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv

TOY = ModelConfig(
    language=LanguageConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    vision=VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=30,
        patch_size=7,
    ),
    max_length=256,
)


def make_model(config: ModelConfig = TOY, seed: int = 0) -> Medv:
    """Random weights large enough that every part moves the result."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Medv(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture
def toy() -> Medv:
    return make_model()


@pytest.fixture
def toy_config() -> ModelConfig:
    return TOY
