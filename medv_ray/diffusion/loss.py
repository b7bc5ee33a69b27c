"""Loss of the mask predictor, with the language head on masked rows only.

The reference makes logits for every position (4.1 GB for one row of 8192 at LLaDA's vocabulary);
only the masked ones reach the loss or its gradient.

Shapes: B rows, S positions, D width, V vocabulary, M masked positions, row-major.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from medv_ray.diffusion.noise import IGNORE

# With fewer rows the gradient's sum over the vocabulary takes a product that adds 126464 terms one
# after the other in float32 and is off in the fifth digit (MKL); rows of zeros buy the better one.
FEWEST_ROWS = 8


Head = Tensor | Callable[[Tensor], Tensor] | None
"""The language head: its matrix float[V, D], or what makes float[M, V] of float[M, D]; None where
the logits are there."""


def token_losses(rows: Tensor, head: Head, targets: Tensor) -> Tensor:
    """float32[M], cross entropy of each row.

    Args:
        rows: float[M, D] last hidden states; or, without head, the logits float[M, V].
        head: see `Head`. It is called once, also where M is 0: ranks that share its weights do
            the same.
        targets: int64[M].
    """
    if head is not None:
        padding = max(0, FEWEST_ROWS - len(rows))
        padded = functional.pad(rows, (0, 0, 0, padding))
        logits = head(padded) if callable(head) else functional.linear(padded, head)
        rows = logits[: len(rows)]
    return functional.cross_entropy(rows.float(), targets, reduction="none")


def masked_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    masked: Tensor,
    p_mask: Tensor,
    divide_by: Literal["targets", "positions"] = "targets",
) -> Tensor:
    """float32[]: sum of CE / p_mask / (targets of the row) over masked positions, divided by B.

    Rows weigh equally, not tokens. `divide_by="positions"` is pre-training: the sum of CE / p_mask
    divided by B S.

    Args:
        hidden: float[B, S, D] after the final norm with a head (see `Head`); or, without, the
            logits float[B, S, V]. Or only the masked positions of either: [M, D] or [M, V].
        labels: int64[B, S], the target token of each position or IGNORE.
        masked: bool[B, S] and p_mask: float[B], from `forward_noise`.

    Without any masked position the result is 0 and still has a gradient path.
    Source: LLaDA-V, LLaDAModelLM.forward; LLaDA, GUIDELINES.md.
    """
    rows = hidden[masked] if hidden.dim() == 3 else hidden
    row_of = masked.nonzero()[:, 0]  # [M]
    losses = token_losses(rows, head, labels[masked]) / p_mask.to(rows.device)[row_of]
    if divide_by == "positions":
        return losses.sum() / labels.numel()
    return row_losses(losses, row_of, labels).mean()


def row_losses(losses: Tensor, row_of: Tensor, labels: Tensor) -> Tensor:
    """float32[B]: each row's sum of float32[M] losses, divided by its number of targets.

    Args:
        losses: CE / p_mask of each masked position.
        row_of: int64[M], its row.
        labels: int64[B, S].
    """
    num_targets = (labels != IGNORE).sum(1).clamp(min=1)
    return losses.new_zeros(len(labels)).index_add(0, row_of, losses) / num_targets


def mask_tokens(ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """int64[B, S], `ids` with the mask token at masked positions."""
    return torch.where(masked, mask_id, ids)
