"""Head product and selection in one kernel: logits are never written.

    l[n, v] = head[v] . rows[n], tile by tile, then the online state of triton_select

Saves writing and reading N x V logits, which is little next to reading the head: 1.6 % of the bytes
at 32 rows of D = 4096. A product in Triton may lose more than that against the library's, so the
kernel is used up to FUSED_ROWS rows only, and for a GPU that is not in the table never.

Logits are rounded to the dtype of the rows, as torch.matmul's are.

Shapes: N rows, D width, V vocabulary.
Numerics: products summed in float32; exponentials float32, sums over tiles float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from medv_kernels.launch import PROGRAMS, cdiv, on
from medv_kernels.reference import Selection
from medv_kernels.select import empty_selection, ids_on, merge, new_states
from medv_kernels.triton_select import INF, store_state, without

FUSED_ROWS: dict[str, int] = {}
"""Most rows for which the fused kernel is faster, by torch.cuda.get_device_name(). Empty: not
measured yet. To fill it, run `python benchmarks/bench_select.py --device cuda --fused` on the GPU,
which prints both times for 1 to 256 rows, and enter the largest count up to which it always won."""
HEIGHT = (16, 64)
"""Rows of a tile: the smaller one up to so many rows."""
WIDTH, DEPTH = 128, 64
"""Columns of a tile, and how much of D is multiplied at a time."""


def pays(rows: Tensor) -> bool:
    """Whether the fused kernel was measured to be faster for so many rows, float[N, D]."""
    if rows.device.type != "cuda" or not FUSED_ROWS:
        return False
    return len(rows) <= FUSED_ROWS.get(torch.cuda.get_device_name(rows.device), 0)


def select(
    rows: Tensor, head: Tensor, forbidden: Sequence[int], unranked: Sequence[int]
) -> Selection:
    """`medv_kernels.select.select` of rows float[N, D] and head float[V, D] at temperature 0,
    unchecked: rest is NaN without an answer."""
    count, vocabulary = len(rows), len(head)
    height = HEIGHT[0] if count <= HEIGHT[0] else HEIGHT[1]
    blocks, tiles = cdiv(count, height), cdiv(vocabulary, WIDTH)
    each = max(1, tiles // cdiv(PROGRAMS, blocks))
    splits = cdiv(tiles, each)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    head = head if head.stride(1) == 1 else head.contiguous()
    numbers = new_states(count, splits, rows.device)
    found = empty_selection(count, rows.device)
    with on(rows.device):
        partials[(blocks, splits)](
            *(rows, head, ids_on(forbidden, vocabulary, rows.device)),
            *(ids_on(unranked, vocabulary, rows.device), numbers),
            *(rows.stride(0), head.stride(0), count, vocabulary, rows.shape[1], count * splits),
            HEIGHT=height,
            WIDTH=WIDTH,
            DEPTH=DEPTH,
            TILES=each,
            STEPS=cdiv(rows.shape[1], DEPTH),
            NUM_FORBIDDEN=len(forbidden),
            NUM_UNRANKED=len(unranked),
            num_warps=4,
            num_stages=3,
        )
    merge(numbers, found)
    return found


@triton.jit
def product(
    rows,
    head,
    n,
    cols,
    rows_stride,
    head_stride,
    count,
    vocabulary,
    width,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    STEPS: tl.constexpr,
):
    """float32[HEIGHT, WIDTH], logits of rows `n` and columns `cols`, rounded to their dtype."""
    total = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for step in range(STEPS):
        k = step * DEPTH + tl.arange(0, DEPTH)
        a = tl.load(
            rows + n.to(tl.int64)[:, None] * rows_stride + k[None, :],
            mask=(n < count)[:, None] & (k < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            head + cols.to(tl.int64)[None, :] * head_stride + k[:, None],
            mask=(cols < vocabulary)[None, :] & (k < width)[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    return total.to(rows.dtype.element_ty).to(tl.float32)


@triton.jit
def partials(
    rows,
    head,
    forbidden,
    unranked,
    numbers,
    rows_stride,
    head_stride,
    count,
    vocabulary,
    width,
    field,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
    STEPS: tl.constexpr,
    NUM_FORBIDDEN: tl.constexpr,
    NUM_UNRANKED: tl.constexpr,
):
    """States of HEIGHT rows over TILES tiles. Grid (blocks of rows, splits)."""
    n = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    split = tl.program_id(1)
    best = tl.full((HEIGHT,), -INF, tl.float32)
    own = tl.full((HEIGHT,), -INF, tl.float32)
    m = tl.full((HEIGHT,), -INF, tl.float32)
    total = tl.full((HEIGHT,), 0.0, tl.float64)
    g = tl.full((HEIGHT,), -1, tl.int32)
    for tile in range(TILES):
        first = (split * TILES + tile) * WIDTH
        cols = first + tl.arange(0, WIDTH)
        logits = product(
            *(rows, head, n, cols, rows_stride, head_stride, count, vocabulary, width),
            *(HEIGHT, WIDTH, DEPTH, STEPS),
        )
        logits = tl.where((cols < vocabulary)[None, :], logits, -INF)
        logits = without(logits, cols[None, :], first, forbidden, WIDTH, NUM_FORBIDDEN)
        ranked = without(logits, cols[None, :], first, unranked, WIDTH, NUM_UNRANKED)
        tile_m = tl.max(ranked, 1)
        new_m = tl.where(tile_m > m, tile_m, m)
        base = tl.where(new_m == -INF, 0.0, new_m)
        wide = base.to(tl.float64)
        total = total * tl.exp(m.to(tl.float64) - wide)
        m = new_m
        tile_best = tl.max(logits, 1)
        taken = tile_best > best
        at = tl.min(tl.where(logits == tile_best[:, None], cols[None, :], vocabulary), 1)
        chosen = cols[None, :] == at[:, None]
        terms = tl.exp(ranked - base[:, None])
        terms = tl.where(chosen & taken[:, None], 0.0, terms)
        total += tl.where(taken, tl.exp(own.to(tl.float64) - wide), 0.0)
        total += tl.sum(terms, 1).to(tl.float64)
        if NUM_UNRANKED > 0:
            wrong = tl.max((logits < INF).to(tl.int32) ^ 1, 1)
            total = tl.where(wrong > 0, float("nan"), total)
        own = tl.where(taken, tl.max(tl.where(chosen, ranked, -INF), 1), own)
        best = tl.where(taken, tile_best, best)
        g = tl.where(taken, at, g)
    cell = n.to(tl.int64) * tl.num_programs(1) + split
    store_state(numbers, cell, field, best, g, best, own, m, total, best, n < count, False)
