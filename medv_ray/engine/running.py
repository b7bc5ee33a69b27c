"""Running batches: requests that share forward passes, by the kind of their settings.

Shapes: P prompt positions, D width, L response positions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight
from medv_ray.diffusion.canvas import Canvas
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.denoisers import RowByRow, SideBySide
from medv_ray.engine.layout import Layout
from medv_ray.engine.request import Request
from medv_ray.errors import DataError, is_out_of_memory
from medv_ray.model.cache import PromptStore
from medv_ray.model.denoise import Prompt
from medv_ray.model.keys import kept_bytes
from medv_ray.model.medv import Medv
from medv_ray.settings import EngineSettings, SamplerSettings

log = logging.getLogger(__name__)
CPU_BYTES = 4 * 2**30
LEAST_ROOM = 256
"""Room for prompts is so many positions or twice as many, and so on: few batches for all."""
MOST_EMPTY = 4
"""Batches that nobody is in, kept because their kind may come again."""


def default_budget(model: Medv) -> int:
    """Bytes of keys and values where settings say nothing."""
    on_cpu = model.device.type == "cpu"
    return CPU_BYTES if on_cpu else torch.cuda.mem_get_info(model.device)[0] // 2


@dataclass
class RequestState:
    """A request from its prompt to its answer, and its place in a running batch."""

    ticket: int
    started_s: float
    request: Request
    settings: SamplerSettings
    spec: SampleSpec
    prompt: Prompt
    embeds: Tensor
    """float[P, D], of the prompt."""
    warnings: tuple[str, ...]
    image_sha256: tuple[str, ...]
    prompt_sha256: str
    waited_s: float
    vision_s: float
    layout: Layout | None = None
    """Of the request's template."""
    cancelled: bool = False
    batch: RunningBatch | None = None
    """None until there is room in one."""
    row: int = -1
    """In the batch."""

    @property
    def canvas(self) -> Canvas | None:
        """What is known of its response."""
        return self.request.canvas if self.layout is None else self.layout.canvas

    @property
    def denoising(self) -> Denoising:
        """Of its batch."""
        assert self.batch is not None, "it has entered"
        return self.batch.denoising

    @property
    def error(self) -> DataError | None:
        """What ends it, where its logits are no numbers."""
        row = self.denoising.row(self.row)
        step = f"NaN or infinity at step {row.total}."
        return DataError("E1305", step) if row.failed else None

    @property
    def running(self) -> bool:
        """Whether it has steps to take."""
        return self.denoising.row(self.row).running


class RunningBatch:
    """Responses that are denoised side by side, and what computes them."""

    def __init__(
        self,
        spec: SampleSpec,
        num_rows: int,
        device: torch.device,
        denoiser: RowByRow | SideBySide,
    ) -> None:
        self.denoiser = denoiser
        together = isinstance(denoiser, SideBySide)
        self.denoising = Denoising(spec.kind, num_rows, device, together=together)

    @property
    def empty(self) -> bool:
        """Nobody has a row."""
        return not any(self.denoising.rows)

    def enter(self, state: RequestState) -> bool:
        """Give a free row to a request; False where there is none."""
        rows = self.denoising.rows
        row = next((b for b, taken in enumerate(rows) if taken is None), None)
        if row is None:
            return False
        request, length = state.request, len(state.embeds)
        generator = torch.Generator().manual_seed(request.seed)
        self.denoising.enter(row, state.spec, generator, length, state.canvas)
        self.denoiser.enter(row, state.embeds, state.prompt)
        state.batch, state.row = self, row
        return True

    def leave(self, row: int) -> None:
        """Free a row."""
        self.denoising.leave(row)
        self.denoiser.leave(row)

    def step(self, head: Tensor | PackedWeight) -> tuple[int, int]:
        """Move every running row one step on. Returns forward passes of rows, with and without the
        prompt, and positions computed.

        Args:
            head: float[V, D].
        """
        before = self.denoiser.computed
        passes = sum(bool(need) for need in self.denoising.needs().values())
        self.denoiser.propose(self.denoising, head)
        self.denoising.commit()
        self.denoising.read()
        guided = self.denoising.spec.cfg_scale > 0
        return passes * (2 if guided else 1), self.denoiser.computed - before


