"""Random numbers that depend on a key and a position only: Philox4x32-10, in plain torch.

    word[n, v] = output v % 4 of Philox with counter (v // 4, 0, 0, 0) and key keys[n]
    u[n, v]    = (word[n, v] + 1/2) / 2^32, in (0, 1)

A row's numbers are the same whatever rows are beside it, on a CPU as in a kernel.

Shapes: N rows, V vocabulary.
Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); SplitMix64, Steele
et al., OOPSLA 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
COUNTERS = 2**15
"""Counters at a time: what they need on the way stays in cache."""
GOLDEN = 0x9E3779B97F4A7C15
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def row_keys(seed: int | Tensor, step: int | Tensor, positions: Tensor) -> Tensor:
    """int64[N], a key per row that depends on request seed, step and position alone.

    Args:
        seed, step: ints, or int64[N] (or int64[]) on the device of `positions`.
        positions: int64[N].
    """
    key = _mix(_add(torch.zeros_like(positions), seed))
    return _mix(_add(_mix(_add(key, step)), positions))


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: int64[..., 4] of 32-bit words from counters int64[..., 4], keys int64[..., 2].

    Their batches broadcast. Words are held in int64, 0 to 2^32 - 1.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def words(keys: Tensor, vocabulary: int) -> Tensor:
    """int64[N, V], a 32-bit word for every row and token."""
    counter = torch.zeros((vocabulary + 3) // 4, 4, dtype=torch.int64, device=keys.device)
    counter[:, 0] = torch.arange(len(counter), device=keys.device)
    halves = torch.stack([keys & WORD, (keys >> 32) & WORD], dim=-1)  # [N, 2]
    out = torch.empty(len(keys), vocabulary, dtype=torch.int64, device=keys.device)
    height = max(1, COUNTERS // max(1, len(counter)))
    for start in range(0, len(keys), height):
        some = slice(start, start + height)
        made = philox(counter, halves[some, None])  # [n, V / 4, 4]
        out[some] = made.flatten(1)[:, :vocabulary]
    return out


def uniform(keys: Tensor, vocabulary: int) -> Tensor:
    """float64[N, V] in (0, 1), exact: never 0 and never 1, with 2^-33 left at either end."""
    return words(keys, vocabulary).double().add_(0.5).mul_(2.0**-32)


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product; int64 holds it once `word` is halved in two."""
    low, high = (word & 0xFFFF) * multiplier, (word >> 16) * multiplier  # each below 2^48
    total = high + (low >> 16)  # the product divided by 2^16
    return total >> 16, ((total & 0xFFFF) << 16) | (low & 0xFFFF)


def _add(key: Tensor, value: int | Tensor) -> Tensor:
    """key + (value + 1) x the golden ratio, modulo 2^64."""
    step = _signed(GOLDEN)
    if isinstance(value, int):
        return key + _signed(((value + 1) * GOLDEN) & (2**64 - 1))
    return key + (value + 1) * step


def _mix(key: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection; int64 products wrap modulo 2^64."""
    key = (key ^ _shift(key, 30)) * _signed(MIX[0])
    key = (key ^ _shift(key, 27)) * _signed(MIX[1])
    return key ^ _shift(key, 31)


def _shift(key: Tensor, by: int) -> Tensor:
    """Right shift of the 64 bits with zeros from the left; torch's keeps the sign."""
    return (key >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return value - 2**64 if value >= 2**63 else value
