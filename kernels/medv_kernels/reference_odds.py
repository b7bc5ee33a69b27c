"""Token and odds of rows of logits, for `select`; and the odds of few rows where k places are to
be filled.

    low[n] = sum over chunks c of V without the token of max over c of exp(l[n, v] - l[n, token[n]])

is at most `rest[n]`, and comes with the maxima that the argmax takes. The k rows of smallest `low`
are summed; a row whose `low` is above all of these sums cannot be among the k best and needs none.

Shapes: n rows, V vocabulary, M maxima of chunks.
Numerics: float32, odds within 1e-6 of themselves; the rows around the k-th place in float64 where
float32 might not tell them apart. Memory: SLICE_BYTES of exponentials.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SLICE_BYTES = 2**21
"""Size of the exponentials that exist at the same time; about the cache of one core."""
CHUNK = 128
"""Columns that share one maximum."""
BOUND_ERROR = 1e-4
"""Relative; far above what float32 does to `low`."""
CLOSE = 1e-5
"""Odds that differ by less, relatively, are compared in float64."""


class Largest(NamedTuple):
    """The largest logit of each row, and of each of its chunks."""

    best: Tensor
    """float32[n]; NaN if the row has one."""
    top: Tensor
    """int64[n], its lowest index."""
    chunk: Tensor
    """int64[n], its index in `maxima`."""
    maxima: Tensor
    """float32[n, M]: one a chunk, then the columns after the last whole chunk."""


def largest(logits: Tensor) -> Largest:
    """Of float32[n, V]. Two levels: torch's argmax of a long row costs eight times its maximum."""
    rows, vocabulary = logits.shape
    chunks = vocabulary // CHUNK
    whole = chunks * CHUNK
    maxima = logits[:, :whole].view(rows, chunks, CHUNK).amax(2)
    maxima = torch.cat([maxima, logits[:, whole:]], dim=1)
    best, chunk = maxima.max(1)
    inside = logits.new_zeros(rows, dtype=torch.int64)
    if chunks:
        columns = torch.arange(CHUNK, device=logits.device)
        columns = chunk.clamp(max=chunks - 1)[:, None] * CHUNK + columns
        inside = logits.gather(1, columns).argmax(1)
    top = torch.where(chunk < chunks, chunk * CHUNK + inside, whole + chunk - chunks)
    return Largest(best, top, chunk, maxima)


def choose(
    logits: Tensor,
    unranked: list[int],
    temperature: float = 0.0,
    uniform: Tensor | None = None,
    k: int | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """Token int64[n] and odds float64[n] of each row of float32[n, V]; see `select`.

    Args:
        uniform: float64[n, V], the draws where the temperature is above 0.
        k: the rows compete for so many places: what cannot be among the k smallest odds may be no
            more than a lower bound of itself.
        check: False gives token 0 and odds NaN to a row whose largest logit is not finite.

    Raises FloatingPointError for such a row.
    """
    found = largest(logits)
    finite = torch.isfinite(found.best)
    if check and not finite.all():
        row = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the largest logit of row {row} of {len(logits)} is {found.best[row].item()}: "
            "the weights or the hidden states are not finite, or every token is forbidden"
        )
    plain = uniform is None and not unranked and logits.device.type == "cpu"
    if k is None or not plain or not 0 < k < len(logits):
        token, rest = _all(logits, found, unranked, temperature, uniform)
    else:
        token, few = found.top, _smallest(logits, found, k)
        rest = _all(logits, found, [], 0.0, None)[1] if few is None else few
        rest = _settle_close(logits, found, rest, k)
    return (token, rest) if check else (token * finite, rest.masked_fill(~finite, torch.nan))


def _all(
    logits: Tensor, found: Largest, unranked: list[int], temperature: float, uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Token int64[n] and odds float64[n] of all rows, a few of them at a time."""
    tokens, rests, height = [], [], _height(logits)
    for start in range(0, len(logits), height):
        some = slice(start, start + height)
        token = top = found.top[some]
        if uniform is not None:
            token = _gumbel(logits[some], found.best[some], temperature, uniform[some])
        tokens.append(token)
        rests.append(_odds(logits[some], found.best[some], top, token, unranked))
    return torch.cat(tokens), torch.cat(rests)


def _smallest(logits: Tensor, found: Largest, k: int) -> Tensor | None:
    """float64[n]: the k smallest odds, and of other rows these or a lower bound; None where that
    is not the faster way: all rows are few, or most of them might be among the k."""
    if _height(logits) >= len(logits) or 2 * k > len(logits):
        return None
    others = (found.maxima - found.best[:, None]).exp_().scatter_(1, found.chunk[:, None], 0.0)
    rest = others.sum(1).double().mul_(1 - BOUND_ERROR)
    low, order = rest.sort()
    rows = order[:k]
    rest[rows] = _odds_of(logits, found, rows)
    rows = order[k:][low[k:] <= rest[rows].max()]  # a place is worth no more than this
    if 2 * len(rows) > len(rest):
        return None
    rest[rows] = _odds_of(logits, found, rows)
    return rest


def _odds_of(logits: Tensor, found: Largest, rows: Tensor) -> Tensor:
    """float64[m], odds of the int64[m] rows."""
    parts, height = [torch.empty(0, dtype=torch.float64)], _height(logits)
    for start in range(0, len(rows), height):
        some = rows[start : start + height]
        top = found.top[some]
        parts.append(_odds(logits.index_select(0, some), found.best[some], top, top, []))
    return torch.cat(parts)


def _height(logits: Tensor) -> int:
    """Rows whose exponentials are made at a time."""
    return max(1, SLICE_BYTES // (4 * logits.shape[1]))


def _settle_close(logits: Tensor, found: Largest, rest: Tensor, k: int) -> Tensor:
    """`rest` with float64 sums where the k-th and the next are too close for float32."""
    ranked = rest.sort().values
    last, following = ranked[k - 1], ranked[k]
    if following - last > CLOSE * following:
        return rest
    for row in ((rest - last).abs() <= CLOSE * following).nonzero().flatten().tolist():
        wide = (logits[row].double() - found.best[row].double()).exp_()
        wide[found.top[row]] = 0.0  # a sum without the winner, as below
        rest[row] = wide.sum()
    return rest


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
    # a sum without the winner, not 1 minus it: that would cancel to nothing
    p.scatter_(1, token[:, None], 0.0)
    if not unranked:
        return p.sum(1).double() / own
    p[:, unranked] = 0.0
    is_unranked = (token[:, None] == torch.tensor(unranked, device=token.device)).any(1)
    return (p.sum(1).double() / own).masked_fill(is_unranked, torch.inf)
