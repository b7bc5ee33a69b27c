"""What learns, how fast, and when: parameter groups, optimizer and schedule of a stage."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from medv_ray.model.medv import Medv
from medv_ray.training.stages import Part, StageSettings


def part_of(name: str) -> Part:
    """Which part a published parameter name belongs to. As in LLaDA-V, `language` is the rest."""
    if ".vision_tower." in name:
        return "vision"
    return "projector" if ".mm_projector." in name else "language"


def choose_trainable(model: Medv, stage: StageSettings) -> None:
    """Switch gradients on for the stage's parts and off for the others."""
    for name, parameter in model.named_parameters():
        # never applied in the forward pass: it would get no gradient
        unused = "vision_tower" in name and "post_layernorm" in name
        parameter.requires_grad_(part_of(name) in stage.trainable and not unused)


def parameter_groups(model: nn.Module, stage: StageSettings) -> list[dict[str, Any]]:
    """Groups for torch's optimizers: by part, with and without weight decay.

    Each holds `peak_lr` beside torch's own fields. Names may carry a prefix.
    """
    rates = {"projector": stage.projector_lr, "vision": stage.vision_lr, "language": None}
    groups: dict[tuple[Part, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # a partitioned tensor has lost its shape; DeepSpeed keeps it
        dims = len(getattr(parameter, "ds_shape", parameter.shape))
        part, decays = part_of(name), dims > 1
        rate = rates[part] or stage.lr
        group = {"params": [], "peak_lr": rate, "lr": rate}
        group["weight_decay"] = stage.weight_decay if decays else 0.0
        groups.setdefault((part, decays), group)["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], stage: StageSettings) -> torch.optim.Optimizer:
    """Torch's AdamW or plain SGD."""
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.lr)
    return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, eps=stage.eps)


def schedule(step: int, num_steps: int, stage: StageSettings) -> float:
    """Factor of the peak learning rate at a step, counted from 0.

    A line up over the warm-up's steps, rounded up as in the Hugging Face Trainer, then half a
    cosine down to 0 at `num_steps`. As there, the first step of a warm-up has rate 0.
    """
    warm_up = math.ceil(num_steps * stage.warmup_ratio)
    if step < warm_up:
        return step / warm_up
    if stage.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))
