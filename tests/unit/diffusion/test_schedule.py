"""Schedules: how many tokens a step commits, and how long Algorithm 1 waits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medv_ray.diffusion.schedule import remain_probability, transfer_schedule


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(1, 80))
def test_shares_all_masks_as_evenly_as_whole_numbers_allow(masks: list[int], steps: int) -> None:
    schedule = transfer_schedule(torch.tensor(masks), steps)
    assert schedule.shape == (len(masks), steps)
    assert schedule.sum(1).tolist() == masks
    for row in schedule.tolist():
        assert sorted(row, reverse=True) == row
        assert row[0] - row[-1] <= 1


def test_uneven_and_idle_steps() -> None:
    assert transfer_schedule(torch.tensor([7]), 3).tolist() == [[3, 2, 2]]
    assert transfer_schedule(torch.tensor([2]), 5).tolist() == [[1, 1, 0, 0, 0]]


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_remaining_multiplies_to_the_share_of_noise_left(steps: int) -> None:
    """After step i a token is masked with probability t = 1 - (i + 1) / steps."""
    left = 1.0
    for step in range(steps):
        left *= remain_probability(step, steps)
        assert left == pytest.approx(1 - (step + 1) / steps)
    assert remain_probability(steps - 1, steps) == 0
