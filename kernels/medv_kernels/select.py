"""`reference.select` as two Triton kernels: logits are read once, nothing of their size is made.

The vocabulary of a row is split over programs, so that few rows fill the processor too; a second
kernel puts the splits together. With a head, pieces of logits of at most SCRATCH_BYTES are made by
torch.matmul, or none at all (fused.py). Maths: kernels/README.md.

Shapes: N rows, D width, V vocabulary.
Numerics: exponentials and sums of a tile in float32, sums of tiles in float64.
Memory: reads V logits a row; writes 56 bytes a split of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medv_kernels.launch import (
    PROGRAMS,
    aligned,
    cdiv,
    check_device,
    constant,
    number,
    on,
    power_of_two,
)
from medv_kernels.reference import Selection, check_draws

SCRATCH_BYTES = 64 * 2**20
"""Logits that exist at the same time when there is a head; with guidance, both kinds together. One
row's are made whatever their size."""
TILES = (4096, 2048, 1024)
"""Columns that a program takes at a time, the first that gives enough programs."""


@torch.no_grad()
def select(
    rows: Tensor,
    head: Tensor | None = None,
    *,
    forbidden: Sequence[int] = (),
    unranked: Sequence[int] = (),
    temperature: float = 0.0,
    uniform: Tensor | None = None,
    keys: Tensor | None = None,
    logit_size: int | None = None,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    second: bool = False,
    check: bool = True,
    fused: bool | None = None,
) -> Selection:
    """As `reference.select`, for bfloat16, float16 or float32 rows on one device.

    Args, where they differ:
        uniform: with a head too, all of it: float64[N, V].
        check: False reads nothing back from the device, so that the call can be part of a CUDA
            graph, after one call like it outside of it.
        fused: whether logits are never written (fused.py): by default where that was measured to
            be faster. True raises ValueError where it cannot: without head, with temperature,
            guidance or `second`.

    Raises FloatingPointError as the reference does, RuntimeError where no kernel can run.
    """
    check_device(rows, "select")
    check_draws(temperature, uniform, keys, len(rows))
    head = None if head is None else head[:logit_size]
    simple = head is not None and temperature == 0 and unconditional is None and not second
    if fused and not simple:
        raise ValueError("fused selection needs the head, and no temperature, guidance or second")
    if simple and fused is not False and len(rows):
        from medv_kernels import fused as fusion

        if fused or fusion.pays(rows):
            assert head is not None
            found = fusion.select(rows, head, forbidden, unranked)
            return checked(found) if check else found
    draws = _Draws(temperature, uniform, keys) if temperature > 0 else _Draws(0.0, None, None)
    found = empty_selection(len(rows), rows.device, second)
    for piece, logits, free in _pieces(rows, head, unconditional, logit_size):
        width = logits.shape[1]
        banned = ids_on(forbidden, width, rows.device), ids_on(unranked, width, rows.device)
        counts = len(forbidden), len(unranked)
        _reduce(logits, free, cfg_scale, banned, counts, draws.of(piece), cut(found, piece))
    return checked(found) if check else found


class _Draws(NamedTuple):
    """What decides among the tokens."""

    temperature: float
    uniform: Tensor | None
    keys: Tensor | None

    def of(self, piece: slice) -> _Draws:
        # kernels walk along a row, and from key to key, in steps of one number
        uniform = None if self.uniform is None else self.uniform[piece].double()
        if uniform is not None and uniform.stride(1) != 1:
            uniform = uniform.contiguous()
        keys = None if self.keys is None else self.keys[piece].contiguous()
        return _Draws(self.temperature, uniform, keys)


