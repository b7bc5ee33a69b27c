"""Choices: how likely each of some allowed answers is, without sampling.

A choice stands at the first positions of the response, with the stop sequence behind it; the other
positions stay masked, as they are when an answer begins. Its tokens are taken one by one, at each
pass the one that is likeliest where it is to stand, and the log-probabilities add up. The first
pass is the same for all choices. Where all have one token, it is the only one, and the stop
sequence, which would say nothing of them, is left out.

Shapes: L response positions, V vocabulary, C choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medv_ray.diffusion.sample import Denoise
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import DataError


class Choice(NamedTuple):
    """One allowed answer."""

    text: str
    log_likelihood: float
    probability: float
    """Among the choices."""


def check(texts: Sequence[str], ids: Sequence[Sequence[int]], spec: SampleSpec) -> None:
    """Raises DataError E1308 for choices that cannot be told apart, or cannot stand."""
    end = len(_end(spec))
    for number, one in enumerate(ids, 1):
        if not one:
            said = f"choice {number} has no text"
        elif len(one) + end > spec.gen_length:
            said = f"choice {number} has {len(one)} tokens, too many for {spec.gen_length}"
        elif {*one} & {*spec.excluded, spec.mask_id}:
            said = f"choice {number} has a token of sampler.forbidden"
        elif tuple(one) in {tuple(other) for other in ids[: number - 1]}:
            said = f"choice {number} has the tokens of an earlier one"
        else:
            continue
        raise DataError("E1308", f"{said}.")
    if len(texts) < 2:
        raise DataError("E1308", "two choices at least are needed.")


@torch.inference_mode()
def score(
    denoise: Denoise, spec: SampleSpec, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[Choice]:
    """Choices in their order, C of them.

    Args:
        denoise: of one row, prompt and pictures bound.
        ids: tokens of each choice, checked by `check`.

    Raises DataError E1305 for logits that are not finite.
    """
    alone = all(len(one) == 1 for one in ids)
    whole = [[*one, *(() if alone else _end(spec))] for one in ids]
    device = denoise.head.device
    blank = torch.full((1, spec.gen_length), spec.mask_id, device=device)
    first = _log_probabilities(denoise, spec, blank, max(map(len, whole)))
    likelihoods = []
    for tokens in whole:
        x, left, total, odds = blank.clone(), dict(enumerate(tokens)), 0.0, first
        while left:
            best = max(left, key=lambda i: (float(odds[i, left[i]]), -i))
            total += float(odds[best, left[best]])
            x[0, best] = left.pop(best)
            if left:
                odds = _log_probabilities(denoise, spec, x, len(tokens))
        likelihoods.append(total)
    highest = max(likelihoods)
    shares = [math.exp(one - highest) for one in likelihoods]
    return [
        Choice(text, one, share / sum(shares))
        for text, one, share in zip(texts, likelihoods, shares, strict=True)
    ]


def _end(spec: SampleSpec) -> tuple[int, ...]:
    """The stop sequence that stands behind a choice, where there is one that may stand."""
    end = spec.stop_ids[0] if spec.stop_ids else ()
    return () if {*end} & {*spec.excluded, spec.mask_id} else end


def _log_probabilities(denoise: Denoise, spec: SampleSpec, x: Tensor, count: int) -> Tensor:
    """float64[count, V] of the first positions; of tokens that may not stand, minus infinity."""
    need = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    need[0, :count] = True
    logits = (denoise(x, need) @ denoise.head.T).double()
    if not bool(logits.isfinite().all()):
        raise DataError("E1305", "NaN or infinity where choices are compared.")
    logits[:, [*spec.excluded, spec.mask_id]] = -torch.inf
    return logits.log_softmax(1).cpu()
