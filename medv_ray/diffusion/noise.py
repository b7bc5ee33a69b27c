"""Forward process: which target tokens become the mask token at noise level t.

Shapes: B rows, S positions of the spliced sequence (image tokens included).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medv_ray.markers import IGNORE


class Noise(NamedTuple):
    """What the forward process did to a batch."""

    masked: Tensor
    """bool[B, S], positions whose token is replaced by the mask token."""
    p_mask: Tensor
    """float[B], probability with which each target of the row was masked."""


def mask_probability(t: Tensor, eps: float = 1e-3) -> Tensor:
    """float[B], (1 - eps) t + eps: no target is without a chance. Source: LLaDA GUIDELINES.md."""
    return (1 - eps) * t + eps


def draw(rows: int, length: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Uniform t float32[B] and u float32[B, S] in [0, 1), drawn in the reference's order."""
    t = torch.rand(rows, generator=generator)
    return t, torch.rand(rows, length, generator=generator)


def forward_noise(labels: Tensor, t: Tensor, u: Tensor, eps: float = 1e-3) -> Noise:
    """Mask each target with probability p_mask(t): those with u < p_mask.

    Args:
        labels: int64[B, S], IGNORE where the position is no target (prompt, image, padding after
            splicing).
        t: float[B], one noise level for all turns of a row, in [0, 1].
        u: float[B, S], uniform draws in [0, 1).

    Source: LLaDA-V, LLaDAModelLM.forward.
    """
    p_mask = mask_probability(t, eps)
    return Noise((u < p_mask[:, None]) & (labels != IGNORE), p_mask)
