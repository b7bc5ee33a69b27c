"""Requests of one kind side by side on a GPU: one forward pass and one read by the host a step.

Shapes: B slots, L response positions, W block, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from medv_ray.diffusion.blocks import Blocks
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.model.medv import Medv
from medv_ray.model.slots import Slots
from medv_ray.settings import SamplerSettings

log = logging.getLogger(__name__)
LEAST_PLACES = 256
"""Room for prompts is this or twice it, and so on: a lane is seldom replaced by a larger one."""


class Lane:
    """Slots of one sampler setting: full recompute, or the dual cache where `dual`."""

    def __init__(
        self,
        model: Medv,
        spec: SampleSpec,
        num_slots: int,
        prompt_places: int,
        refresh_interval: int | None,
        dual: bool,
    ) -> None:
        self.slots = Slots(
            model, num_slots, prompt_places, spec.gen_length, spec.suffix_ids, keep=dual
        )
        self.blocks = Blocks(spec, num_slots, model.device)
        self.passes = [0] * num_slots
        """Forward passes of the row in each slot."""
        self._head = model.head
        self._dual, self._refresh_interval = dual, refresh_interval
        self._calls = [0] * num_slots  # since the block was entered
        self._all = torch.arange(num_slots, device=model.device)
        self._taking = torch.zeros(num_slots, dtype=torch.bool, device=model.device)
        self._graph = Captured() if dual and model.device.type == "cuda" else None

    @property
    def empty(self) -> bool:
        return not any(self.blocks.rows)

    def enter(self, prompt: Tensor) -> int | None:
        """A free slot for a prompt float[P, D], blank; None when there is none."""
        free = (b for b, row in enumerate(self.blocks.rows) if row is None)
        slot = next(free, None)
        if slot is not None:
            self.slots.enter(slot, prompt)
            self.blocks.enter(slot)
            self.passes[slot] = self._calls[slot] = 0
        return slot

    def step(self) -> None:
        """Move every running slot one step on."""
        running = self.blocks.running
        whole = [b for b in running if self._computes_all(b)]
        part = [b for b in running if b not in whole]
        if part:
            self._choose(part)
            if self._graph is None:
                self._take_window()
            else:
                self._graph.run(self._take_window)
            self.slots.computed += len(part) * self.blocks.spec.block_length
        if whole:
            self._choose(whole)
            rows = torch.tensor(whole, device=self._all.device)
            hidden = self.slots.full(whole, self.blocks.state.x[rows])
            windows = self.blocks.windows()[rows][..., None].expand(-1, -1, hidden.shape[2])
            self.blocks.step(hidden.gather(1, windows), self._head, rows, self._taking)
        before = {b: self.blocks.block(b) for b in running}
        self.blocks.settle(running)
        for b in running:
            self.passes[b] += 1
            self._calls[b] = self._calls[b] + 1 if self.blocks.block(b) == before[b] else 0

    def _computes_all(self, b: int) -> bool:
        call = self._calls[b]
        return not self._dual or call % (self._refresh_interval or call + 1) == 0

    def _choose(self, slots: list[int]) -> None:
        taking = [b in slots for b in range(len(self.passes))]
        self._taking.copy_(torch.tensor(taking))

    def _take_window(self) -> None:
        """The step of all slots whose keys and values are kept, of those that are `_taking`."""
        hidden = self.slots.window(self.blocks.tokens(), self.blocks.windows())
        self.blocks.step(hidden, self._head, self._all, self._taking)


class Captured:
    """A step of fixed tensors on a GPU, as a CUDA graph from its second call on.

    The first call compiles kernels and makes constants. A capture computes nothing, so it is
    replayed at once. The step is not kept: a lane that kept itself would not free its memory.
    """

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def run(self, step: Callable[[], None]) -> None:
        """Take the step, the same one at every call."""
        if not self._warm:
            step()
            self._warm = True
            return
        if self._graph is None:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
            self._graph = graph
        self._graph.replay()


class LaneRow:
    """One row of a lane, as the engine sees a `Denoising` of one row."""

    def __init__(self, lane: Lane, slot: int) -> None:
        self._lane, self._slot = lane, slot
        self.spec = lane.blocks.spec

    @property
    def state(self) -> Literal["running", "done", "failed", "unfit"]:
        row = self._lane.blocks.rows[self._slot]
        assert row is not None
        return row.state

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._lane.passes[self._slot]

    @property
    def forward_passes(self) -> int:
        return self._lane.passes[self._slot]

    @property
    def x(self) -> Tensor:
        """int64[1, L]."""
        return self._of("x")

    @property
    def masked(self) -> Tensor:
        """bool[1, L]."""
        return self._of("masked")

    @property
    def token_confidence(self) -> Tensor:
        """float32[1, L]."""
        return self._of("token_confidence")

    @property
    def token_step(self) -> Tensor:
        """int32[1, L]."""
        return self._of("token_step")

    def stop_position(self, b: int) -> int | None:
        """Where the first stop sequence begins; b is 0."""
        row = self._lane.blocks.rows[self._slot]
        return None if row is None else row.stop

    def finish(self, b: int) -> Literal["stop", "length"]:
        return "length" if self.stop_position(b) is None else "stop"

    def leave(self) -> None:
        """Free the slot."""
        self._lane.blocks.leave(self._slot)

    def _of(self, name: str) -> Tensor:
        whole: Tensor = getattr(self._lane.blocks.state, name)
        return whole[self._slot : self._slot + 1].cpu()


class Lanes:
    """Lanes by sampler settings, as many slots as memory allows. A lane that is empty makes room
    for one of another kind or of longer prompts; requests that find none wait."""

    def __init__(self, model: Medv, budget_bytes: int) -> None:
        self._model, self._budget_bytes = model, budget_bytes
        self._lanes: dict[tuple[SampleSpec, str, int | None], Lane] = {}

    def enter(
        self,
        spec: SampleSpec,
        settings: SamplerSettings,
        prompt: Tensor,
        most: int,
        taken_bytes: int = 0,
    ) -> LaneRow | None:
        """A slot for a prompt float[P, D], in a new lane of at most `most` slots if there is none;
        None: wait. `taken_bytes`: keys and values outside of lanes."""
        key = (spec, settings.cache, settings.refresh_interval)
        lane = self._lanes.get(key)
        if lane is None or len(prompt) > lane.slots.prompt_places:
            if lane is not None and not lane.empty:
                return None
            taken_bytes += self.nbytes(drop_empty=True)
            lane = self._make(spec, settings, len(prompt), most, taken_bytes)
            if lane is None:
                return None
            self._lanes[key] = lane
        slot = lane.enter(prompt)
        return None if slot is None else LaneRow(lane, slot)

    def nbytes(self, drop_empty: bool = False) -> int:
        """Bytes of the keys and values of all lanes, or of those that are at work: the others are
        dropped."""
        if drop_empty:
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.empty}
        return sum(lane.slots.nbytes for lane in self._lanes.values())

    def clear(self) -> None:
        """Drop all lanes, and what they keep."""
        self._lanes.clear()

    def step(self) -> tuple[int, int]:
        """One step of every lane. Returns passes of rows and positions computed."""
        lanes = [lane for lane in self._lanes.values() if lane.blocks.running]
        passes, before = 0, sum(lane.slots.computed for lane in lanes)
        for lane in lanes:
            passes += len(lane.blocks.running)
            lane.step()
        return passes, sum(lane.slots.computed for lane in lanes) - before

    def _make(
        self, spec: SampleSpec, settings: SamplerSettings, prompt: int, most: int, taken_bytes: int
    ) -> Lane | None:
        dual, places = settings.cache == "dual", LEAST_PLACES
        while places < prompt:
            places *= 2
        if dual:
            whole = places + spec.gen_length + len(spec.suffix_ids)
            room = (self._budget_bytes - taken_bytes) // Slots.kept_bytes(self._model, whole)
            if room < 1 and taken_bytes:
                return None
            most = max(1, min(most, room))
        while True:
            try:
                return Lane(self._model, spec, most, places, settings.refresh_interval, dual)
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
            most //= 2
            log.warning("out of memory: a lane of %d slots", most)
