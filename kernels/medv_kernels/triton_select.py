"""Kernels of `select`: a row's vocabulary in splits (partials), then the splits together (merge).

A state describes the tokens seen so far: `best`, the winner's score (its logit at temperature 0);
`g`, its id; `logit`; `own`, its logit if it is ranked, else -inf; `m`, the largest ranked logit;
`total`, the sum over ranked v != g of exp(l_v - m); `second`, the largest logit of v != g.

When another winner comes, the old one's exp(own - m) joins `total` and the new one's is left out:
nothing is ever subtracted. Sums of a tile are float32, of tiles and splits float64. Bfloat16
becomes float32 right after every load: the interpreter computes it wrongly.

Launched by select.py and fused.py; states lie in `numbers` float64[FIELDS, N, splits].
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = 7
"""score, id, logit, own, m, total, second; in this order."""
INF = tl.constexpr(float("inf"))
UNIT = tl.constexpr(2.0**-32)
ALL_BITS = tl.constexpr(0xFFFFFFFF)


@triton.jit
def exponential(bits):
    """-log u for u = (bits + 1/2) / 2^32, in float32; uint32 -> float32 of the same shape."""
    # near 1, u has no room in float32: the series of -log1p(-q) in q = 1 - u, to q^8 at q < 1/8
    q = ((bits ^ ALL_BITS).to(tl.float32) + 0.5) * UNIT
    series = 1 / 7 + q * (1 / 8)
    series = 1 / 5 + q * (1 / 6 + q * series)
    series = 1 / 3 + q * (1 / 4 + q * series)
    series = q * (1 + q * (1 / 2 + q * series))
    return tl.where(q < 0.125, series, -tl.log((bits.to(tl.float32) + 0.5) * UNIT))


@triton.jit
def draw(key, first, TILE: tl.constexpr):
    """float32[TILE], exponential draws of the columns from `first` on, a multiple of 4."""
    counter = first // 4 + tl.arange(0, TILE // 4)
    r0, r1, r2, r3 = tl.randint4x(key, counter)
    words = tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))
    return exponential(words.to(tl.uint32, bitcast=True))


@triton.jit
def store_state(
    numbers, at, field, best, g, logit, own, m, total, second, mask, SECOND: tl.constexpr
):
    """Write a state; `field` is the distance between two fields."""
    tl.store(numbers + at, best.to(tl.float64), mask=mask)
    tl.store(numbers + field + at, g.to(tl.float64), mask=mask)
    tl.store(numbers + 2 * field + at, logit.to(tl.float64), mask=mask)
    tl.store(numbers + 3 * field + at, own.to(tl.float64), mask=mask)
    tl.store(numbers + 4 * field + at, m.to(tl.float64), mask=mask)
    tl.store(numbers + 5 * field + at, total, mask=mask)
    if SECOND:
        tl.store(numbers + 6 * field + at, second.to(tl.float64), mask=mask)


@triton.jit
def load_logits(cond, free, alpha, inside, GUIDED: tl.constexpr):
    """float32, -inf outside; with guidance free + alpha (cond - free)."""
    logits = tl.load(cond, mask=inside, other=-INF).to(tl.float32)
    if GUIDED:
        base = tl.load(free, mask=inside, other=0.0).to(tl.float32)
        logits = tl.where(inside, base + alpha * (logits - base), -INF)
    return logits


@triton.jit
def without(logits, cols, first, ids, SIZE: tl.constexpr, COUNT: tl.constexpr):
    """`logits` with -inf at the COUNT columns of `ids`; a tile without them pays nothing."""
    for i in tl.static_range(COUNT):
        banned = tl.load(ids + i)
        if (banned >= first) & (banned < first + SIZE):
            logits = tl.where(cols == banned, -INF, logits)
    return logits


@triton.jit
def partials(
    cond,
    free,
    uniform,
    keys,
    temperature,
    forbidden,
    unranked,
    numbers,
    cond_stride,
    free_stride,
    uniform_stride,
    vocabulary,
    alpha,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    NUM_FORBIDDEN: tl.constexpr,
    NUM_UNRANKED: tl.constexpr,
    GUIDED: tl.constexpr,
    UNIFORM: tl.constexpr,
    KEYS: tl.constexpr,
    SECOND: tl.constexpr,
):
    """State of TILES tiles of one row. Grid (N, splits); every row is read once."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    best = tl.full((), -INF, tl.float64 if UNIFORM else tl.float32)
    logit = tl.full((), -INF, tl.float32)
    own = tl.full((), -INF, tl.float32)
    m = tl.full((), -INF, tl.float32)
    second = tl.full((), -INF, tl.float32)
    total = tl.full((), 0.0, tl.float64)
    g = tl.full((), -1, tl.int32)
    for tile in range(TILES):
        first = (split * TILES + tile) * TILE
        cols = first + tl.arange(0, TILE)
        inside = cols < vocabulary
        logits = load_logits(
            cond + row * cond_stride + cols, free + row * free_stride + cols, alpha, inside, GUIDED
        )
        logits = without(logits, cols, first, forbidden, TILE, NUM_FORBIDDEN)
        ranked = without(logits, cols, first, unranked, TILE, NUM_UNRANKED)
        if UNIFORM:
            u = tl.load(uniform + row * uniform_stride + cols, mask=inside, other=0.5)
            score = logits.to(tl.float64) - tl.load(temperature) * tl.log(-tl.log(u))
        elif KEYS:
            noise = draw(tl.load(keys + row), first, TILE)
            score = logits - tl.load(temperature).to(tl.float32) * tl.log(noise)
        else:
            score = logits
        tile_m = tl.max(ranked, 0)
        if tile_m > m:
            total = total * tl.exp(m.to(tl.float64) - tile_m.to(tl.float64))
            m = tile_m
        base = tl.where(m == -INF, 0.0, m)  # else -inf - -inf
        terms = tl.exp(ranked - base)
        tile_best = tl.max(score, 0)
        if tile_best > best:  # on a tie the earlier tile keeps it: its ids are lower
            at = tl.min(tl.where(score == tile_best, cols, vocabulary), 0)
            total += tl.exp(own.to(tl.float64) - base.to(tl.float64))
            terms = tl.where(cols == at, 0.0, terms)
            if SECOND:
                others = tl.max(tl.where(cols == at, -INF, logits), 0)
                second = tl.maximum(second, tl.maximum(logit, others))
            logit = tile_best.to(tl.float32)
            if UNIFORM or KEYS:
                logit = tl.max(tl.where(cols == at, logits, -INF), 0)
            own = logit
            if NUM_UNRANKED > 0:
                own = tl.max(tl.where(cols == at, ranked, -INF), 0)
            best = tile_best
            g = at
        else:
            if SECOND:
                second = tl.maximum(second, tl.max(logits, 0))
        total += tl.sum(terms, 0).to(tl.float64)  # NaN if any ranked logit is
        if NUM_UNRANKED > 0:
            wrong = tl.max((logits < INF).to(tl.int32) ^ 1, 0)
            total = tl.where(wrong > 0, float("nan"), total)
    cell = row * tl.num_programs(1) + split
    field = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    store_state(numbers, cell, field, best, g, logit, own, m, total, second, True, SECOND)


