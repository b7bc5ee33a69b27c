"""Which positions of a step take their token, in plain torch; and a whole step of a block.

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


def check_rule(k: object, threshold: float | None, factor: float | None) -> None:
    """Raises ValueError unless exactly one rule is given."""
    given = [
        name
        for name, v in (("k", k), ("threshold", threshold), ("factor", factor))
        if v is not None
    ]
    if len(given) != 1:
        raise ValueError(f"give one of k, threshold and factor, not {given or 'none of them'}")


def accepted_by_threshold(rest: Tensor, eligible: Tensor, threshold: float) -> Tensor:
    """int64[B]: eligible positions of confidence >= threshold, at least one where any is eligible.

    Args:
        rest: float[B, L].  eligible: bool[B, L].
    """
    sure = (eligible & (confidence_of(rest) >= threshold)).sum(1)
    return torch.maximum(sure, eligible.any(1).long())


def accepted_by_factor(
    rest: Tensor, eligible: Tensor, factor: float, num_masks: Tensor | None = None
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
    """1 / (1 + rest) in float64."""
    return 1 / (1 + rest.double())


def _best(rest: Tensor, able: Tensor, count: Tensor) -> Tensor:
    """bool[B, L], the count[b] positions of smallest `rest` among those that are able."""
    # an eligible position of probability 0 still goes before one that is not eligible
    worst = torch.finfo(torch.float64).max
    key = rest.double().clamp(max=worst).masked_fill_(~able, torch.inf)
    first = torch.arange(rest.shape[1], device=rest.device) < count[:, None]  # in order of rank
    return torch.zeros_like(able).scatter_(1, key.argsort(dim=1, stable=True), first) & able


@dataclass
class BlockState:
    """Rows in the middle of a block, on the device. Rows share nothing."""

    x: Tensor
    """int64[B, L], tokens now; positions count from the start of the answer."""
    masked: Tensor
    """bool[B, L]."""
    block_start: Tensor
    """int64[B], first position of the row's block."""
    block_end: Tensor
    """int64[B], one past its last."""
    stop: Tensor
    """int64[B], where the first stop sequence begins; L where none was found."""
    step: Tensor
    """int64[B], steps taken in this block."""
    total: Tensor
    """int64[B], steps taken in all blocks."""
    token_confidence: Tensor
    """float32[B, L], probability of each token when it was committed, 0 where none was."""
    token_step: Tensor
    """int32[B, L], `total` at that time, -1 where none was."""
    failed: Tensor
    """bool[B], a row that needed odds and got NaN; nothing of it changes any more."""
    left: Tensor
    """int64[B], masks that keep the block going: those before the stop, or the block's own where
    there is none. 0 where the block is over, for want of steps or after a failure too."""

    @classmethod
    def begin(cls, x: Tensor, masked: Tensor, start: Tensor, end: Tensor) -> BlockState:
        """Rows before their first step in the block [start, end); x and masked become its own."""
        rows, length = x.shape
        zero = torch.zeros(rows, dtype=torch.int64, device=x.device)
        state = cls(
            *(x.contiguous(), masked.contiguous(), start.clone(), end.clone()),
            *(zero + length, zero, zero.clone()),
            torch.zeros(x.shape, dtype=torch.float32, device=x.device),
            torch.full(x.shape, -1, dtype=torch.int32, device=x.device),
            *(zero.bool(), zero.clone()),
        )
        state.left = _left(state)
        return state

    def enter_block(self, which: Tensor, start: Tensor, end: Tensor) -> None:
        """Move the rows of bool[B] `which` to the block [start, end), int64[B], before its first
        step; in place and on the device.
        """
        self.block_start.copy_(torch.where(which, start, self.block_start))
        self.block_end.copy_(torch.where(which, end, self.block_end))
        self.step.masked_fill_(which, 0)
        self.left.copy_(torch.where(which & ~self.failed, _left(self), self.left))


@torch.no_grad()
def commit_step(
    state: BlockState,
    token: Tensor,
    rest: Tensor,
    k: Tensor | None = None,
    *,
    mask_id: int,
    stop_ids: Sequence[Sequence[int]] = (),
    threshold: float | None = None,
    factor: float | None = None,
    num_masks: Tensor | None = None,
    steps: int | None = None,
) -> None:
    """Take one step of every row's block, in place. A row whose block is over is left as it is.

    Positions before the stop, or before the block's end where there is none, may be committed. A
    committed mask token leaves its position masked. Stop sequences are tried in order until a stop
    is known, so later only the first can move it, and only to the left.

    Args:
        token: int64[B, L] and rest: float[B, L] of this step; ignored where not eligible.
        k: int64[B, steps], how many row b commits at its step. Or `threshold` or `factor`, as in
            `commit`.
        stop_ids: the stop sequences.
        steps: with threshold or factor, the most steps of a block; by default no limit.
    """
    check_rule(k, threshold, factor)
    steps = steps if k is None else k.shape[1]
    eligible = state.masked & (_places(state) < _limit(state)[:, None])
    active = ~state.failed & (state.left > 0)
    now, needed = None, active
    if k is not None:
        now = k.gather(1, state.step.clamp(max=k.shape[1] - 1)[:, None])[:, 0]
        needed = active & (now > 0)
    state.failed |= needed & (eligible & rest.isnan()).any(1)
    active = active & ~state.failed
    able = eligible & active[:, None]
    new, chosen = commit(
        *(state.x, able, token, rest, now),
        threshold=threshold,
        factor=factor,
        num_masks=num_masks,
    )
    state.x.copy_(new)
    state.masked &= ~chosen | (new == mask_id)
    state.token_confidence.copy_(
        torch.where(chosen, confidence_of(rest).float(), state.token_confidence)
    )
    state.token_step.copy_(torch.where(chosen, state.total.int()[:, None], state.token_step))
    state.stop.copy_(torch.where(active, _find_stop(new, stop_ids, state.stop), state.stop))
    state.step += active
    state.total += active
    over = state.failed if steps is None else state.failed | (state.step >= steps)
    left = torch.where(active, _left(state), state.left)
    state.left.copy_(left.masked_fill(over, 0))


def _places(state: BlockState) -> Tensor:
    return torch.arange(state.x.shape[1], device=state.x.device)


def _limit(state: BlockState) -> Tensor:
    """int64[B], one past the last position that may be committed."""
    return torch.where(state.stop < state.x.shape[1], state.stop, state.block_end)


def _left(state: BlockState) -> Tensor:
    """int64[B], masks between the block's start (0 once a stop is known) and the limit."""
    start = torch.where(state.stop < state.x.shape[1], 0, state.block_start)
    inside = (_places(state) >= start[:, None]) & (_places(state) < _limit(state)[:, None])
    return (state.masked & inside).sum(1)


def _find_stop(x: Tensor, sequences: Sequence[Sequence[int]], stop: Tensor) -> Tensor:
    """int64[B], where each row of x is cut, given where it was cut before; L where nowhere."""
    rows, length = x.shape
    open_ = torch.ones(rows, dtype=torch.bool, device=x.device)  # rows that try this sequence
    for sequence in sequences:
        if 0 < len(sequence) <= length:
            windows = x.unfold(1, len(sequence), 1)  # [B, L - m + 1, m]
            hits = (windows == torch.tensor(sequence, device=x.device)).all(2)
            places = torch.arange(hits.shape[1], device=x.device)
            first = places.expand_as(hits).masked_fill(~hits, length).amin(1)
            stop = torch.where(open_, torch.minimum(stop, first), stop)
        open_ = open_ & (stop == length)
    return stop
