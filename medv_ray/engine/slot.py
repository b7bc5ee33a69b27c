"""A request that is being denoised, and one step of those that have doors of their own.

Shapes: P prompt positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medv_kernels.linear import PackedWeight
from medv_ray.diffusion.sampler import Denoising
from medv_ray.engine.lane import LaneRow
from medv_ray.engine.request import Counters, Request
from medv_ray.errors import DataError
from medv_ray.model.denoise import FullRecompute, forward_rows
from medv_ray.settings import SamplerSettings


@dataclass
class Slot:
    """One request, from its prompt to its answer."""

    ticket: int
    started_s: float
    request: Request
    settings: SamplerSettings
    prompt: Tensor
    """float[P, D], for a lane; a door has its own."""
    denoising: Denoising | LaneRow | None
    """None until there is room in a lane."""
    door: FullRecompute | None
    blind: FullRecompute | None
    kv_bytes: int
    """Of the doors."""
    warnings: tuple[str, ...]
    image_sha256: tuple[str, ...]
    prompt_sha256: str
    waited_s: float
    vision_s: float
    cancelled: bool = False
    error: DataError | None = None

    @property
    def row(self) -> Denoising | LaneRow:
        assert self.denoising is not None, "it has entered"
        return self.denoising

    @property
    def steps(self) -> bool:
        """Whether it has steps to take."""
        return not (self.cancelled or self.error or self.row.done)


def advance_alone(slots: Sequence[Slot], head: Tensor | PackedWeight, counters: Counters) -> None:
    """One step of each slot; their forward passes run as one where the model can.

    Args:
        slots: with doors.
        head: float[V, D].
    """
    rows = [slot.row for slot in slots if isinstance(slot.row, Denoising)]
    xs, needs = [row.x for row in rows], [row.need() for row in rows]
    doors = [slot.door for slot in slots if slot.door is not None]
    blind: dict[int, Tensor] = {}
    guided = {i: slot.blind for i, slot in enumerate(slots) if slot.blind is not None}
    before = sum(door.computed for door in (*doors, *guided.values()))
    hidden = forward_rows(doors, xs, needs)
    if guided:
        found = forward_rows(
            list(guided.values()), [xs[i] for i in guided], [needs[i] for i in guided]
        )
        blind = dict(zip(guided, found, strict=True))
    after = sum(door.computed for door in (*doors, *guided.values()))
    counters.positions += after - before
    for i, slot in enumerate(slots):
        counters.forward_passes += bool(len(hidden[i])) * (2 if i in blind else 1)
        try:
            rows[i].advance(hidden[i], head, blind.get(i))
        except FloatingPointError:
            slot.error = not_finite(rows[i].step)


def not_finite(step: int) -> DataError:
    """What ends a row whose logits are no numbers."""
    return DataError("E1305", f"NaN or infinity at step {step}.")
