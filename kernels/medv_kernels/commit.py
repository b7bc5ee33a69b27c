"""`reference.commit` and `reference.commit_step` as Triton kernels; nothing is read back.

One launch ranks all positions by counting, a second one decides and writes, a program a row. Maths
and rules: reference_commit.py.

Shapes: B rows, L positions, at most MOST.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medv_kernels.launch import cdiv, check_device, constant, number, on, power_of_two
from medv_kernels.reference_commit import ResponseState, check_rule

MOST = 4096
"""Positions of a row, which one program holds."""
TILE = 64
"""Positions that are ranked, and compared with, at a time."""


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
    """As `reference.commit`: the new x int64[B, L], and which were chosen, bool[B, L]. Keys are
    compared in float64."""
    check_rule(k, threshold, factor)
    check_device(x, "commit")
    new, chosen = torch.empty_like(x, memory_format=torch.contiguous_format), _empty(x, torch.bool)
    if x.numel() == 0:
        return new, chosen
    rest = rest.contiguous()
    rank = _ranks(eligible.contiguous(), rest, rest, None)
    rule, number = _rule(threshold, factor, x.device)
    counts = rank if k is None else torch.as_tensor(k, device=x.device).contiguous()
    from medv_kernels import triton_commit as kernels

    with on(x.device):
        kernels.commit[(len(x),)](
            *(x.contiguous(), token.contiguous(), rest, rank, counts, number),
            rank if num_masks is None else num_masks.contiguous(),
            *(new, chosen.view(torch.int8), x.shape[1]),
            ROW=power_of_two(x.shape[1]),
            RULE=rule,
            COUNTED=num_masks is not None,
            num_warps=_warps(x.shape[1]),
        )
    return new, chosen


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
    """As `reference.commit_step`, with int64[B, L] `token` and float[B, L] `rest`. The tensors of
    `state` are contiguous, and stay where they are.

    After one call like it, a call can be part of a CUDA graph.
    """
    x = state.x
    check_rule(k, threshold, factor, key)
    check_device(x, "commit_step")
    if x.numel() == 0:
        return
    _check_contiguous(state)
    rest, limit = rest.contiguous(), limit.contiguous()
    rank = _ranks(state.masked, rest if key is None else key.contiguous(), rest, limit)
    value = next(v for v in (k, threshold, factor) if v is not None)
    rule = 0 if k is not None else 1 if threshold is not None else 2
    sequences, sizes, width = _sequences(stop_ids, x.device)
    from medv_kernels import triton_commit as kernels

    with on(x.device):
        kernels.commit_step[(len(x),)](
            *(x, state.masked.view(torch.int8), state.stop, state.token_confidence),
            *(state.token_step, state.failed.view(torch.int8), token.contiguous(), rest, rank),
            *(limit, step.contiguous(), value.contiguous()),
            rank if num_masks is None else num_masks.contiguous(),
            *(sequences, sizes, x.shape[1], start, mask_id),
            ROW=power_of_two(x.shape[1]),
            RULE=rule,
            COUNTED=num_masks is not None,
            NUM_STOPS=len(stop_ids),
            WIDTH=width,
            num_warps=_warps(x.shape[1]),
        )


def _ranks(eligible: Tensor, key: Tensor, rest: Tensor, limit: Tensor | None) -> Tensor:
    """int32[B, L]; with int64[B] limits only positions before the row's are ranked."""
    rows, length = eligible.shape
    if length > MOST:
        raise ValueError(f"rows of {length} positions: a program holds at most {MOST}")
    rank = _empty(eligible, torch.int32)
    tiles = cdiv(length, TILE)
    from medv_kernels import triton_commit as kernels

    with on(rank.device):
        kernels.ranks[(rows, tiles)](
            *(key, rest, eligible.view(torch.int8), rank if limit is None else limit),
            *(rank, length),
            LIMITED=limit is not None,
            TILE=TILE,
            TILES=tiles,
            num_warps=4,
        )
    return rank


def _rule(
    threshold: float | None, factor: float | None, device: torch.device
) -> tuple[int, Tensor]:
    """The rule's number in triton_commit, and its value as float64[1]: kernels take float32."""
    value = threshold if threshold is not None else factor
    rule = 0 if value is None else 1 if threshold is not None else 2
    return rule, number(0.0 if value is None else value, device)


def _sequences(
    stop_ids: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Ids int64[S, W] in one row, sizes int64[S], and W."""
    width = max([1, *(len(ids) for ids in stop_ids)])
    padded = tuple(i for ids in stop_ids for i in (*ids, *[-1] * (width - len(ids))))
    sizes = tuple(len(ids) for ids in stop_ids)
    ids_on, sizes_on = (constant(v or (0,), torch.int64, device) for v in (padded, sizes))
    return ids_on, sizes_on, width


def _check_contiguous(state: ResponseState) -> None:
    loose = [name for name, part in vars(state).items() if not part.is_contiguous()]
    if loose:
        raise ValueError(f"the state is changed in place: {loose} must be contiguous")


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)


def _warps(length: int) -> int:
    return min(8, max(1, power_of_two(length) // 256))
