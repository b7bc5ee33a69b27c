"""Loss of the mask predictor, with the language head on masked rows only.

The reference makes logits for every position (4.1 GB for one row of 8192 at LLaDA's vocabulary);
only the masked ones reach the loss or its gradient.

Shapes: B rows, S positions, D width, V vocabulary, M masked positions, row-major.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medv_kernels import loss as kernels
from medv_ray.markers import IGNORE

# With fewer rows the gradient's sum over the vocabulary takes a product that adds 126464 terms one
# after the other in float32 and is off in the fifth digit (MKL); rows of zeros buy the better one.
FEWEST_ROWS = 8
PIECE_ROWS = 8
"""Rows whose exponentials exist at the same time: 4 MB at LLaDA's vocabulary."""


Head = Tensor | Callable[[Tensor], Tensor] | None
"""The language head: its matrix float[V, D], or what makes float[M, V] of float[M, D]; None where
the logits are there. What it makes is overwritten in the backward pass."""


def token_losses(
    rows: Tensor, head: Head, targets: Tensor, logit_size: int | None = None
) -> Tensor:
    """float32[M], cross entropy of each row; float64 of float64 logits.

    Args:
        rows: float[M, D] last hidden states; or, without head, the logits float[M, V].
        head: see `Head`. It is called once, also where M is 0: ranks that share its weights do
            the same.
        targets: int64[M].
        logit_size: only so many of the head's logits take part.
    """
    if rows.is_cuda and rows.dtype != torch.float64:
        return kernels.token_losses(rows, head, targets, logit_size)
    if head is None:
        return functional.cross_entropy(rows[:, :logit_size].float(), targets, reduction="none")
    padded = functional.pad(rows, (0, 0, 0, max(0, FEWEST_ROWS - len(rows))))
    logits = head(padded) if callable(head) else functional.linear(padded, head)
    losses: Tensor = _CrossEntropy.apply(logits, targets, logit_size)  # type: ignore[no-untyped-call]
    return losses


class _CrossEntropy(Function):
    """Cross entropy whose gradient is written over the logits, so that they exist once.

    Torch's own holds three copies at its peak: logits, their log-softmax and the gradient. A second
    backward pass through the same logits raises RuntimeError.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, size: int | None) -> Tensor:
        """float[M + padding, V + unused] -> float32[M] or float64[M]."""
        used = logits[: len(targets), :size]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        top = used.amax(1, keepdim=True).to(dtype)  # [M, 1]
        total = torch.empty_like(top)
        for piece in _pieces(len(targets)):
            total[piece] = (used[piece] - top[piece]).exp_().sum(1, keepdim=True)
        ctx.save_for_backward(logits, targets, top, total)
        ctx.size = size
        return (total.log() - (used.gather(1, targets[:, None]) - top))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(softmax - one-hot) x grad, in place of the logits; 0 where they took no part."""
        logits, targets, top, total = ctx.saved_tensors
        logits, scale = logits.detach(), grad[:, None] / total
        used = logits[: len(targets), : ctx.size]
        for piece in _pieces(len(targets)):
            part = (used[piece] - top[piece]).exp_().mul_(scale[piece])
            part.scatter_add_(1, targets[piece, None], -grad[piece, None])
            used[piece] = part
            del part  # before the next one is made
        logits[len(targets) :] = 0
        logits[:, used.shape[1] :] = 0
        return logits, None, None


def _pieces(count: int) -> list[slice]:
    return [slice(first, first + PIECE_ROWS) for first in range(0, count, PIECE_ROWS)]


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
    num_targets = (labels != IGNORE).sum(1).clamp(min=1).to(losses.device)
    return losses.new_zeros(len(labels)).index_add(0, row_of, losses) / num_targets
