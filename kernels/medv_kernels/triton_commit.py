"""Kernels of `commit` and `commit_step`: ranks by counting, then a program a row that decides.

    rank[b, i] = how many able j have key_j < key_i, or key_j == key_i and j < i     (from 0)

`key` is cut at the largest float64, so that odds of inf still rank. Able is an eligible
position whose rest is not NaN; the others get the rank `NEVER`. Counting needs no sort, takes any k
and leaves ties to the lowest position. Reference: reference_commit.py.

Shapes: B rows, L positions, at most ROW of them; S stop sequences, W ids in the longest.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEVER = tl.constexpr(2**30)
LARGEST = tl.constexpr(1.7976931348623157e308)
RULE_K = tl.constexpr(0)
RULE_THRESHOLD = tl.constexpr(1)
RULE_FACTOR = tl.constexpr(2)


@triton.jit
def keys_of(key, rest, eligible, limit, row, i, length, LIMITED: tl.constexpr):
    """Keys float64 at positions i of a row, and which are able."""
    on = tl.load(eligible + row * length + i, mask=i < length, other=0) != 0
    if LIMITED:
        on = on & (i < tl.load(limit + row))
    ranked = tl.load(key + row * length + i, mask=i < length, other=0.0).to(tl.float64)
    odds = tl.load(rest + row * length + i, mask=i < length, other=0.0)
    return tl.where(ranked > LARGEST, LARGEST, ranked), on & (odds == odds)


@triton.jit
def ranks(
    key,
    rest,
    eligible,
    limit,
    rank,
    length,
    LIMITED: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """int32[B, L], the rank of every position. Grid (B, TILES).

    LIMITED: `eligible` holds the masks, and only those before the row's limit may be committed.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mine, able = keys_of(key, rest, eligible, limit, row, i, length, LIMITED)
    count = tl.zeros((TILE,), tl.int32)
    for tile in range(TILES):
        j = tile * TILE + tl.arange(0, TILE)
        other, there = keys_of(key, rest, eligible, limit, row, j, length, LIMITED)
        before = (other[None, :] < mine[:, None]) | (
            (other[None, :] == mine[:, None]) & (j[None, :] < i[:, None])
        )
        count += tl.sum((before & there[None, :]).to(tl.int32), 1)
    tl.store(rank + row * length + i, tl.where(able, count, NEVER), mask=i < length)


@triton.jit
def accepted(rank, confidence, able, k, rule, num_masks, RULE: tl.constexpr):
    """int64, how many ranks a row accepts. rank and confidence are those of the whole row.

    k: the row's k. rule: the threshold or the factor, float64. num_masks: int64, or below 0 for the
    count of eligible positions.
    """
    num_able = tl.sum(able.to(tl.int64), 0)
    if RULE == RULE_K:
        count = k
    elif RULE == RULE_THRESHOLD:
        sure = tl.sum((able & (confidence >= rule)).to(tl.int64), 0)
        count = tl.maximum(sure, 1)
    else:
        masks = tl.where(num_masks < 0, num_able, num_masks)
        fails = able & (rank > 0) & (confidence < 1 - rule / (rank + 2).to(tl.float64))
        first = tl.min(tl.where(fails, rank, NEVER), 0).to(tl.int64)  # ranks from 0
        passed = tl.minimum(first, num_able)
        count = tl.where(passed + 1 >= masks, masks, passed)
    return tl.minimum(count, num_able)


