"""Cross entropy of the language head on masked rows, forward and backward, with bounded logits.

Rows are taken in chunks whose logits fit SCRATCH_BYTES. The gradient needs the upstream factor of
every row, so it is made in the backward pass: over the chunk's own logits, kept from the forward
pass, where one chunk holds all rows; else the logits are made again, one more product of three.
(Made in the forward pass instead, a head gradient of V x D would have to be kept and scaled, and a
forward pass without gradient would pay for one.) Nothing is read back from the device.

Shapes: M masked rows, D width, V vocabulary.
Numerics: logits in the dtype of the rows, sums float32 and float64; the gradient of the logits in
their dtype, the head's added up over chunks in the head's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from medv_kernels.launch import aligned, cdiv, check_device, on, power_of_two
from medv_kernels.select import split

SCRATCH_BYTES = 512 * 2**20
"""Logits that exist at the same time when the head is a matrix: 2,122 bfloat16 rows of LLaDA's."""
TILE = 4096
"""Columns of a program that writes the gradient."""
Head = Tensor | Callable[[Tensor], Tensor] | None
"""The matrix float[V, D], or what makes float[M, V] of float[M, D], or None where rows are logits.
What a callable makes is overwritten in the backward pass."""


def linear_cross_entropy(
    rows: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    logit_size: int | None = None,
) -> Tensor:
    """float32[]: sum over rows of weight x cross entropy. 0, with a gradient path, for no rows.

    Args:
        rows: float[M, D].  head: float[V, D].  targets: int64[M].
        weights: float[M], as 1 / p_mask; no gradient reaches them.
        logit_size: only so many of the head's logits take part.
    """
    losses = token_losses(rows, head, targets, logit_size)
    return (losses * weights.detach().to(losses)).sum()


def token_losses(
    rows: Tensor, head: Head, targets: Tensor, logit_size: int | None = None
) -> Tensor:
    """float32[M], as `medv_ray.diffusion.loss.token_losses`, for rows on a GPU.

    A target outside the logits gives NaN. A second backward pass raises RuntimeError where the
    logits were kept. Raises TypeError for float64.
    """
    check_device(rows, "token_losses")
    if rows.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"rows are {rows.dtype}: bfloat16, float16 or float32 can be summed")
    targets = targets.contiguous()
    if isinstance(head, Tensor):
        return _apply(_Linear, rows, head, targets, logit_size)
    logits = rows if head is None else head(rows)
    return _apply(_Given, logits, targets, logit_size, head is not None)


def _apply(function: type[Function], *args: object) -> Tensor:
    losses: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return losses


class _Given(Function):
    """Cross entropy of logits that are there; their gradient goes over them if `reuse`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, size: int | None, reuse: bool) -> Tensor:
        losses, tops, totals = _statistics(logits[:, :size], targets)
        ctx.save_for_backward(logits, targets, tops, totals)
        ctx.size, ctx.reuse = size, reuse
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, tops, totals = ctx.saved_tensors
        # the kernel writes rows of unit stride
        out = logits.detach() if ctx.reuse and logits.stride(1) == 1 else _rows_like(logits)
        used = out[:, : ctx.size]
        _gradient(logits[:, : ctx.size], used, targets, tops, totals, grad)
        out[:, used.shape[1] :] = 0
        increment_version(out)  # the kernel wrote what was saved; torch does not see that
        return out, None, None, None


class _Linear(Function):
    """Cross entropy of rows times a head, in chunks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: Tensor, targets: Tensor, size: int | None) -> Tensor:
        used = head[:size]
        parts, scratch = [], _scratch(rows, used)
        for piece in _chunks(len(rows), len(scratch)):
            logits = torch.mm(rows[piece], used.T, out=scratch[: piece.stop - piece.start])
            parts.append(_statistics(logits, targets[piece]))
        losses, tops, totals = (torch.cat(values) for values in zip(*parts, strict=True))
        kept = scratch if len(parts) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(rows, head, targets, tops, totals, kept)
        ctx.size = size
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, head, targets, tops, totals, kept = ctx.saved_tensors
        used = head[: ctx.size]
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        scratch = _scratch(rows, used) if kept is None else kept.detach()
        for piece in _chunks(len(rows), len(scratch)):
            logits = scratch[: piece.stop - piece.start]
            if kept is None:
                torch.mm(rows[piece], used.T, out=logits)
            saved = targets[piece], tops[piece], totals[piece]
            _gradient(logits, logits, *saved, grad[piece])
            if d_rows is not None:
                torch.mm(logits, used, out=d_rows[piece])
            if d_head is not None:  # the first product writes, the others add
                room = d_head[: ctx.size]
                torch.addmm(room, logits.T, rows[piece], beta=int(piece.start > 0), out=room)
        if d_head is not None:
            d_head[len(used) :] = 0
        if kept is not None:
            increment_version(kept)
        return d_rows, d_head, None, None


def _scratch(rows: Tensor, head: Tensor) -> Tensor:
    """float[chunk, V], room for the logits of a chunk; of one row whatever its size."""
    most = max(1, SCRATCH_BYTES // (len(head) * rows.element_size()))
    height = min(most, max(1, len(rows)))
    return rows.new_empty(height, aligned(len(head)))[:, : len(head)]


def _rows_like(logits: Tensor) -> Tensor:
    """Room for float[M, V], row after row, whatever the layout of the logits."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _chunks(count: int, height: int) -> list[slice]:
    """At least one, if only of no rows."""
    starts = range(0, max(1, count), height)
    return [slice(start, min(start + height, count)) for start in starts]


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, tops and totals of logits float[M, V], float32[M] each."""
    losses, tops, totals = torch.empty(3, len(logits), dtype=torch.float32, device=logits.device)
    if not len(logits):
        return losses, tops, totals
    from medv_kernels import triton_loss as kernels

    rows, vocabulary = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tile, each, splits = split(rows, vocabulary)
    numbers = torch.empty(2, rows, splits, dtype=torch.float64, device=logits.device)
    with on(logits.device):
        kernels.partials[(rows, splits)](
            *(logits, numbers, logits.stride(0), vocabulary), TILE=tile, TILES=each, num_warps=8
        )
        kernels.finish[(rows,)](
            *(logits, numbers, targets, losses, tops, totals, logits.stride(0), vocabulary),
            *(rows * splits, splits),
            SPLITS=power_of_two(splits),
            num_warps=1,
        )
    return losses, tops, totals


def _gradient(
    logits: Tensor, out: Tensor, targets: Tensor, tops: Tensor, totals: Tensor, scales: Tensor
) -> None:
    """Write the gradient of each row's loss times scales float32[M] to `out`, of unit stride."""
    if not len(logits):
        return
    from medv_kernels import triton_loss as kernels

    rows, vocabulary = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    with on(logits.device):
        kernels.gradient[(rows, cdiv(vocabulary, TILE))](
            *(logits, out, targets, tops, totals, scales.contiguous()),
            *(logits.stride(0), out.stride(0), vocabulary),
            TILE=TILE,
            num_warps=8,
        )
