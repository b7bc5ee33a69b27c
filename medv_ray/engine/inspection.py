"""Why a token: alternatives at one position of a state, and where in the pictures it looks.

Shapes: P prompt positions, L response positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medv_ray.canvases import TileSettings
from medv_ray.diffusion.canvas import as_mask
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.images import Features
from medv_ray.errors import DataError
from medv_ray.markers import IMAGE_SLOT
from medv_ray.model.attention import look
from medv_ray.model.denoise import FullRecompute, splice_ends
from medv_ray.model.medv import Medv

ALTERNATIVES = 5
LAYERS = 4
"""Whose attention is averaged: the last ones, where a picture's tokens have met the question."""


@dataclass(frozen=True)
class ImageAttention:
    """Attention over one picture, by patches of the tile that shows all of it."""

    weights: tuple[tuple[float, ...], ...]
    """Rows from the top, left to right; shares of the position's whole attention."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the patches, as fractions of the picture: a padded picture's
    reach beyond it."""


@dataclass(frozen=True)
class Inspection:
    """One position of an answer that is not whole."""

    ids: tuple[int, ...]
    """The likeliest tokens, the first first."""
    probabilities: tuple[float, ...]
    images: tuple[ImageAttention, ...]


def state_of(ids: Sequence[int | None], position: int, spec: SampleSpec, vocab_size: int) -> Tensor:
    """int64[1, L] of a state, None as the mask's id. Raises DataError E1001 where it is none."""
    known = [spec.mask_id if token is None else token for token in ids]
    if len(known) != spec.gen_length or max(known) >= vocab_size or ids[position] is not None:
        raise DataError(
            "E1001",
            f"a state has gen_length={spec.gen_length} tokens, ids below {vocab_size}, and the "
            "mask at the position that is asked about.",
        )
    return torch.tensor([known])


def inspect_position(
    model: Medv,
    denoiser: FullRecompute,
    x: Tensor,
    position: int,
    spec: SampleSpec,
    prompt_ids: Sequence[int],
    features: Sequence[Features],
    tiles: TileSettings | None,
    allowed: Collection[int] | Tensor | None = None,
) -> Inspection:
    """One forward pass over a state.

    Args:
        denoiser: exact, of one row.
        x: int64[1, L], the mask's id where it stands.
        prompt_ids: with IMAGE_SLOTs.
        features: of the pictures in the slots.
        tiles: how pictures are cut; None where there are none.
        allowed: the only tokens that the position may take, as in `Canvas.allowed`.

    Raises DataError E1305 for logits that are not finite.
    """
    asked = torch.tensor([position], device=model.device)
    one = denoiser.one_pass(0, x[0].to(model.device), asked)
    hidden, attention = look(model.model, one.embeds, int(one.positions[0]), one.ends, LAYERS)
    logits = (model.head @ hidden).double()  # [V]
    if not bool(logits.isfinite().all()):
        raise DataError("E1305", "NaN or infinity in the state that was asked about.")
    logits[list(spec.excluded)] = -torch.inf
    if allowed is not None:
        logits.masked_fill_(~as_mask(allowed, len(logits)).to(logits.device), -torch.inf)
    best = logits.softmax(0).topk(min(ALTERNATIVES, int(logits.isfinite().sum())))
    images = []
    slots = [i for i, token in enumerate(prompt_ids) if token == IMAGE_SLOT]
    starts = splice_ends(torch.tensor(prompt_ids), [f.tokens for f in features], slots)
    for start, one_image in zip(starts, features, strict=True):
        assert tiles is not None
        images.append(_of_image(attention, start, one_image, tiles, len(features) > 1, model))
    return Inspection(tuple(best.indices.tolist()), tuple(best.values.tolist()), tuple(images))


def _of_image(
    attention: Tensor,
    start: int,
    features: Features,
    tiles: TileSettings,
    several: bool,
    model: Medv,
) -> ImageAttention:
    assert model.config.vision is not None
    side = model.config.vision.side
    # the tokens of the whole picture come first, whatever tiles follow
    weights = attention[start : start + side * side].reshape(side, side).tolist()
    width, height = features.size_wh
    padded = several or tiles.aspect == "pad"
    longer = max(width, height) if padded else 0
    over_x, over_y = max(0, longer - width) / 2 / width, max(0, longer - height) / 2 / height
    return ImageAttention(
        tuple(tuple(row) for row in weights), (0.0 - over_x, 0.0 - over_y, 1 + over_x, 1 + over_y)
    )
