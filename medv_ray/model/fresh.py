"""Models that begin from nothing: towers with fresh weights, for toys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medv_ray.model.config import ModelConfig
from medv_ray.model.medv import Medv


def padded_vocab(num_tokens: int) -> int:
    """Rows of the embedding: as in LLaDA, more than the tokenizer has ids."""
    return 32 * math.ceil((num_tokens + 1) / 32)


def fresh(config: ModelConfig, num_tokens: int, seed: int) -> Medv:
    """A model whose weights follow from the seed."""
    torch.manual_seed(seed)
    model = Medv(config, logit_size=num_tokens)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "newline" in name:
            torch.nn.init.normal_(parameter, std=initial_std(name, parameter))
    return model


def initial_std(name: str, parameter: Tensor) -> float:
    """1/sqrt(fan in) for what multiplies, a float[out, in], so that a product of question and
    picture has a gradient from the first step on."""
    if "position_embedding" in name:
        return 0.5  # strong: lets the side of a thing be learnt at all
    if "newline" in name:
        return 0.1  # zeros would meet the norm with a gradient 300 times the others'
    if "embed_tokens" in name:
        return 1.0
    return 1 / math.sqrt(parameter[0].numel())
