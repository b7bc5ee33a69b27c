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
Memory: PIECE x V float32 for the logits of a piece of rows, SLICE_BYTES for the exponentials.
Source: ML-GSAI/LLaDA generate.py (low_confidence); LLaDA-MedV supplement, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight, linear

PIECE = 64
"""Rows whose logits exist at the same time."""
SLICE_BYTES = 2**21
"""Size of the exponentials that exist at the same time; about the cache of one core."""
CHUNK = 512
"""Columns that share one maximum in the two-level argmax."""


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
    check: bool = True,
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

    Raises FloatingPointError for a row with a NaN or infinite logit, or with every token forbidden.
    Neither `rows` nor `head` is changed.
    """
    if temperature > 0 and uniform is None and len(rows):
        raise ValueError(f"temperature={temperature} needs `uniform`, one draw per row and token")
    if isinstance(head, Tensor):
        head = head[:logit_size]
    parts = []
    for start in range(0, len(rows), PIECE):
        piece = slice(start, start + PIECE)
        logits = _logits(rows[piece], head, logit_size)
        if unconditional is not None:
            base = _logits(unconditional[piece], head, logit_size)
            logits = base.add_(logits.sub_(base), alpha=cfg_scale + 1)
        logits[:, list(forbidden)] = -torch.inf
        draws = uniform[piece] if uniform is not None and temperature > 0 else None
        parts.append(_select_piece(logits, list(unranked), temperature, draws))
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


def accepted_by_threshold(rest: Tensor, eligible: Tensor, threshold: float) -> Tensor:
    """int64[B]: eligible positions of confidence >= threshold, at least one where there is any.

    Args:
        rest: float[B, L].  eligible: bool[B, L].
    """
    confident = eligible & (1 / (1 + rest.double()) >= threshold)
    return confident.sum(1).clamp(min=1).minimum(eligible.sum(1))


def accepted_by_factor(
    rest: Tensor, eligible: Tensor, factor: float, num_masks: Tensor | None = None
) -> Tensor:
    """int64[B]: ranks before the first whose confidence is under 1 - factor / (rank + 1).

    Ranks count from 1, by confidence; the first always passes. Ranks beyond the eligible positions
    fail. As in the references, a first failure at the very last rank is accepted too: of two
    masks both.

    Args:
        rest: float[B, L].  eligible: bool[B, L].
        num_masks: int64[B], ranks in all; by default as many as eligible positions.
    """
    able = eligible.sum(1)
    ranks_in_all = able if num_masks is None else num_masks
    confidence = torch.where(eligible, 1 / (1 + rest.double()), -1.0).sort(1, descending=True)[0]
    rank = torch.arange(1, rest.shape[1] + 1, dtype=torch.float64, device=rest.device)
    passes = (confidence >= 1 - factor / (rank + 1)) & (rank <= able[:, None])
    passes[:, :1] = True
    accepted = passes.long().cumprod(1).sum(1)  # those before the first failure
    accepted = torch.where(accepted == ranks_in_all - 1, ranks_in_all, accepted)
    return accepted.minimum(able)


def _logits(rows: Tensor, head: Tensor | PackedWeight | None, logit_size: int | None) -> Tensor:
    """float32[n, V], a tensor of its own that may be written to."""
    if head is None:
        return rows[:, :logit_size].to(torch.float32, copy=True)
    return linear(rows, head)[:, :logit_size].float()


def _select_piece(
    logits: Tensor, unranked: list[int], temperature: float, uniform: Tensor | None
) -> Selection:
    """Tokens and odds of float32[n, V]; the exponentials of few rows at a time stay in cache."""
    best, top = _max(logits)
    if not torch.isfinite(best).all():
        row = int((~torch.isfinite(best)).nonzero()[0])
        raise FloatingPointError(
            f"the largest logit of row {row} of {len(best)} is {best[row].item()}: "
            "the weights or the hidden states are not finite, or every token is forbidden"
        )
    tokens, rests = [], []
    height = max(1, SLICE_BYTES // (4 * logits.shape[1]))
    for start in range(0, len(logits), height):
        some = slice(start, start + height)
        token = top[some]
        if uniform is not None:
            token = _gumbel(logits[some], best[some], temperature, uniform[some])
        tokens.append(token)
        rests.append(_odds(logits[some], best[some], top[some], token, unranked))
    return Selection(torch.cat(tokens), torch.cat(rests))


def _max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value float32[n] and its lowest index int64[n]; NaN if the row has one.

    Two levels: torch's argmax over a long row costs eight times its maximum.
    """
    rows, vocabulary = logits.shape
    chunks = vocabulary // CHUNK
    whole = chunks * CHUNK
    maxima = logits[:, :whole].view(rows, chunks, CHUNK).amax(2)
    best, chunk = torch.cat([maxima, logits[:, whole:]], dim=1).max(
        1
    )  # the tail's columns stand for themselves
    inside = logits.new_zeros(rows, dtype=torch.int64)
    if chunks:
        columns = chunk.clamp(max=chunks - 1)[:, None] * CHUNK + torch.arange(
            CHUNK, device=logits.device
        )
        inside = logits.gather(1, columns).argmax(1)
    return best, torch.where(chunk < chunks, chunk * CHUNK + inside, whole + chunk - chunks)


def _gumbel(logits: Tensor, best: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """int64[n], argmax of exp(l) / (-log u)^T."""
    # the row's maximum comes off first: that changes no order and keeps exp in range
    score = logits.double().sub_(best[:, None]).exp_()
    return score.div_(uniform.log().neg_().pow_(temperature)).argmax(1)


def _odds(logits: Tensor, best: Tensor, top: Tensor, token: Tensor, unranked: list[int]) -> Tensor:
    """float64[n], `rest` of `token`. `top` is the row's argmax and `best` its logit."""
    # softmax is the cheapest pass over exp(l - max); its normaliser cancels in the ratio below
    p = logits.softmax(1)
    own = p.gather(1, top[:, None])[:, 0].double()
    if token is not top:  # exact where the sampled token is too unlikely for float32
        chosen = logits.gather(1, token[:, None])[:, 0]
        own = own * (chosen.double() - best.double()).exp()
    p.scatter_(
        1, token[:, None], 0.0
    )  # a sum without the winner, not 1 minus it: that would cancel to nothing
    if not unranked:
        return p.sum(1).double() / own
    p[:, unranked] = 0.0
    is_unranked = (token[:, None] == torch.tensor(unranked, device=token.device)).any(1)
    return (p.sum(1).double() / own).masked_fill(is_unranked, torch.inf)
