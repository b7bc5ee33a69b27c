"""Where the masked positions of a response look: at the picture, the words around it, or each
other.

Shapes: L response positions, S all positions, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.images import Features
from medv_ray.errors import DataError
from medv_ray.markers import IMAGE_SLOT
from medv_ray.model.attention import shares
from medv_ray.model.denoise import FullRecompute, fill_slots

GROUPS = ("image", "prompt", "tokens", "masks")
"""Of positions: pictures, the words of the prompt, what of the response is committed, and what is
not."""
REACH = 8
"""Positions up to here count as near."""


class Attention(NamedTuple):
    """Of one state of a response; by layer, means over heads and over the masked positions."""

    shares: tuple[tuple[float, ...], ...]
    """By layer, of GROUPS."""
    even: tuple[float, ...]
    """What GROUPS would get if all positions weighed the same."""
    near: tuple[float, ...]
    """By layer, the share of positions at most REACH away."""
    spread: tuple[float, ...]
    """By layer, exp(entropy) over the number of positions."""


def attention_of(
    denoiser: FullRecompute,
    x: Tensor,
    spec: SampleSpec,
    prompt_ids: Sequence[int],
    features: Sequence[Features],
) -> Attention:
    """One forward pass over a state.

    Args:
        denoiser: exact, of one row.
        x: int64[1, L], the mask's id where it stands, at one position at least.
        prompt_ids: with IMAGE_SLOTs.
        features: of the pictures in the slots.

    Raises DataError E1305 for numbers that are not finite.
    """
    model = denoiser.model
    masked = x[0] == spec.mask_id
    one = denoiser.one_pass(0, x[0].to(model.device), masked.nonzero().flatten().to(model.device))
    words = torch.ones(sum(token != IMAGE_SLOT for token in prompt_ids), dtype=torch.int64)
    pictures = [torch.zeros(len(f.tokens), dtype=torch.int64) for f in features]
    prompt = fill_slots(torch.tensor(prompt_ids), words, pictures)
    suffix = torch.full((len(spec.suffix_ids),), 2)
    groups = torch.cat((prompt, 2 + masked.long(), suffix)).to(model.device)  # [S]
    found = shares(model.model, one.embeds, one.positions, groups, one.ends, REACH)
    if not bool(found.groups.isfinite().all()):
        raise DataError("E1305", "NaN or infinity in the attention of a state.")
    counts = torch.bincount(groups, minlength=len(GROUPS)) / len(groups)
    return Attention(
        tuple(tuple(row) for row in found.groups.tolist()),
        tuple(counts.tolist()),
        tuple(found.near.tolist()),
        tuple(found.spread.tolist()),
    )
