"""Sampler settings that are tried beside one another, by the name of the grid.

The first arm of a grid is `exact`: the given settings with every position computed at every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from medv_ray.errors import SettingsError
from medv_ray.settings import SamplerSettings, indivisible

EXACT = "exact"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
REFRESHES = (1, 2, 4, 8, 16, 32, 48)
WITH_CACHE = (0.5, 0.7, 0.9, 0.95)
"""Thresholds that are tried with turbo's cache."""


@dataclass(frozen=True)
class Arm:
    """Settings under a name."""

    name: str
    sampler: SamplerSettings
    marks: tuple[tuple[str, float], ...] = ()
    """Curves on which it is a point, and its x there."""
    also: tuple[str, ...] = ()
    """Names of arms that do the same."""

    @property
    def is_exact(self) -> bool:
        """Whether it gives the tokens of `exact` by construction: a cache that is made anew at
        every step."""
        sampler = self.sampler
        fresh = sampler.cache == "none" or sampler.refresh_interval == 1
        return sampler.rule == "schedule" and fresh


def modes(base: SamplerSettings) -> list[Arm]:
    """Presets, thresholds, both caches, and turbo's cache with thresholds."""
    arms = [Arm(name, base.changed({"preset": name})) for name in ("fast", "turbo")]
    for threshold in THRESHOLDS:
        name, marks = f"threshold-{threshold:g}", (("threshold", threshold),)
        arms.append(Arm(name, _custom(base, rule="threshold", threshold=threshold), marks))
    arms += [arm for kind in ("prefix", "dual") for arm in refreshes(base, kind)]
    for threshold in WITH_CACHE:
        values = {"cache": "dual", "refresh_interval": 32, "rule": "threshold"}
        name, marks = f"dual-32-threshold-{threshold:g}", (("threshold, dual cache", threshold),)
        arms.append(Arm(name, _custom(base, **values, threshold=threshold), marks))
    return arms


def refreshes(base: SamplerSettings, kind: str) -> list[Arm]:
    """One cache, made anew every so many steps, or only when a block begins."""
    every = [
        Arm(f"{kind}-{n}", _custom(base, cache=kind, refresh_interval=n), ((f"{kind} cache", n),))
        for n in REFRESHES
    ]
    passes = passes_of_block(every[0].sampler)
    once = Arm(f"{kind}-block", _custom(base, cache=kind), ((f"{kind} cache", passes),))
    return [*every, once]


def steps(base: SamplerSettings) -> list[Arm]:
    """Fewer and fewer steps for the same length: 1 a block, 2, 4 ... up to gen_length."""
    count = base.gen_length // base.block_length
    numbers = [count * 2**k for k in range(20) if count * 2**k <= base.gen_length]
    return [Arm(f"steps-{z}", _custom(base, steps=z), (("steps", z),)) for z in numbers]


def blocks(base: SamplerSettings) -> list[Arm]:
    """Block lengths 1, 2, 4 ... up to gen_length, as far as they divide it and the steps."""
    lengths = [2**k for k in range(20) if 2**k < base.gen_length] + [base.gen_length]
    return [
        Arm(f"block-{n}", _custom(base, block_length=n), (("block length", n),))
        for n in lengths
        if indivisible(base.gen_length, n, base.steps) is None
    ]


def latency(base: SamplerSettings) -> list[Arm]:
    """What buys time: fewer steps, a threshold, the dual cache."""
    tried = [("steps", steps(base)), ("threshold", modes(base)), ("dual", refreshes(base, "dual"))]
    return [
        replace(arm, marks=((arm.marks[0][0], 0.0),))
        for curve, arms in tried
        for arm in arms
        if arm.marks and arm.marks[0][0].startswith(curve)
    ]


def scaling(base: SamplerSettings) -> list[Arm]:
    """Nothing but the given settings: what differs is the model."""
    return []


GRIDS: dict[str, Callable[[SamplerSettings], list[Arm]]] = {
    grid.__name__: grid for grid in (modes, steps, blocks, latency, scaling)
}


def grid(name: str, base: SamplerSettings) -> list[Arm]:
    """The arms of a grid, `exact` first; those that do the same are one. Raises SettingsError
    E1001, E1002."""
    if name not in GRIDS:
        raise SettingsError("E1001", f"--grid {name[:40]!r}: one of {', '.join(GRIDS)}.")
    exact = Arm(EXACT, base.changed({"preset": "exact"}))
    return distinct([exact, *GRIDS[name](exact.sampler)])


def candidates(base: SamplerSettings) -> list[Arm]:
    """What may stand in for `exact`: the arms of `modes` that are not exact by construction."""
    return [arm for arm in grid("modes", base) if not arm.is_exact]


def distinct(arms: Iterable[Arm]) -> list[Arm]:
    """Arms in order; one that does what an earlier one does lends it its marks and its name."""
    found: dict[str, Arm] = {}
    for arm in arms:
        key = effect(arm.sampler)
        first = found.get(key)
        found[key] = (
            arm
            if first is None
            else replace(first, marks=first.marks + arm.marks, also=(*first.also, arm.name))
        )
    return list(found.values())


def passes_of_block(sampler: SamplerSettings) -> int:
    """Steps that a block takes at most."""
    if sampler.rule != "schedule":
        return sampler.block_length
    return sampler.steps * sampler.block_length // sampler.gen_length


def effect(sampler: SamplerSettings) -> str:
    """Equal for settings that do the same."""
    values = sampler.model_dump(mode="json")
    unused = {"preset"}
    unused |= {"threshold"} if sampler.rule != "threshold" else set()
    unused |= {"factor"} if not sampler.rule.startswith("factor") else set()
    every = sampler.refresh_interval
    if sampler.cache == "none" or (every or 0) >= passes_of_block(sampler):
        values["refresh_interval"] = None
    return json.dumps({name: v for name, v in values.items() if name not in unused})


def _custom(base: SamplerSettings, **values: Any) -> SamplerSettings:
    """`base`, which is exact, with other values."""
    return base.changed({"preset": "custom", **values})
