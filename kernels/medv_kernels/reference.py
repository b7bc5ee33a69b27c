"""One denoising step in plain torch: rows to tokens and their odds, and which positions commit.

    l[n, v]    = head[v] . rows[n]; forbidden ids at -inf
    token[n]   = argmax_v l[n, v], or of exp(l[n, v]) / (-log u[n, v])^T at temperature T > 0;
                 the lowest id on ties
    rest[n]    = sum over v != token[n] of exp(l[n, v] - l[n, token[n]])
    confidence = 1 / (1 + rest)

Positions are ranked by `rest`, ascending. In float32 a probability saturates at 1 and ties; the sum
of the *other* exponentials does not. Ties go to the lowest position; torch.topk leaves them open.

Shapes: N rows, D width, V vocabulary, B batch rows, L positions.
Numerics: float32 whatever the dtype of the head; the Gumbel score in float64.
Memory: PIECE x V float32 for the logits of a piece of rows; see also reference_odds.py.
Source: ML-GSAI/LLaDA generate.py (low_confidence); LLaDA-MedV supplement, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medv_kernels import noise
from medv_kernels.linear import PackedWeight, linear
from medv_kernels.reference_commit import (
    ResponseState,
    accepted_by_factor,
    accepted_by_threshold,
    commit,
    commit_step,
    find_stop,
)

__all__ = [
    "ResponseState",
    "Selection",
    "accepted_by_factor",
    "accepted_by_threshold",
    "commit",
    "commit_step",
    "find_stop",
    "join",
    "select",
]
from medv_kernels.reference_odds import choose

PIECE = 64
"""Rows whose logits exist at the same time."""


class Selection(NamedTuple):
    """The token of each row and how sure it is."""

    token: Tensor
    """int64[N], chosen id."""
    rest: Tensor
    """float64[N], odds against it: 0 is certain, inf is probability 0."""
    gap: Tensor | None = None
    """float64[N], its logit minus that of the best other allowed token, where that was asked for:
    0 on a tie, below 0 where a draw chose another than the best."""


@torch.no_grad()
def select(
    rows: Tensor,
    head: Tensor | PackedWeight | None = None,
    *,
    forbidden: Sequence[int] = (),
    unranked: Sequence[int] = (),
    temperature: float = 0.0,
    uniform: Tensor | None = None,
    keys: Tensor | None = None,
    logit_size: int | None = None,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    second: bool = False,
    check: bool = True,
    k: int | None = None,
    allowed: Tensor | None = None,
) -> Selection:
    """Choose a token for every row.

    Args:
        rows: float[N, D] last hidden states with head float[V, D]; or, without head, the logits
            float[N, V].
        forbidden: ids that leave both the argmax and the sum.
        unranked: ids that leave only the sum, after the argmax; a row whose token is one of them
            has rest = inf.
        temperature: above 0, `uniform` float64[N, V] in [0, 1) decides among the tokens, or the
            draws that `keys` int64[N] stand for (see noise.py). `rest` stays un-noised.
        logit_size: take part only the first so many rows of the head.
        unconditional: like `rows`, without the prompt; for guidance, which takes
            un + (cfg_scale + 1) (cond - un) for logits.
        second: find the best other token too, and with it `gap`.
        check: False does not raise for a row without an answer (below): its token is 0, its `rest`
            NaN.
        k: the rows compete for so many places. `rest` of a row that cannot be among the k smallest
            may be no more than a lower bound, which is above these.
        allowed: bool[N, V], ids that may be chosen; others are forbidden to that row.

    Raises FloatingPointError for a row with a NaN or infinite logit, or with every token forbidden.
    Neither `rows` nor `head` is changed.
    """
    check_draws(temperature, uniform, keys, len(rows))
    if isinstance(head, Tensor):
        head = head[:logit_size]
    written = len(forbidden) > 0 or unconditional is not None or allowed is not None
    parts = []
    for start in range(0, len(rows), PIECE):
        piece = slice(start, start + PIECE)
        logits = _logits(rows[piece], head, logit_size, written)
        if unconditional is not None:
            base = _logits(unconditional[piece], head, logit_size, True)
            logits = base.add_(logits.sub_(base), alpha=cfg_scale + 1)
        if forbidden:
            logits[:, list(forbidden)] = -torch.inf
        draws = None if uniform is None or temperature == 0 else uniform[piece]
        if keys is not None and temperature > 0:
            draws = noise.uniform(keys[piece], logits.shape[1])
        if allowed is not None:
            logits.masked_fill_(~allowed[piece, : logits.shape[1]], -torch.inf)
        before = logits.clone() if second else None
        part = Selection(*choose(logits, list(unranked), temperature, draws, k, check))
        if before is not None:
            gap = _gap(before, part.token)
            part = part._replace(gap=gap.masked_fill(part.rest.isnan(), torch.nan))
        parts.append(part)
    return join(parts, rows.device, second)


def check_draws(temperature: float, uniform: Tensor | None, keys: Tensor | None, rows: int) -> None:
    """Raises ValueError where `select` has no draws for its temperature, or two kinds of them:
    `uniform` float[N, V] and `keys` int64[N]."""
    if uniform is not None and keys is not None:
        raise ValueError("give `uniform` or `keys`, not both")
    if temperature > 0 and uniform is None and keys is None and rows:
        raise ValueError(
            f"temperature={temperature} needs `uniform`, one draw per row and token, or `keys`"
        )


def join(parts: Sequence[Selection], device: torch.device, second: bool = False) -> Selection:
    """The selections of pieces of rows as one; of no pieces, an empty one."""
    if len(parts) == 1:
        return parts[0]
    token, number = torch.empty(0, device=device).long(), torch.empty(0, device=device).double()
    gaps = [part.gap for part in parts if part.gap is not None]
    return Selection(
        torch.cat([token, *(part.token for part in parts)]),
        torch.cat([number, *(part.rest for part in parts)]),
        torch.cat([number, *gaps]) if second else None,
    )


def _logits(
    rows: Tensor, head: Tensor | PackedWeight | None, logit_size: int | None, written: bool
) -> Tensor:
    """float32[n, V], a tensor of its own where it is to be `written` to."""
    if head is None:
        return rows[:, :logit_size].to(torch.float32, copy=written)
    return linear(rows, head)[:, :logit_size].float()


def _gap(logits: Tensor, token: Tensor) -> Tensor:
    """float64[n], the token's logit minus the largest other one. Overwrites the logits."""
    own = logits.gather(1, token[:, None])[:, 0].double()
    return own - logits.scatter_(1, token[:, None], -torch.inf).amax(1).double()