@triton.jit
def commit(
    x,
    token,
    rest,
    rank,
    k,
    rule,
    num_masks,
    new,
    chosen,
    length,
    ROW: tl.constexpr,
    RULE: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """new int64[B, L] and chosen bool[B, L]. Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, ROW)
    at, inside = row * length + i, i < length
    order = tl.load(rank + at, mask=inside, other=NEVER)
    odds = tl.load(rest + at, mask=inside, other=0.0).to(tl.float64)
    masks = tl.full((), -1, tl.int64)
    if COUNTED:
        masks = tl.load(num_masks + row)
    able = order < NEVER
    wanted = tl.full((), 0, tl.int64)
    if RULE == RULE_K:
        wanted = tl.load(k + row).to(tl.int64)
    count = accepted(order, 1 / (1 + odds), able, wanted, tl.load(rule), masks, RULE)
    taken = able & (order < count)
    before = tl.load(x + at, mask=inside, other=0)
    tl.store(new + at, tl.where(taken, tl.load(token + at, mask=inside, other=0), before), inside)
    tl.store(chosen + at, taken.to(tl.int8), mask=inside)


@triton.jit
def after_step(x, token, taken_rank, count, row, i, length):
    """Tokens at positions i after the step: reads where a neighbour may have written already.

    Either way the value is the same: what is taken comes from `token`, the rest does not change.
    """
    inside = i < length
    order = tl.load(taken_rank + row * length + i, mask=inside, other=NEVER)
    old = tl.load(x + row * length + i, mask=inside, other=0)
    return tl.where(order < count, tl.load(token + row * length + i, mask=inside, other=0), old)


@triton.jit
def first_stop(
    x,
    token,
    rank,
    count,
    row,
    length,
    start,
    found,
    sequences,
    sizes,
    ROW: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """int64, where the row is cut: sequences in order until a cut is known; never to the right."""
    i = tl.arange(0, ROW)
    trying = tl.full((), 1, tl.int32)
    for s in tl.static_range(NUM_STOPS):
        size = tl.load(sizes + s)
        hit = (size > 0) & (i >= start) & (i + size <= length)
        for w in tl.static_range(WIDTH):
            now = after_step(x, token, rank, count, row, i + w, length)
            hit = hit & ((w >= size) | (now == tl.load(sequences + s * WIDTH + w)))
        place = tl.min(tl.where(hit, i, length), 0).to(tl.int64)
        found = tl.where((trying > 0) & (place < found), place, found)
        trying = tl.where(found < length, 0, trying)
    return found


@triton.jit
def commit_step(
    x,
    masked,
    stop,
    token_confidence,
    token_step,
    failed,
    token,
    rest,
    rank,
    limit,
    step,
    rule,
    num_masks,
    sequences,
    sizes,
    length,
    start,
    mask_id,
    ROW: tl.constexpr,
    RULE: tl.constexpr,
    COUNTED: tl.constexpr,
    NUM_STOPS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One step of a row, in place. Grid (B,). `rule` holds each row's k, threshold or factor."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, ROW)
    at, inside = row * length + i, i < length
    odds = tl.load(rest + at, mask=inside, other=0.0).to(tl.float64)
    order = tl.load(rank + at, mask=inside, other=NEVER)
    before = tl.load(masked + at, mask=inside, other=0) != 0
    lost = before & (i < tl.load(limit + row)) & (odds != odds)
    if tl.max(lost.to(tl.int32), 0) > 0:
        tl.store(failed + row, 1)
    else:
        able = order < NEVER
        masks = tl.full((), -1, tl.int64)
        if COUNTED:
            masks = tl.load(num_masks + row)
        number = tl.load(rule + row)
        confidence = 1 / (1 + odds)
        count = accepted(order, confidence, able, number.to(tl.int64), number, masks, RULE)
        taken = able & (order < count)
        new = tl.load(token + at, mask=taken, other=0)
        found = first_stop(
            *(x, token, rank, count, row, length, start, tl.load(stop + row), sequences, sizes),
            *(ROW, NUM_STOPS, WIDTH),
        )
        still = before & ((taken == 0) | (new == mask_id))
        tl.store(x + at, new, mask=taken)
        tl.store(masked + at, still.to(tl.int8), mask=inside)
        tl.store(token_confidence + at, confidence.to(tl.float32), mask=taken)
        done = tl.load(step + row).to(tl.int32)
        tl.store(token_step + at, tl.zeros_like(i) + done, mask=taken)
        tl.store(stop + row, found)
