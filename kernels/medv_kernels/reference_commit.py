"""Which positions of a step take their token, in plain torch; and a whole step, in place.

Every rule is a number of accepted ranks, counted from 1 in the order of `rest` ascending, ties to
the lowest position:

    k          the first k[b]
    threshold  those with confidence >= threshold, at least one
    factor f   rank r passes if confidence >= 1 - f / (r + 1), rank 1 always; accepted are the ranks
               before the first that fails, or all where that is the very last of `num_masks`

    confidence = 1 / (1 + rest), float64; never more are accepted than are eligible.

Shapes: B rows, L positions. Nothing here reads a number back from the device.
Source: Fast-dLLM, get_transfer_index and its factor rule; LLaDA-V generate_with_embeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORST = torch.finfo(torch.float64).max


def commit(
    x: Tensor,
    eligible: Tensor,
    token: Tensor,
    rest: Tensor,
    k: Tensor | Sequence[int] | None = None,
    *,
    threshold: float | None = None,
    factor: float | None = None,
    num_masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The new x int64[B, L] and which positions were chosen, bool[B, L]; `x` is not changed.

    Args:
        x, token: int64[B, L].  eligible: bool[B, L].
        rest: float[B, L], odds; with `k`, any key that ranks ascending. Ignored where not eligible;
            a position whose rest is NaN is never chosen.
        k: int64[B].  threshold, factor: see the module. Exactly one of the three is given.
        num_masks: int64[B], at least the eligible count and by default that; for `factor`.
    """
    check_rule(k, threshold, factor)
    able = eligible & ~rest.isnan()
    if k is not None:
        count = torch.as_tensor(k, device=x.device)
    elif threshold is not None:
        count = accepted_by_threshold(rest, able, threshold)
    else:
        assert factor is not None
        count = accepted_by_factor(rest, able, factor, num_masks)
    chosen = _best(rest, able, count)
    return torch.where(chosen, token, x), chosen


def check_rule(k: object, threshold: object, factor: object, key: object = None) -> None:
    """Raises ValueError unless exactly one rule is given, and with a `key` that is k."""
    given = [
        name
        for name, v in (("k", k), ("threshold", threshold), ("factor", factor))
        if v is not None
    ]
    if len(given) != 1:
        raise ValueError(f"give one of k, threshold and factor, not {given or 'none of them'}")
    if key is not None and k is None:
        raise ValueError(f"{given[0]} goes by the odds: a key goes with k")


def accepted_by_threshold(rest: Tensor, eligible: Tensor, threshold: float | Tensor) -> Tensor:
    """int64[B]: eligible positions of confidence >= threshold, at least one where any is eligible.

    Args:
        rest: float[B, L].  eligible: bool[B, L].  threshold: a number, or float64[B, 1].
    """
    sure = (eligible & (confidence_of(rest) >= threshold)).sum(1)
    return torch.maximum(sure, eligible.any(1).long())


def accepted_by_factor(
    rest: Tensor, eligible: Tensor, factor: float | Tensor, num_masks: Tensor | None = None
) -> Tensor:
    """int64[B]: the ranks before the first that fails; see the module. As for `commit`, else."""
    num_eligible = eligible.sum(1)
    num_masks = num_eligible if num_masks is None else num_masks
    ranked = confidence_of(rest).masked_fill(~eligible, -1.0).sort(1, descending=True).values
    rank = torch.arange(1, rest.shape[1] + 1, device=rest.device)
    passes = (ranked >= 1 - factor / (rank + 1).double()) | (rank == 1)
    passes &= rank <= num_eligible[:, None]
    before = passes.long().cumprod(1).sum(1)  # ranks before the first failure
    return torch.minimum(torch.where(before + 1 >= num_masks, num_masks, before), num_eligible)


def confidence_of(rest: Tensor) -> Tensor:
    """1 / (1 + rest) of any float[...], in float64."""
    return 1 / (1 + rest.double())


def _best(rest: Tensor, able: Tensor, count: Tensor) -> Tensor:
    """bool[B, L], the count[b] positions of smallest `rest` among those that are able."""
    # an eligible position of probability 0 still goes before one that is not eligible
    key = torch.where(able, rest.double().clamp(max=WORST), torch.inf)
    first = torch.arange(rest.shape[1], device=rest.device) < count[:, None]  # in order of rank
    chosen = torch.empty_like(able).scatter_(1, key.argsort(dim=1, stable=True), first)
    return chosen.logical_and_(able)


