"""The sampler's state machine for many rows on a device, with one read by the host a step.

For what needs no draws: the most likely token, committed by confidence. Tokens equal those of
`Denoising`, which also does the rest; a row whose model predicts the mask token itself and leaves
its block with masks is handed back.

Shapes: B slots, L response positions, W block, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from medv_kernels.ops import commit_step, select
from medv_kernels.reference import BlockState
from medv_ray.diffusion.schedule import transfer_schedule
from medv_ray.diffusion.spec import SampleSpec


def fits(spec: SampleSpec) -> bool:
    """Whether `Blocks` can do what a spec asks for."""
    return (
        spec.temperature == 0
        and spec.cfg_scale == 0
        and spec.remasking == "low_confidence"
        and spec.noise == "needed"
        and spec.rule != "factor_llada_v"
        and spec.steps_per_block <= spec.block_length  # each step needs the model
        and not spec.run_all_steps
    )


@dataclass
class Row:
    """Where a slot stands, as far as the host knows."""

    block: int = 0
    step: int = 0
    """Within the block."""
    total: int = 0
    stop: int | None = None
    state: Literal["running", "done", "failed", "unfit"] = "running"


class Blocks:
    """Responses in slots. `head` and hidden rows come from outside: see `step`."""

    def __init__(self, spec: SampleSpec, num_slots: int, device: torch.device) -> None:
        """Raises ValueError for a spec that does not fit."""
        if not fits(spec):
            raise ValueError("temperature, guidance and random remasking need Denoising")
        self.spec = spec
        x = torch.full((num_slots, spec.gen_length), spec.mask_id, device=device)
        start = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.state = BlockState.begin(
            x, torch.ones_like(x, dtype=torch.bool), start, start + spec.block_length
        )
        self.state.left.zero_()  # every slot is empty
        self.rows: list[Row | None] = [None] * num_slots
        self._inside = torch.arange(spec.block_length, device=device)
        whole = torch.tensor([spec.block_length])
        schedule = transfer_schedule(whole, spec.steps_per_block)
        self._k = schedule.to(device).expand(num_slots, -1).contiguous()

    def enter(self, slot: int) -> None:
        """A blank response."""
        blank = BlockState.begin(
            torch.full_like(self.state.x[:1], self.spec.mask_id),
            torch.ones_like(self.state.masked[:1]),
            torch.zeros_like(self.state.stop[:1]),
            torch.full_like(self.state.stop[:1], self.spec.block_length),
        )
        for part in fields(BlockState):
            getattr(self.state, part.name)[slot] = getattr(blank, part.name)[0]
        self.rows[slot] = Row()

    def leave(self, slot: int) -> None:
        """Empty a slot."""
        self.state.left[slot] = 0
        self.rows[slot] = None

    @property
    def running(self) -> list[int]:
        """Slots that take steps."""
        return [b for b, row in enumerate(self.rows) if row and row.state == "running"]

    def block(self, slot: int) -> int:
        """Number of the block that a slot is in."""
        row = self.rows[slot]
        return -1 if row is None else row.block

    def windows(self) -> Tensor:
        """int64[B, W], the positions of each slot's block."""
        return self.state.block_start[:, None] + self._inside

    def tokens(self) -> Tensor:
        """int64[B, W], what stands there."""
        return self.state.x.gather(1, self.windows())

    def step(self, hidden: Tensor, head: Tensor, slots: Tensor, taking: Tensor) -> None:
        """Commit one step of some slots. Nothing is read from the device.

        Args:
            hidden: float[n, W, D] of the blocks of `slots`.
            head: float[V, D].
            slots: int64[n].
            taking: bool[B], those of them that take the step.
        """
        spec, state = self.spec, self.state
        windows = self.windows()[slots]
        found = select(
            hidden.flatten(0, 1),
            head,
            forbidden=spec.excluded,
            unranked=spec.unranked,
            logit_size=spec.logit_size,
            check=False,
        )
        token, rest = state.x.clone(), torch.full_like(state.x, torch.nan, dtype=torch.float64)
        token[slots[:, None], windows] = found.token.view(windows.shape)
        rest[slots[:, None], windows] = found.rest.view(windows.shape)
        resting = torch.where(taking, 0, state.left)
        state.left.masked_fill_(~taking, 0)
        commit_step(
            state,
            token,
            rest,
            self._k if spec.rule == "schedule" else None,
            mask_id=spec.mask_id,
            stop_ids=spec.stop_ids,
            threshold=spec.threshold if spec.rule == "threshold" else None,
            factor=spec.factor if spec.rule == "factor" else None,
            steps=spec.steps_per_block,
        )
        state.left += resting

    def settle(self, taken: Sequence[int]) -> None:
        """Read what a step of the slots `taken` came to, and move them to their next block."""
        state, length = self.state, self.spec.gen_length
        before = (state.masked & (torch.arange(length, device=state.x.device) < _end(state))).sum(1)
        told = torch.stack((state.left, state.stop, state.failed.long(), before)).tolist()
        for b in taken:
            row = self.rows[b]
            assert row is not None
            left, stop, failed, masks = (column[b] for column in told)
            row.stop = stop if stop < length else None
            row.step, row.total = row.step + 1, row.total + 1
            if failed:
                row.state = "failed"
            elif left == 0 or row.step == self.spec.steps_per_block:
                self._next_block(b, row, masks)

    def _next_block(self, b: int, row: Row, masks: int) -> None:
        row.block, row.step = row.block + 1, 0
        start = row.block * self.spec.block_length
        end = self.spec.gen_length if row.stop is None else row.stop
        if start >= end:
            row.state = "done"
        elif masks:
            row.state = "unfit"  # they would compete with the next block's own
        else:
            self.state.block_start[b], self.state.step[b] = start, 0
            self.state.block_end[b] = start + self.spec.block_length
            self.state.left[b] = self.spec.block_length


def _end(state: BlockState) -> Tensor:
    """int64[B, 1], one past the positions that could be committed."""
    known = state.stop < state.x.shape[1]
    return torch.where(known, state.stop, state.block_end)[:, None]
