"""Grids of settings: what stands in them, and what is the same."""

from __future__ import annotations

import pytest

from medv_ray.errors import SettingsError
from medv_ray.evaluation.grids import GRIDS, candidates, effect, grid
from medv_ray.settings import SamplerSettings

BASE = SamplerSettings(gen_length=64, block_length=32, steps=64)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("base", [BASE, SamplerSettings(gen_length=6, block_length=3, steps=4)])
def test_every_arm_does_something_else(name: str, base: SamplerSettings) -> None:
    arms = grid(name, base)
    assert (arms[0].name, arms[0].sampler) == ("exact", base)
    assert len({arm.name for arm in arms}) == len({effect(arm.sampler) for arm in arms})
    assert all("/" not in arm.name for arm in arms)


def test_arms_that_do_the_same_are_one() -> None:
    arms = {arm.name: arm for arm in grid("modes", BASE)}
    assert arms["fast"].also == ("threshold-0.9",)
    assert ("threshold", 0.9) in arms["fast"].marks
    # a block has 32 steps: a cache that is made anew after these is made anew with the block
    assert arms["dual-32"].also == ("dual-48", "dual-block")
    assert arms["turbo"].sampler == BASE.changed({"preset": "turbo"})


def test_candidates_are_what_may_differ() -> None:
    names = {arm.name for arm in candidates(BASE)}
    assert {"fast", "turbo", "prefix-2", "dual-16"} <= names
    assert not names & {"exact", "prefix-1", "dual-1"}


def test_a_base_that_is_not_exact_is_made_so() -> None:
    assert grid("steps", BASE.changed({"preset": "turbo"}))[0].sampler == BASE


def test_steps_and_blocks_divide() -> None:
    assert [arm.sampler.steps for arm in grid("steps", BASE)[1:]] == [2, 4, 8, 16, 32]
    base = SamplerSettings(gen_length=16, block_length=16, steps=4)
    lengths = {arm.sampler.block_length for arm in grid("blocks", base)}
    assert lengths == {4, 8, 16}, "4 steps are too few for 8 or 16 blocks"


def test_what_cannot_be_tried_is_refused() -> None:
    with pytest.raises(SettingsError, match="E1001: --grid 'speed': one of modes, steps"):
        grid("speed", BASE)
    with pytest.raises(SettingsError, match="E1001"):
        grid("modes", BASE.changed({"remasking": "random"}))
