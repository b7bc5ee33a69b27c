"""Where a response stands: its block, its step, and which positions it may commit.

Positions count from the start of x, and the first block begins at `start`. Shapes: B rows, L
positions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medv_kernels.reference import accepted_by_factor, accepted_by_threshold
from medv_ray.diffusion.canvas import Canvas, OpenSpan
from medv_ray.diffusion.draws import Draws
from medv_ray.diffusion.schedule import remain_probability, transfer_schedule
from medv_ray.diffusion.spec import SampleSpec


@dataclass
class Row:
    """One response, as far as the host knows. Rows share nothing: no answer depends on the others.

    Blocks run left to right, each for its steps; a block ends early once it has no mask. Once a
    stop sequence is found, only positions before it count, and blocks after it do not run.
    Source: LLaDA-V generate_with_embeds.
    """

    spec: SampleSpec
    start: int
    """First position of the first block."""
    masks: list[int]
    """Positions that are masked, ascending."""
    draws: Draws
    stop: int | None = None
    """Where the first stop sequence begins."""
    canvas: Canvas | None = None
    """Where it says more than which tokens are pinned."""
    spans: list[OpenSpan] = field(default_factory=list)
    block: int = 0
    step: int = 0
    """Steps taken in this block."""
    total: int = 0
    """Steps taken in all blocks."""
    forward_passes: int = 0
    """Steps that needed the model."""
    schedule: list[int] = field(default_factory=list)
    """Tokens that each step of this block commits."""
    done: bool = False
    failed: bool = False
    """The model's answer was not finite."""

    def __post_init__(self) -> None:
        self._begin_block()
        self._settle()

    @property
    def running(self) -> bool:
        """Whether it has steps to take."""
        return not (self.done or self.failed)

    @property
    def block_start(self) -> int:
        return self.start + self.block * self.spec.block_length

    @property
    def limit(self) -> int:
        """One past the last position that may be committed."""
        end = self.block_start + self.spec.block_length
        return end if self.stop is None else min(end, self.stop)

    @property
    def whole(self) -> bool:
        """Whether every position is to be filled."""
        return self.canvas is not None and self.canvas.length is not None

    @property
    def k(self) -> int:
        """Tokens to commit now, by the schedule."""
        # behind its end a canvas goes on as it went before, until it is full
        planned = self.schedule[min(self.step, len(self.schedule) - 1)]
        return max(1, planned) if self.whole else planned

    @property
    def remain(self) -> float:
        """The chance of a masked token to stay masked now, with remasking="independent"."""
        steps = self.spec.steps_per_block
        return remain_probability(min(self.step, steps - 1), steps)

    def need(self) -> list[int]:
        """Positions whose odds this step needs; none where it commits nothing."""
        spec = self.spec
        always = spec.rule != "schedule" or spec.remasking == "independent"
        if not self.running or not (always or self.k > 0):
            return []
        return self.masks[: bisect_left(self.masks, self.limit)]

    def look(self) -> list[int]:
        """Positions whose hidden states this step needs: those, and the rest of each piece that may
        be committed."""
        need = self.need()
        if not need or not self.spans:
            return need
        more = {i for span in self.spans if span.leader in need for i in span.ahead}
        return sorted({*need, *more})

    def accepted(self, rest: Tensor) -> int:
        """How many tokens a step commits by a threshold or a factor, given odds float64[L]."""
        eligible = torch.zeros(1, len(rest), dtype=torch.bool)
        eligible[0, self.need()] = True
        if self.spec.rule == "threshold":
            return int(accepted_by_threshold(rest[None], eligible, self.spec.threshold))
        later = self.spec.rule == "factor_llada_v"
        num_masks = torch.tensor([len(self.masks)]) if later else None
        return int(accepted_by_factor(rest[None], eligible, self.spec.factor, num_masks))

    def advance(self, masks: list[int], stop: int | None, failed: bool, passed: bool) -> None:
        """What a step has come to; `passed`: it needed the model. A failed one does not count."""
        self.forward_passes += passed
        self.failed = failed
        if not failed:
            self.masks, self.stop = masks, stop
            self.step, self.total = self.step + 1, self.total + 1
            self._settle()

    def _settle(self) -> None:
        """Move to the next step that is taken."""
        while not self.done and self._block_is_over():
            self.block, self.step = self.block + 1, 0
            end = self.start + self.spec.gen_length
            self.done = self.block_start >= (end if self.stop is None else self.stop)
            if not self.done:
                self._begin_block()

    def _begin_block(self) -> None:
        start = self.block_start
        count = self._count(start, start + self.spec.block_length)
        self.schedule = transfer_schedule(count, self.spec.steps_per_block)

    def _block_is_over(self) -> bool:
        if self.whole:
            return self._count(0, self.limit) == 0
        if self.step == self.spec.steps_per_block:
            return True
        if self.spec.run_all_steps:
            return False
        end = self.block_start + self.spec.block_length
        # a stop inside the block: masks that earlier blocks have left keep it going, too
        known = self.stop is not None and self.stop < end
        return self._count(0 if known else self.block_start, self.limit) == 0

    def _count(self, start: int, end: int) -> int:
        """Masks from `start` to before `end`."""
        return bisect_left(self.masks, end) - bisect_left(self.masks, start)


def topk_order(rest: Tensor, need: Sequence[int], count: int, before: int, after: int) -> Tensor:
    """float64[L], 0 where a position is among the `count` best and 1 elsewhere, with ties as
    torch.topk leaves them on the CPU.

    That order is not specified and depends on the length of the whole sequence, so prompt and
    suffix count: `before` positions in front of the row, `after` behind. Ties are the rule with
    LLaDA's confidence_eos_eot_inf, where every end token has probability 0.

    Args:
        rest: float64[L] on the CPU, ranked ascending.
        need: positions that may be committed.
    """
    # an eligible position of probability 0 still goes before one that is not eligible
    worst = torch.finfo(torch.float64).max
    value = torch.full_like(rest, -torch.inf)
    value[need] = -rest[need].clamp(max=worst)
    whole = functional.pad(value, (before, after), value=-torch.inf)
    order = torch.ones_like(whole)
    order[whole.topk(min(count, len(whole))).indices] = 0.0
    return order[before : before + len(rest)]
