"""Philox against its published vectors, and what keys promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medv_kernels import noise, reference

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_vectors(counter: list[int], key: list[int], want: list[int]) -> None:
    """Those of Random123's kat_vectors for philox4x32-10."""
    assert noise.philox(torch.tensor(counter), torch.tensor(key)).tolist() == want


def test_words_are_the_outputs_in_order() -> None:
    key = -(2**62) - 12345
    halves = torch.tensor([key & ONES, (key >> 32) & ONES])
    got = noise.words(torch.tensor([7, key]), 10)
    for v in range(10):
        whole = noise.philox(torch.tensor([v // 4, 0, 0, 0]), halves)
        assert got[1, v] == whole[v % 4]
    assert not torch.equal(got[0], got[1])


def test_uniform_never_touches_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, ONES]])
    monkeypatch.setattr(noise, "words", lambda keys, vocabulary: extremes)
    got = noise.uniform(torch.zeros(1), 2)
    assert got.tolist() == [[2.0**-33, 1 - 2.0**-33]]


def splitmix(state: int) -> int:
    """Steele's finaliser in Python's integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


def test_row_keys_depend_on_seed_step_and_position_alone() -> None:
    positions = torch.tensor([0, 1, 5, 4095, 2**40])
    got = noise.row_keys(-3, 7, positions)
    for position, key in zip(positions.tolist(), got.tolist(), strict=True):
        want = 0
        for part in (-3, 7, position):
            want = splitmix((want + (part + 1) * noise.GOLDEN) % 2**64)
        assert key % 2**64 == want
    on_device = noise.row_keys(torch.tensor([-3] * 5), torch.tensor(7), positions)
    assert torch.equal(got, on_device)
    keys = [noise.row_keys(seed, step, torch.arange(32)) for seed in range(32) for step in range(8)]
    assert len(torch.cat(keys).unique()) == 32 * 32 * 8


def test_row_keys_spread_over_all_bits() -> None:
    keys = noise.row_keys(0, 0, torch.arange(4096))
    bits = (keys[:, None] >> torch.arange(64)) & 1
    # a fair coin of 4096 throws strays by more than 4.5 standard deviations once in 150,000
    assert ((bits.double().mean(0) - 0.5).abs() < 4.5 * 0.5 / math.sqrt(4096)).all()


def chi_square(tokens: Tensor, p: Tensor) -> float:
    want = p * len(tokens)
    return float(((torch.bincount(tokens, minlength=len(p)) - want) ** 2 / want).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_keys_sample_from_the_softmax(temperature: float) -> None:
    """argmax of l - T log E follows softmax(l / T)."""
    logits = torch.linspace(-2, 2, 9)
    keys = noise.row_keys(11, 0, torch.arange(20_000))
    token = reference.select(logits.expand(20_000, 9), temperature=temperature, keys=keys).token
    p = (logits.double() / temperature).softmax(0)
    assert chi_square(token, p) < 26.1  # 0.1 % of chi-square with 8 degrees of freedom lies above


def test_a_row_does_not_depend_on_its_company() -> None:
    logits = torch.randn(130, 50, generator=torch.manual_seed(0))
    keys = noise.row_keys(1, 2, torch.arange(130))
    together = reference.select(logits, temperature=1.0, keys=keys)
    for n in (0, 63, 64, 129):
        alone = reference.select(logits[n : n + 1], temperature=1.0, keys=keys[n : n + 1])
        assert alone.token[0] == together.token[n]