class RunningBatches:
    """The running batches of one model, inside a budget of keys and values.

    Beginnings of prompts that are kept for later requests give way to the keys and values of
    requests that are being denoised, and batches that nobody is in to new ones.
    """

    def __init__(self, model: Medv, engine: EngineSettings, together: bool) -> None:
        """`together`: compute rows side by side where their settings allow it."""
        self._model, self._together = model, together
        budget = engine.kv_cache_bytes
        self.budget_bytes = budget = default_budget(model) if budget is None else budget
        self.prompts = PromptStore(budget)
        self._batches: dict[object, RunningBatch] = {}

    def all(self) -> list[RunningBatch]:
        """Every batch, the one that was entered last at the end."""
        return list(self._batches.values())

    @property
    def spare(self) -> bool:
        """Whether something is kept that nobody uses now."""
        return self.prompts.nbytes > 0 or any(batch.empty for batch in self.all())

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of all batches."""
        return sum(batch.denoiser.nbytes for batch in self.all())

    def enter(self, state: RequestState, num_rows: int) -> bool:
        """Give a request its row; False: there is no room yet.

        `num_rows`: of a new batch, at most. Raises what says that memory is short.
        """
        settings, ends = state.settings, state.prompt.ends
        key: tuple[object, ...] = (state.spec.kind, settings.cache, settings.refresh_interval)
        side_by_side = self._together and settings.cache != "prefix" and not ends
        room = LEAST_ROOM if side_by_side else 0
        while 0 < room < len(state.embeds):
            room *= 2
        key = (*key, bool(ends), room)
        batch = self._batches.get(key)
        if batch is not None and batch.empty and side_by_side:
            free = self.budget_bytes - self.nbytes + batch.denoiser.nbytes
            if len(batch.denoising.rows) < self._rows(state, room, num_rows, free):
                batch = None  # made when memory was short
                del self._batches[key]
        if batch is None and side_by_side:
            batch = self._side_by_side(state, room, num_rows)
        elif not side_by_side and not self._make_room(self._row_bytes(state)):
            return False
        elif batch is None:
            denoiser = RowByRow(self._model, state.spec, settings, self.prompts)
            batch = RunningBatch(state.spec, num_rows, self._model.device, denoiser)
        if batch is None or not batch.enter(state):
            return False
        self._batches.pop(key, None)
        self._batches[key] = batch
        self._drop_empty(MOST_EMPTY)
        return True

    def clear(self) -> None:
        """Drop all batches, and the beginnings of prompts that are kept."""
        self._batches.clear()
        self.prompts.shrink(0)
        self.prompts.shrink(self.budget_bytes)

    def _row_bytes(self, state: RequestState, room: int | None = None) -> int:
        """Bytes of keys and values of one row, with a prompt of `room` or of its own length."""
        spec = state.spec
        if state.settings.cache == "none" and not state.prompt.ends:
            return 0
        prompt = len(state.embeds) if room is None else room
        positions = prompt + spec.gen_length + len(spec.suffix_ids)
        found = kept_bytes(self._model.config.language, self._model.dtype, positions)
        return found * (2 if spec.cfg_scale > 0 else 1)

    def _make_room(self, wanted_bytes: int) -> bool:
        """Whether so many bytes of keys and values fit beside those of other requests; alone they
        always do."""
        if wanted_bytes and self.nbytes + wanted_bytes > self.budget_bytes:
            self._drop_empty(0)
            if self.nbytes and self.nbytes + wanted_bytes > self.budget_bytes:
                return False
        self.prompts.shrink(max(0, self.budget_bytes - self.nbytes - wanted_bytes))
        return True

    def _drop_empty(self, most: int) -> None:
        """Drop batches that nobody is in but for some that were in use last."""
        empty = [key for key, batch in self._batches.items() if batch.empty]
        for key in empty[: max(0, len(empty) - most)]:
            del self._batches[key]

    def _side_by_side(self, state: RequestState, room: int, num_rows: int) -> RunningBatch | None:
        """A batch of as many rows as memory allows; None where that is none yet."""
        spec, device = state.spec, self._model.device
        each = self._row_bytes(state, room)
        if each:
            if self.nbytes + num_rows * each > self.budget_bytes:
                self._drop_empty(0)
            num_rows = self._rows(state, room, num_rows, self.budget_bytes - self.nbytes)
            if not self._make_room(num_rows * each):
                return None
        while True:
            try:
                dual, interval = each > 0, state.settings.refresh_interval
                denoiser = SideBySide(self._model, spec, num_rows, room, dual, interval)
                return RunningBatch(spec, num_rows, device, denoiser)
            except Exception as error:
                spare = any(batch.empty for batch in self.all())
                if not is_out_of_memory(error) or num_rows == 1 and not spare:
                    raise
            if spare:
                self._drop_empty(0)
            else:
                num_rows //= 2
                log.warning("out of memory: a batch of %d rows", num_rows)

    def _rows(self, state: RequestState, room: int, most: int, free_bytes: int) -> int:
        """How many rows fit into so many bytes, one at least."""
        each = self._row_bytes(state, room)
        return max(1, min(most, free_bytes // each)) if each else most