def _pieces(
    rows: Tensor, head: Tensor | None, unconditional: Tensor | None, logit_size: int | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Rows, their logits float[n, V], and those without prompt; overwritten by the next piece's."""
    if not len(rows):
        return
    if head is None:
        free = None if unconditional is None else unconditional[:, :logit_size]
        yield slice(0, len(rows)), rows[:, :logit_size], free
        return
    kinds = [rows] if unconditional is None else [rows, unconditional]
    height = max(1, SCRATCH_BYTES // (len(kinds) * len(head) * rows.element_size()))
    shape = (len(kinds), min(height, len(rows)), aligned(len(head)))
    scratch = torch.empty(shape, dtype=rows.dtype, device=rows.device)[:, :, : len(head)]
    for start in range(0, len(rows), height):
        piece = slice(start, min(start + height, len(rows)))
        made = scratch[:, : piece.stop - start]
        for hidden, logits in zip(kinds, made, strict=True):
            torch.mm(hidden[piece], head.T, out=logits)
        yield piece, made[0], None if unconditional is None else made[1]


def split(rows: int, vocabulary: int) -> tuple[int, int, int]:
    """Columns of a tile, tiles of a program, programs of a row: PROGRAMS at least, if there are."""
    tile = next((t for t in TILES if rows * cdiv(vocabulary, t) >= PROGRAMS), TILES[-1])
    tiles = cdiv(vocabulary, tile)
    each = max(1, tiles // cdiv(PROGRAMS, rows))
    return tile, each, cdiv(tiles, each)


def _reduce(
    logits: Tensor,
    free: Tensor | None,
    cfg_scale: float,
    banned: tuple[Tensor, Tensor],
    counts: tuple[int, int],
    draws: _Draws,
    found: Selection,
) -> None:
    """Write the selection of float[n, V] logits into `found`."""
    from medv_kernels import triton_select as kernels

    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    other = logits if free is None else free
    other = other if other.stride(1) == 1 else other.contiguous()
    rows, vocabulary = logits.shape
    tile, each, splits = split(rows, vocabulary)
    numbers = new_states(rows, splits, logits.device)
    temperature = number(draws.temperature, logits.device)
    with on(logits.device):
        kernels.partials[(rows, splits)](
            *(logits, other),
            temperature if draws.uniform is None else draws.uniform,
            banned[0] if draws.keys is None else draws.keys,
            *(temperature, *banned, numbers, logits.stride(0), other.stride(0)),
            0 if draws.uniform is None else draws.uniform.stride(0),
            *(vocabulary, float(cfg_scale + 1)),
            TILE=tile,
            TILES=each,
            NUM_FORBIDDEN=counts[0],
            NUM_UNRANKED=counts[1],
            GUIDED=free is not None,
            UNIFORM=draws.uniform is not None,
            KEYS=draws.keys is not None,
            SECOND=found.gap is not None,
            num_warps=8,
        )
    merge(numbers, found)


def new_states(rows: int, splits: int, device: torch.device) -> Tensor:
    """Room for the states of triton_select, float64[FIELDS, N, splits]."""
    from medv_kernels.triton_select import FIELDS

    return torch.empty(FIELDS, rows, splits, dtype=torch.float64, device=device)


def merge(numbers: Tensor, found: Selection) -> None:
    """Write what the splits of each row come to, float64[FIELDS, N, splits], into `found`."""
    from medv_kernels import triton_select as kernels

    _, rows, splits = numbers.shape
    second = found.gap is not None
    with on(numbers.device):
        kernels.merge[(rows,)](
            *(numbers, found.token, found.rest, found.gap if second else found.rest),
            *(rows * splits, splits),
            SPLITS=power_of_two(splits),
            SECOND=second,
            num_warps=1,
        )


def empty_selection(rows: int, device: torch.device, second: bool = False) -> Selection:
    token = torch.empty(rows, dtype=torch.int64, device=device)
    rest = torch.empty(rows, dtype=torch.float64, device=device)
    return Selection(token, rest, torch.empty_like(rest) if second else None)


def cut(found: Selection, piece: slice) -> Selection:
    """The rows of a piece, views."""
    gap = None if found.gap is None else found.gap[piece]
    return Selection(found.token[piece], found.rest[piece], gap)


def ids_on(ids: Sequence[int], vocabulary: int, device: torch.device) -> Tensor:
    """int32[n], the ids on the device; one that means nothing where there are none.

    Raises IndexError for an id that the logits have no column for.
    """
    outside = [i for i in ids if not -vocabulary <= i < vocabulary]
    if outside:
        raise IndexError(f"ids {outside} lie outside the {vocabulary} logits")
    return constant(tuple(i % vocabulary for i in ids) or (-1,), torch.int32, device)


def checked(found: Selection) -> Selection:
    """The selection; raises FloatingPointError for rows that have none. Waits for the device."""
    bad = found.rest.isnan().nonzero()
    if len(bad):
        raise FloatingPointError(
            f"row {int(bad[0])} of {len(found.rest)} has a logit that is NaN or infinite: "
            "the weights or the hidden states are not finite, or every token is forbidden"
        )
    return found
