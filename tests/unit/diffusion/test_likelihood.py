"""The likelihood estimate where the truth is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medv_ray.diffusion.likelihood import log_likelihood, spread_masks

VOCABULARY = 6


class FixedDenoiser:
    """The same logits at every position, whatever x."""

    def __init__(self, logits: Tensor) -> None:
        self.row, self.head = logits, torch.eye(VOCABULARY)
        self.most = 0

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        self.most = max(self.most, int(need.sum()))
        return self.row.expand(int(need.sum()), -1)

    def unconditional(self, mask_id: int) -> "FixedDenoiser":
        return FixedDenoiser(torch.zeros(VOCABULARY))

    def prompt_length(self, b: int) -> int:
        return 0


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 5))
def test_copies_are_spread_over_all_mask_counts(length: int, copies: int, seed: int) -> None:
    noisy = spread_masks(length, copies, torch.Generator().manual_seed(seed))
    counts = noisy.masked.sum(1)
    assert counts.min() >= 1
    assert torch.equal(noisy.ratio, counts / length)
    if copies == length:
        assert sorted(counts.tolist()) == list(range(1, length + 1))


def test_is_exact_for_a_model_that_ignores_its_input() -> None:
    """CE / ratio then sums to T times the mean CE when all targets are equal."""
    logits = torch.linspace(-1, 1, VOCABULARY)
    answer = torch.full((9,), 2)
    got = log_likelihood(lambda rows: FixedDenoiser(logits), answer, 5, num_samples=32, copies=4)
    assert got == pytest.approx(9 * float(logits.log_softmax(0)[2]), rel=1e-5)


def test_guidance_acts_on_the_logits() -> None:
    logits = torch.linspace(-1, 1, VOCABULARY)
    got = log_likelihood(
        lambda rows: FixedDenoiser(logits),
        torch.tensor([1]),
        5,
        num_samples=4,
        copies=4,
        cfg_scale=1.0,
    )
    assert got == pytest.approx(float((2 * logits).log_softmax(0)[1]), rel=1e-5)


def test_averages_to_the_truth_where_targets_differ() -> None:
    logits = torch.linspace(-2, 2, VOCABULARY)
    answer = torch.tensor([0, 3, 1, 4])
    generator = torch.Generator().manual_seed(0)
    got = log_likelihood(
        lambda rows: FixedDenoiser(logits),
        answer,
        5,
        num_samples=4096,
        copies=16,
        generator=generator,
    )
    assert got == pytest.approx(float(logits.log_softmax(0)[answer].sum()), rel=0.03)
    assert not math.isnan(got)


def test_a_remainder_of_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        log_likelihood(lambda rows: None, torch.tensor([1]), 5, num_samples=10, copies=4)
