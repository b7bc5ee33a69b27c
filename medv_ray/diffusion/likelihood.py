"""Monte Carlo bound of the log likelihood of an answer under the mask predictor.

Shapes: B noisy copies per iteration, T answer positions, D width, V vocabulary.
Source: ML-GSAI/LLaDA get_log_likelihood.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from medv_ray.diffusion.loss import token_losses
from medv_ray.diffusion.sample import Denoise


class NoisyAnswers(NamedTuple):
    """Copies of one answer with different numbers of masks."""

    masked: Tensor
    """bool[B, T]."""
    ratio: Tensor
    """float32[B], share of masked positions of each copy."""


def spread_masks(
    length: int, copies: int, generator: torch.Generator | None = None
) -> NoisyAnswers:
    """Mask the copies at evenly spread ratios: less variance than drawing each ratio alone.

    A first count is drawn from 1 .. T, the others follow at distance T / B and wrap around; which
    positions are masked is a random permutation per copy. Drawn on the CPU, in the reference's
    order.
    """
    first = int(torch.randint(1, length + 1, (), generator=generator))
    last = first + (copies - 1) * (length / copies)
    counts = torch.linspace(float(first), last, steps=copies).round().long()
    counts = (counts - 1) % length + 1
    ordered = torch.arange(length) < counts[:, None]
    rows = [row[torch.randperm(length, generator=generator)] for row in ordered]
    return NoisyAnswers(torch.stack(rows), counts / length)


def log_likelihood(
    denoise: Callable[[int], Denoise],
    answer: Tensor,
    mask_id: int,
    *,
    num_samples: int = 128,
    copies: int = 16,
    cfg_scale: float = 0.0,
    generator: torch.Generator | None = None,
) -> float:
    """Estimate of log p(answer | prompt), nats: minus the sum of CE / mask ratio, averaged.

    Args:
        denoise: makes a denoiser of so many rows, the prompt bound.
        answer: int64[T], T > 0; one sample is enough for T = 1.
        num_samples: noisy copies in all, a multiple of `copies`.
        copies: B, rows of one forward pass.
        cfg_scale: guidance on the logits, as in sampling.
    """
    if num_samples % copies:
        raise ValueError(f"num_samples={num_samples} must be a multiple of copies={copies}")
    denoiser = denoise(copies)
    guide = denoiser.unconditional(mask_id) if cfg_scale > 0 else None
    total = 0.0
    for _ in range(num_samples // copies):
        noisy = spread_masks(len(answer), copies, generator)
        total += _negative_bound(denoiser, guide, answer, noisy, mask_id, cfg_scale)
    return -total * copies / num_samples


@torch.no_grad()
def _negative_bound(
    denoiser: Denoise,
    guide: Denoise | None,
    answer: Tensor,
    noisy: NoisyAnswers,
    mask_id: int,
    cfg_scale: float,
) -> float:
    """Sum over masked positions of CE / ratio, averaged over the copies."""
    masked = noisy.masked.to(answer.device)
    x = torch.where(masked, mask_id, answer)
    total, row_of = 0.0, masked.nonzero()[:, 0]
    hidden = denoiser(x, masked)
    base = None if guide is None else guide(x, masked)
    for piece in _pieces(len(hidden)):
        logits = (hidden[piece] @ denoiser.head.T).float()
        if base is not None:
            un = (base[piece] @ denoiser.head.T).float()
            logits = un + (cfg_scale + 1) * (logits - un)
        targets = answer.expand_as(masked)[masked][piece]
        ratio = noisy.ratio.to(logits.device)[row_of[piece]]
        total += float((token_losses(logits, None, targets) / ratio).sum())
    return total / len(masked)


def _pieces(count: int, size: int = 64) -> Iterator[slice]:
    """Slices of `size`: logits of so many rows exist at the same time."""
    return (slice(start, start + size) for start in range(0, count, size))
