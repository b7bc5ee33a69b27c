"""Loss of the mask predictor, with the language head on masked rows only.

The reference makes logits for every position (4.1 GB for one row of 8192 at LLaDA's vocabulary);
only the masked ones reach the loss or its gradient.

Shapes: B rows, S positions, D width, V vocabulary, M masked positions, row-major.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from medv_ray.diffusion.noise import IGNORE

# With fewer rows the gradient's sum over the vocabulary takes a product that adds 126464 terms one
# after the other in float32 and is off in the fifth digit (MKL); rows of zeros buy the better one.
FEWEST_ROWS = 8


def token_losses(rows: Tensor, head: Tensor | None, targets: Tensor) -> Tensor:
    """float32[M], cross entropy of each row.

    Args:
        rows: float[M, D] last hidden states with head float[V, D]; or, without head, the logits
            float[M, V].
        targets: int64[M].
    """
    if head is not None:
        padding = max(0, FEWEST_ROWS - len(rows))
        padded = functional.pad(rows, (0, 0, 0, padding))
        rows = functional.linear(padded, head)[: len(rows)]
    return functional.cross_entropy(rows.float(), targets, reduction="none")


def masked_loss(
    hidden: Tensor,
    head: Tensor | None,
    labels: Tensor,
    masked: Tensor,
    p_mask: Tensor,
    divide_by: Literal["targets", "positions"] = "targets",
) -> Tensor:
    """float32[]: sum of CE / p_mask / (targets of the row) over masked positions, divided by B.

    Rows weigh equally, not tokens. `divide_by="positions"` is pre-training: the sum of CE / p_mask
    divided by B S.

    Args:
        hidden: float[B, S, D] after the final norm with head float[V, D]; or, without head, the
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
    num_targets = (labels != IGNORE).sum(1)
    return (losses / num_targets[row_of]).sum() / len(labels)


def mask_tokens(ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """int64[B, S], `ids` with the mask token at masked positions."""
    return torch.where(masked, mask_id, ids)
