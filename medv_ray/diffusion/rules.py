"""Which positions of a row may be committed, and where its answer ends.

Positions count from the start of x. Shapes: B rows, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class RowProgress:
    """Where one row stands. Rows share nothing: no answer depends on the others.

    Blocks run left to right, each for `steps` steps; a block ends early once it has no mask. Once a
    stop sequence is found, only positions before it count: they replace the block's limit, and
    blocks after it do not run.
    Source: LLaDA-V generate_with_embeds.
    """

    start: int
    """First position of the first block."""
    end: int
    """One past the last block."""
    block_length: int
    steps: int
    """Steps of each block."""
    run_all_steps: bool
    """Run the steps of a block that has no mask left, as LLaDA does."""
    block: int = 0
    step: int = 0
    """Step within the block."""
    total: int = 0
    """Steps taken in all blocks."""
    stop: int | None = None
    """Where the first stop sequence begins."""
    schedule: list[int] = field(default_factory=list)
    """Tokens that each step of this block commits; empty before the block begins."""
    done: bool = False

    @property
    def block_start(self) -> int:
        return self.start + self.block * self.block_length

    @property
    def limit(self) -> int:
        """One past the last position that may be committed."""
        return self.block_start + self.block_length if self.stop is None else self.stop

    @property
    def k(self) -> int:
        """Tokens to commit now."""
        return self.schedule[self.step]

    def count_masks(self, masked: Tensor) -> int:
        """Masks of this block in a row bool[L]."""
        return int(masked[self.block_start : self.block_start + self.block_length].sum())

    def block_is_over(self, masked: Tensor) -> bool:
        """Whether this block takes no further step."""
        if self.step == self.steps:
            return True
        if self.run_all_steps:
            return False
        if self.stop is not None:
            return not bool(masked[: self.stop].any())
        return self.count_masks(masked) == 0

    def next_block(self) -> None:
        """Enter the following block; the row ends behind its last block or its stop."""
        self.block, self.step, self.schedule = self.block + 1, 0, []
        self.done = self.block_start >= (self.end if self.stop is None else self.stop)


def find_stop(answer: Tensor, sequences: Sequence[Sequence[int]], found: int | None) -> int | None:
    """Where the answer int64[L] is cut, given where it was cut before.

    The sequences are tried in order until a cut is known. So once there is one, only the first
    sequence can move it, and only to the left: the reference's rule, which may keep a later cut
    than a fresh search would find.
    Source: LLaDA-V generate_with_embeds.
    """
    for sequence in sequences:
        if 0 < len(sequence) <= len(answer):
            windows = answer.unfold(0, len(sequence), 1)  # [L - m + 1, m]
            hits = (windows == torch.tensor(sequence, device=answer.device)).all(1).nonzero()
            if len(hits) and (found is None or int(hits[0]) < found):
                found = int(hits[0])
        if found is not None:
            break
    return found


def commit_as_topk(
    x: Tensor,
    eligible: Tensor,
    token: Tensor,
    rest: Tensor,
    k: Sequence[int],
    before: Sequence[int],
    after: int,
) -> tuple[Tensor, Tensor]:
    """As `medv_kernels.reference.commit`, with ties as torch.topk leaves them on the CPU.

    That order is not specified and depends on the length of the whole sequence, so prompt and
    suffix count: `before` positions in front of each row, `after` behind. Ties are the rule with
    LLaDA's confidence_eos_eot_inf, where every end token has probability 0.
    """
    # an eligible position of probability 0 still goes before one that is not eligible
    worst = torch.finfo(torch.float64).max
    value = (-rest.double().clamp(max=worst)).masked_fill(~eligible, -torch.inf).cpu()
    chosen = torch.zeros_like(eligible)
    for b, count in enumerate(k):
        whole = functional.pad(value[b], (before[b], after), value=-torch.inf)
        picked = torch.zeros(len(whole), dtype=torch.bool)
        picked[whole.topk(min(count, len(whole))).indices] = True
        chosen[b] = picked[before[b] : before[b] + x.shape[1]].to(x.device)
    chosen &= eligible
    return torch.where(chosen, token, x), chosen
