"""Cross entropy of the language head on masked rows in plain torch: what loss.py has to equal.

    linear_cross_entropy = sum over rows of weights[m] (logsumexp_v l[m, v] - l[m, targets[m]])
    l[m, v]              = head[v] . rows[m]

Shapes: M masked rows, D width, V vocabulary. All logits exist at once, in float32.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def token_losses(
    rows: Tensor, head: Tensor | None, targets: Tensor, logit_size: int | None = None
) -> Tensor:
    """float32[M], cross entropy of each row; arguments as for `loss.token_losses`."""
    logits = rows if head is None else functional.linear(rows, head)
    return functional.cross_entropy(logits[:, :logit_size].float(), targets, reduction="none")


def linear_cross_entropy(
    rows: Tensor, head: Tensor, targets: Tensor, weights: Tensor, logit_size: int | None = None
) -> Tensor:
    """float32[], as `loss.linear_cross_entropy`."""
    return (token_losses(rows, head, targets, logit_size) * weights.detach().float()).sum()
