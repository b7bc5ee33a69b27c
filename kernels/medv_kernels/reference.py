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

from medv_kernels.linear import PackedWeight, linear
from medv_kernels.reference_odds import choose

PIECE = 64
"""Rows whose logits exist at the same time."""


class Selection(NamedTuple):
    """The token of each row and how sure it is."""

    token: Tensor
    """int64[N], chosen id."""
    rest: Tensor
    """float64[N], odds against it: 0 is certain, inf is probability 0."""


@torch.no_grad()
def select(
    rows: Tensor,
    head: Tensor | PackedWeight | None = None,
    *,
    forbidden: Sequence[int] = (),
    unranked: Sequence[int] = (),
    temperature: float = 0.0,
    uniform: Tensor | None = None,
    logit_size: int | None = None,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    k: int | None = None,
) -> Selection:
    """Choose a token for every row.

    Args:
        rows: float[N, D] last hidden states with head float[V, D]; or, without head, the logits
            float[N, V].
        forbidden: ids that leave both the argmax and the sum.
        unranked: ids that leave only the sum, after the argmax; a row whose token is one of them
            has rest = inf.
        temperature: above 0, `uniform` float64[N, V] in [0, 1) decides among the tokens. `rest`
            stays un-noised.
        logit_size: take part only the first so many rows of the head.
        unconditional: like `rows`, without the prompt; for guidance, which takes
            un + (cfg_scale + 1) (cond - un) for logits.
        k: the rows compete for so many places. `rest` of a row that cannot be among the k smallest
            may be no more than a lower bound, which is above these.

    Raises FloatingPointError for a row with a NaN or infinite logit, or with every token forbidden.
    Neither `rows` nor `head` is changed.
    """
    if temperature > 0 and uniform is None and len(rows):
        raise ValueError(f"temperature={temperature} needs `uniform`, one draw per row and token")
    if isinstance(head, Tensor):
        head = head[:logit_size]
    written = len(forbidden) > 0 or unconditional is not None
    parts = []
    for start in range(0, len(rows), PIECE):
        piece = slice(start, start + PIECE)
        logits = _logits(rows[piece], head, logit_size, written)
        if unconditional is not None:
            base = _logits(unconditional[piece], head, logit_size, True)
            logits = base.add_(logits.sub_(base), alpha=cfg_scale + 1)
        if forbidden:
            logits[:, list(forbidden)] = -torch.inf
        draws = uniform[piece] if uniform is not None and temperature > 0 else None
        parts.append(Selection(*choose(logits, list(unranked), temperature, draws, k)))
    return join(parts, rows.device)


def join(parts: Sequence[Selection], device: torch.device) -> Selection:
    """The selections of pieces of rows as one; of no pieces, an empty one."""
    token, rest = torch.empty(0, device=device).long(), torch.empty(0, device=device).double()
    return Selection(
        torch.cat([token, *(part.token for part in parts)]),
        torch.cat([rest, *(part.rest for part in parts)]),
    )


def commit(
    x: Tensor, eligible: Tensor, token: Tensor, rest: Tensor, k: Tensor | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The new x int64[B, L] and which positions were chosen, bool[B, L]; `x` is not changed.

    Row b takes `token` at its k[b] eligible positions of smallest `rest`, ties to the lowest
    position; all eligible ones where there are fewer than k[b].

    Args:
        x, token: int64[B, L].  eligible: bool[B, L].  k: int64[B].
        rest: float[B, L], any key that ranks ascending; ignored where not eligible.
    """
    k = torch.as_tensor(k, device=x.device)
    # an eligible position of probability 0 still goes before one that is not eligible
    key = rest.clamp(max=torch.finfo(rest.dtype).max).masked_fill_(~eligible, torch.inf)
    first = torch.arange(x.shape[1], device=x.device) < k[:, None]  # [B, L], in order of rank
    chosen = torch.zeros_like(eligible).scatter_(1, key.argsort(dim=1, stable=True), first)
    chosen &= eligible
    return torch.where(chosen, token, x), chosen


def _logits(
    rows: Tensor, head: Tensor | PackedWeight | None, logit_size: int | None, written: bool
) -> Tensor:
    """float32[n, V], a tensor of its own where it is to be `written` to."""
    if head is None:
        return rows[:, :logit_size].to(torch.float32, copy=written)
    return linear(rows, head)[:, :logit_size].float()