@triton.jit
def merge(numbers, token, rest, gap, field, splits, SPLITS: tl.constexpr, SECOND: tl.constexpr):
    """token int64[N], rest and gap float64[N] from the states of a row's splits. Grid (N,)."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SPLITS)
    on = part < splits
    at = numbers + row * splits + part
    best = tl.load(at, mask=on, other=-INF)
    ids = tl.load(at + field, mask=on, other=-1.0)
    logits = tl.load(at + 2 * field, mask=on, other=-INF)
    owns = tl.load(at + 3 * field, mask=on, other=-INF)
    ms = tl.load(at + 4 * field, mask=on, other=-INF)
    totals = tl.load(at + 5 * field, mask=on, other=0.0)
    winner = tl.min(tl.where((best == tl.max(best, 0)) & (ids >= 0), ids, INF), 0)
    won = ids == winner
    m = tl.max(ms, 0)
    base = tl.where(m == -INF, 0.0, m)
    total = tl.sum(totals * tl.exp(ms - base), 0)
    total += tl.sum(tl.where(won, 0.0, tl.exp(owns - base)), 0)  # the winners of other splits
    logit = tl.max(tl.where(won, logits, -INF), 0)
    own = tl.max(tl.where(won, owns, -INF), 0)
    odds = tl.where(own == -INF, INF, total * tl.exp(base - logit))
    good = (winner < INF) & (logit > -INF) & (logit < INF) & (total == total)
    tl.store(token + row, tl.where(good, winner, 0.0).to(tl.int64))
    tl.store(rest + row, tl.where(good, odds, float("nan")))
    if SECOND:
        seconds = tl.load(at + 6 * field, mask=on, other=-INF)
        other = tl.max(tl.maximum(seconds, tl.where(won, -INF, logits)), 0)
        tl.store(gap + row, tl.where(good, logit - other, float("nan")))
