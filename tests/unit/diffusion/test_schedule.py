"""Schedules: how many tokens a step commits, and how long Algorithm 1 waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medv_ray.diffusion.schedule import remain_probability, transfer_schedule


@given(st.integers(0, 300), st.integers(1, 80))
def test_shares_all_masks_as_evenly_as_whole_numbers_allow(masks: int, steps: int) -> None:
    schedule = transfer_schedule(masks, steps)
    assert len(schedule) == steps
    assert sum(schedule) == masks
    assert sorted(schedule, reverse=True) == schedule
    assert schedule[0] - schedule[-1] <= 1


def test_uneven_and_idle_steps() -> None:
    assert transfer_schedule(7, 3) == [3, 2, 2]
    assert transfer_schedule(2, 5) == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_remaining_multiplies_to_the_share_of_noise_left(steps: int) -> None:
    """After step i a token is masked with probability t = 1 - (i + 1) / steps."""
    left = 1.0
    for step in range(steps):
        left *= remain_probability(step, steps)
        assert left == pytest.approx(1 - (step + 1) / steps)
    assert remain_probability(steps - 1, steps) == 0
