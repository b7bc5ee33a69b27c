"""How the rows of a running batch are computed: each alone, or side by side.

Both hold the prompts of the rows and propose tokens for one step of a `Denoising`.

Shapes: B rows, L response positions, W block, P prompt positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.model.batched import Batched
from medv_ray.model.cache import Cached, PromptStore, Refresh
from medv_ray.model.denoise import FullRecompute, Prompt
from medv_ray.model.medv import Medv
from medv_ray.settings import SamplerSettings


class RowByRow:
    """Each row alone: on a CPU, where that makes its bits its own; and for prompts that cut
    attention and the prefix cache anywhere."""

    def __init__(
        self, model: Medv, spec: SampleSpec, settings: SamplerSettings, store: PromptStore
    ) -> None:
        """`store`: of beginnings of prompts that cut attention."""
        self._model, self._spec, self._settings, self._store = model, spec, settings, store
        self.rows: dict[int, FullRecompute] = {}
        self._blind: dict[int, FullRecompute] = {}
        self._done = 0

    @property
    def computed(self) -> int:
        """Positions that have gone through the language tower."""
        now = (*self.rows.values(), *self._blind.values())
        return self._done + sum(row.computed for row in now)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all rows, at most."""
        length = self._spec.gen_length
        now = (*self.rows.values(), *self._blind.values())
        return sum(row.kept_bytes(length) for row in now)

    def enter(self, b: int, embeds: Tensor, prompt: Prompt) -> None:
        """A prompt for row b, and its embeddings float[P, D].

        Of one that cuts attention, what lies before the last cut is kept in any case.
        """
        spec, settings = self._spec, self._settings
        given = prompt if prompt.ends else embeds
        if settings.cache == "none" and not prompt.ends:
            self.rows[b] = FullRecompute(self._model, [given], spec.suffix_ids)
        else:
            self.rows[b] = Cached(
                self._model,
                [given],
                spec.suffix_ids,
                kind="prefix" if settings.cache == "none" else settings.cache,
                block_length=spec.block_length,
                refresh_interval=1 if settings.cache == "none" else settings.refresh_interval,
                store=self._store,
            )
        if spec.cfg_scale > 0:
            self._blind[b] = self.rows[b].unconditional(spec.mask_id)

    def leave(self, b: int) -> None:
        """Forget row b."""
        for rows in (self.rows, self._blind):
            if b in rows:
                self._done += rows.pop(b).computed

    def propose(self, denoising: Denoising, head: Tensor | PackedWeight) -> None:
        """Tokens for all positions that a step of all running rows needs.

        Args:
            head: float[V, D].
        """
        needs = denoising.needs()
        wanted = {b: positions for b, positions in needs.items() if positions}
        rows = [self.rows[b].one(0, denoising.x[b], need) for b, need in wanted.items()]
        free = None
        if self._spec.cfg_scale > 0:
            free = [self._blind[b].one(0, denoising.x[b], need) for b, need in wanted.items()]
        denoising.propose(
            _joined(rows, self._model),
            head,
            denoising.places(needs),
            {b: len(need) for b, need in needs.items()},
            None if free is None else _joined(free, self._model),
        )


