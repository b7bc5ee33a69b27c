"""Kernels of the loss: normaliser of each row of logits, and the gradient of its cross entropy.

    top[m]   = max_v l[m, v]          total[m] = sum_v exp(l[m, v] - top[m])
    loss[m]  = log(total[m]) + top[m] - l[m, target[m]]
    dl[m, v] = (exp(l[m, v] - top[m]) / total[m] - [v == target[m]]) scale[m]

A row is split over programs, as in triton_select. Sums of a tile are float32, of tiles float64.
Bfloat16 becomes float32 right after every load: the interpreter computes it wrongly.

Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))


@triton.jit
def partials(logits, numbers, stride, vocabulary, TILE: tl.constexpr, TILES: tl.constexpr):
    """Top and total of TILES tiles of a row, float64[2, M, splits]. Grid (M, splits)."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    top = tl.full((), -INF, tl.float32)
    total = tl.full((), 0.0, tl.float64)
    for tile in range(TILES):
        cols = (split * TILES + tile) * TILE + tl.arange(0, TILE)
        part = tl.load(logits + row * stride + cols, mask=cols < vocabulary, other=-INF)
        part = part.to(tl.float32)
        tile_top = tl.max(part, 0)
        if tile_top > top:
            total = total * tl.exp(top.to(tl.float64) - tile_top.to(tl.float64))
            top = tile_top
        base = tl.where(top == -INF, 0.0, top)  # else -inf - -inf
        total += tl.sum(tl.exp(part - base), 0).to(tl.float64)
    at = row * tl.num_programs(1) + split
    field = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    tl.store(numbers + at, top.to(tl.float64))
    tl.store(numbers + field + at, total)


@triton.jit
def finish(
    logits,
    numbers,
    targets,
    losses,
    tops,
    totals,
    stride,
    vocabulary,
    field,
    splits,
    SPLITS: tl.constexpr,
):
    """losses, tops and totals float32[M] from the splits of a row. Grid (M,).

    A target that is no column is never read; its loss and total are NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SPLITS)
    on = part < splits
    at = numbers + row * splits + part
    parts = tl.load(at, mask=on, other=-INF)
    sums = tl.load(at + field, mask=on, other=0.0)
    top = tl.max(parts, 0)
    total = tl.sum(sums * tl.exp(parts - tl.where(top == -INF, 0.0, top)), 0)
    target = tl.load(targets + row)
    there = (target >= 0) & (target < vocabulary)
    own = tl.load(logits + row * stride + target, mask=there, other=0.0).to(tl.float32)
    total = tl.where(there, total, float("nan"))
    loss = tl.log(total) + (top - own.to(tl.float64))
    tl.store(losses + row, loss.to(tl.float32))
    tl.store(tops + row, top.to(tl.float32))
    tl.store(totals + row, total.to(tl.float32))


@triton.jit
def gradient(
    logits,
    out,
    targets,
    tops,
    totals,
    scales,
    stride,
    out_stride,
    vocabulary,
    TILE: tl.constexpr,
):
    """dl in the dtype of `out`, which may be the logits themselves. Grid (M, tiles)."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = cols < vocabulary
    part = tl.load(logits + row * stride + cols, mask=inside, other=-INF).to(tl.float32)
    scale = tl.load(scales + row)
    p = tl.exp(part - tl.load(tops + row)) * (scale / tl.load(totals + row))
    p = tl.where(cols == tl.load(targets + row), p - scale, p)
    tl.store(out + row * out_stride + cols, p.to(out.dtype.element_ty), mask=inside)