@dataclass
class ResponseState:
    """Responses that are being denoised, on the device. Rows share nothing."""

    x: Tensor
    """int64[B, L], tokens now."""
    masked: Tensor
    """bool[B, L]."""
    stop: Tensor
    """int64[B], where the first stop sequence begins; L where none was found."""
    token_confidence: Tensor
    """float32[B, L], probability of each token when it was committed, 0 where none was."""
    token_step: Tensor
    """int32[B, L], the row's step at that time, -1 where none was."""
    failed: Tensor
    """bool[B], a row that needed odds and got NaN; that step changed nothing of it."""

    @classmethod
    def begin(cls, x: Tensor, masked: Tensor) -> ResponseState:
        """Rows before their first step; x int64[B, L] and masked bool[B, L] become its own."""
        rows, length = x.shape
        return cls(
            x.contiguous(),
            masked.contiguous(),
            torch.full((rows,), length, device=x.device),
            torch.zeros(x.shape, dtype=torch.float32, device=x.device),
            torch.full(x.shape, -1, dtype=torch.int32, device=x.device),
            torch.zeros(rows, dtype=torch.bool, device=x.device),
        )


@torch.no_grad()
def commit_step(
    state: ResponseState,
    token: Tensor,
    rest: Tensor,
    limit: Tensor,
    step: Tensor,
    k: Tensor | None = None,
    *,
    mask_id: int,
    key: Tensor | None = None,
    stop_ids: Sequence[Sequence[int]] = (),
    start: int = 0,
    threshold: Tensor | None = None,
    factor: Tensor | None = None,
    num_masks: Tensor | None = None,
) -> None:
    """Take one step of every row, in place. Masked positions before a row's limit may be committed.

    A committed mask token leaves its position masked. Stop sequences are tried in order until a
    stop is known, so later only the first can move it, and only to the left.

    Args:
        token: int64[B, L] and rest: float[B, L] of this step; ignored where nothing may be
            committed.
        limit: int64[B], one past the last position that may be; 0 for a row that takes no step.
        step: int64[B], the number that committed positions get for `token_step`.
        k: int64[B], how many are committed. Or `threshold` or `factor`, float64[B], as in `commit`.
        key: float[B, L], what is ranked, ascending, in place of `rest`; with `k`.
        stop_ids: the stop sequences.
        start: stop sequences are looked for from this position on.
        num_masks: int64[B], for `factor`, as in `commit`.
    """
    check_rule(k, threshold, factor, key)
    places = torch.arange(state.x.shape[1], device=state.x.device)
    eligible = state.masked & (places < limit[:, None])
    bad = (eligible & rest.isnan()).any(1)
    state.failed |= bad
    eligible &= ~bad[:, None]
    if k is not None:
        count = k
    elif threshold is not None:
        count = accepted_by_threshold(rest, eligible, threshold[:, None])
    else:
        assert factor is not None
        count = accepted_by_factor(rest, eligible, factor[:, None], num_masks)
    chosen = _best(rest if key is None else key, eligible, count)
    torch.where(chosen, token, state.x, out=state.x)
    landed = (token != mask_id).logical_and_(chosen)
    torch.gt(state.masked, landed, out=state.masked)
    confidence = confidence_of(rest).float()
    torch.where(chosen, confidence, state.token_confidence, out=state.token_confidence)
    torch.where(chosen, step.int()[:, None], state.token_step, out=state.token_step)
    find_stop(state.x, stop_ids, state.stop, start)


def find_stop(x: Tensor, sequences: Sequence[Sequence[int]], stop: Tensor, start: int = 0) -> None:
    """Where each row of int64[B, L] is cut, from position `start` on, given int64[B] where it was
    cut before, L where nowhere; in place.

    The sequences are tried in order until a cut is known. So once there is one, only the first
    sequence can move it, and only to the left: the reference's rule, which may keep a later cut
    than a fresh search would find.
    Source: LLaDA-V generate_with_embeds.
    """
    length, more = x.shape[1], None
    for sequence in sequences:
        if 0 < len(sequence) <= length - start:
            hits = x[:, start : length - len(sequence) + 1] == sequence[0]
            for offset, token in enumerate(sequence[1:], start=1):
                end = length - len(sequence) + 1 + offset
                hits &= x[:, start + offset : end] == token
            places = torch.arange(start, start + hits.shape[1], device=x.device)
            first = torch.where(hits, places, length).amin(1)
            if more is not None:  # rows whose cut is known do not try it
                first = torch.where(more, first, length)
            torch.minimum(stop, first, out=stop)
        if len(sequences) > 1:
            more = stop == length