class SideBySide:
    """Rows in one forward pass: full recompute, or the dual cache. With a cache, a step computes
    the rows that refresh as a whole, and of the others their blocks."""

    def __init__(
        self,
        model: Medv,
        spec: SampleSpec,
        settings: SamplerSettings,
        num_rows: int,
        prompt_room: int,
    ) -> None:
        """`prompt_room`: positions for the longest prompt."""
        self._spec, self._dual = spec, settings.cache == "dual"
        self._interval = settings.refresh_interval
        sizes = (num_rows, prompt_room, spec.gen_length, spec.suffix_ids, self._dual)
        self._batches = [Batched(model, *sizes)]
        if spec.cfg_scale > 0:
            self._batches.append(Batched(model, *sizes, blind_id=spec.mask_id))
        self._refresh: dict[int, Refresh] = {}
        self._starts = torch.zeros(num_rows, dtype=torch.int64, device=model.device)
        self._inside = torch.arange(spec.block_length, device=model.device)
        self._graph = Captured() if self._dual and model.device.type == "cuda" else None

    @property
    def computed(self) -> int:
        """Positions of rows that have gone through the language tower, padding not counted."""
        return sum(batch.computed for batch in self._batches)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all rows, free ones too."""
        return sum(batch.nbytes for batch in self._batches)

    def enter(self, b: int, embeds: Tensor, prompt: Prompt) -> None:
        """A prompt's embeddings float[P, D] for row b; one that does not cut attention."""
        for batch in self._batches:
            batch.enter(b, embeds)
        self._refresh[b] = Refresh(self._interval if self._dual else 1)

    def leave(self, b: int) -> None:
        """Forget row b."""
        del self._refresh[b]

    def propose(self, denoising: Denoising, head: Tensor | PackedWeight) -> None:
        """Tokens for all positions that a step of all running rows needs.

        Args:
            head: float[V, D].
        """
        needs = denoising.needs()
        spans = {b: self._span(need) for b, need in needs.items() if need}
        whole = [b for b, (start, _) in spans.items() if self._refresh[b].due(start)]
        rest = {b: span for b, span in spans.items() if b not in whole}
        # numbers are drawn, and sets of allowed tokens kept, for exactly what is needed
        exact = self._spec.temperature > 0 or any(denoising.row(b).canvas for b in spans)
        found = _Found(self._batches[0].model.head)
        if rest and not exact and len(spans) == len(needs) and self._plain(rest):
            starts = [0] * len(self._starts)
            for b, (start, _) in rest.items():
                starts[b] = start
            self._starts.copy_(torch.tensor(starts), non_blocking=True)
            if self._graph is None:
                self._propose_blocks(denoising, head)
            else:
                self._graph.run(lambda: self._propose_blocks(denoising, head))
            self._count(len(rest) * self._spec.block_length)
            rest = {}
        if whole:
            x = denoising.x[torch.tensor(whole, device=self._starts.device)]
            states = [batch.full(whole, x) for batch in self._batches]
            for i, b in enumerate(whole):
                found.add(b, 0, [state[i] for state in states])
        # a pass of all rows would change what those that rest have kept
        for b, (start, end) in rest.items():
            at = torch.arange(start, end, device=self._starts.device)[None]
            x = denoising.x[b, start:end][None]
            found.add(b, start, [batch.window(x, at, [b])[0] for batch in self._batches])
            self._count(end - start)
        found.propose(denoising, head, spans, needs if exact else None)

    def _span(self, need: list[int]) -> tuple[int, int]:
        """(start, end) of the window that holds needed positions: a block, or more of them where
        an earlier one has left masks."""
        width = self._spec.block_length
        start = need[0] // width * width
        return start, max(start + width, need[-1] + 1)

    def _plain(self, spans: dict[int, tuple[int, int]]) -> bool:
        """Whether each is one block."""
        return all(end - start == self._spec.block_length for start, end in spans.values())

    def _propose_blocks(self, denoising: Denoising, head: Tensor | PackedWeight) -> None:
        """Of every row, free ones too, the block at its start. One shape, nothing is read."""
        at = self._starts[:, None] + self._inside  # [B, W]
        x = denoising.x.gather(1, at)
        hidden, *free = [batch.window(x, at).flatten(0, 1) for batch in self._batches]
        rows = torch.arange(len(at), device=at.device)[:, None]
        places = (rows * denoising.length + at).flatten()
        denoising.propose(hidden, head, places, None, *free)

    def _count(self, positions: int) -> None:
        for batch in self._batches:
            batch.computed += positions


class _Found:
    """Hidden states of a step, from several passes, until tokens are chosen for them."""

    def __init__(self, head: Tensor) -> None:
        self._none = head.new_empty((0, head.shape[1]))
        self._states: dict[int, tuple[int, list[Tensor]]] = {}

    def add(self, b: int, start: int, states: list[Tensor]) -> None:
        """Hidden states float[m, D] of positions from `start` on of row b, with the prompt and, for
        guidance, without."""
        self._states[b] = start, states

    def propose(
        self,
        denoising: Denoising,
        head: Tensor | PackedWeight,
        spans: dict[int, tuple[int, int]],
        exact: dict[int, list[int]] | None,
    ) -> None:
        """Choose a token for each position.

        Args:
            spans: positions of each row.
            exact: its needed ones, where tokens are chosen for these alone.
        """
        at = exact or {b: list(range(*spans[b])) for b in self._states}
        kinds: list[list[Tensor]] = []
        for b, positions in at.items():
            if positions:
                start, states = self._states[b]
                kinds.append([state[[i - start for i in positions]] for state in states])
        if not kinds and exact is None:
            return
        hidden, *free = [torch.cat(kind) for kind in zip(*kinds, strict=True)] or [self._none] * 2
        sizes = {b: len(positions) for b, positions in exact.items()} if exact else None
        guide = free[0] if free and denoising.spec.cfg_scale > 0 else None
        denoising.propose(hidden, head, denoising.places(at), sizes, guide)


class Captured:
    """A step of fixed tensors on a GPU, as a CUDA graph from its second call on.

    The first call compiles kernels and makes constants. A capture computes nothing, so it is
    replayed at once. The step is not kept: a batch that kept itself would not free its memory.
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


def _joined(rows: list[Tensor], model: Medv) -> Tensor:
    """float[n, D] each, as one."""
    if len(rows) == 1:
        return rows[0]
    return torch.cat([model.head.new_empty((0, model.head.shape[1])), *rows])
