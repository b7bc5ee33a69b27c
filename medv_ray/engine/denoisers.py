"""How the rows of a running batch are computed: each alone, or side by side.

Both hold the prompts of the rows and propose tokens for one step of a `Denoising`.

Shapes: B rows, L response positions, W block, P prompt positions, D width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import is_out_of_memory
from medv_ray.model.batched import Batched
from medv_ray.model.cache import Cached, PromptStore, Refresh
from medv_ray.model.denoise import FullRecompute, Prompt
from medv_ray.model.medv import Medv
from medv_ray.settings import SamplerSettings

log = logging.getLogger(__name__)


class RowByRow:
    """Each row alone: on a CPU, where that makes its bits its own; and for prompts that cut
    attention and the prefix cache anywhere."""

    def __init__(
        self, model: Medv, spec: SampleSpec, settings: SamplerSettings, store: PromptStore
    ) -> None:
        """`store`: of beginnings of prompts that cut attention."""
        self._model, self._spec, self._settings, self._store = model, spec, settings, store
        self.rows: dict[int, FullRecompute] = {}
        self._unconditional: dict[int, FullRecompute] = {}
        self._done = 0

    @property
    def computed(self) -> int:
        """Positions that have gone through the language tower."""
        now = (*self.rows.values(), *self._unconditional.values())
        return self._done + sum(row.computed for row in now)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all rows, at most."""
        length = self._spec.gen_length
        now = (*self.rows.values(), *self._unconditional.values())
        return sum(row.kept_bytes(length) for row in now)

    def enter(self, b: int, embeds: Tensor, prompt: Prompt | None = None) -> None:
        """The embeddings float[P, D] of a prompt for row b, and the prompt. Where that cuts
        attention, what lies before the last cut is kept in any case.
        """
        spec, settings = self._spec, self._settings
        cut = prompt is not None and bool(prompt.ends)
        given = prompt if prompt is not None and cut else embeds
        if settings.cache == "none" and not cut:
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
            self._unconditional[b] = self.rows[b].unconditional(spec.mask_id)

    def leave(self, b: int) -> None:
        """Forget row b."""
        for rows in (self.rows, self._unconditional):
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
            free = [
                self._unconditional[b].one(0, denoising.x[b], need) for b, need in wanted.items()
            ]
        denoising.propose(
            _joined(rows, self._model),
            head,
            denoising.indices(needs),
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
        num_rows: int,
        prompt_room: int,
        dual: bool = False,
        refresh_interval: int | None = None,
    ) -> None:
        """
        Args:
            prompt_room: positions for the longest prompt.
            dual: with the dual cache, which computes everything at every `refresh_interval`-th pass
                of a block.
        """
        self._spec, self._dual, self._interval = spec, dual, refresh_interval
        sizes = (num_rows, prompt_room, spec.gen_length, spec.suffix_ids, self._dual)
        self._batches = [Batched(model, *sizes)]
        if spec.cfg_scale > 0:
            self._batches.append(Batched(model, *sizes, unconditional_id=spec.mask_id))
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

    @property
    def captured(self) -> bool:
        """Whether steps between refreshes are replayed as a CUDA graph."""
        return self._graph is not None and self._graph.ready

    def enter(self, b: int, embeds: Tensor, prompt: Prompt | None = None) -> None:
        """The embeddings float[P, D] of a prompt for row b, which does not cut attention."""
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
        # a pass of all rows would change what those that rest have kept
        if rest and len(spans) == len(needs) and self._is_plain(denoising, rest):
            self._propose_blocks(denoising, head, {b: start for b, (start, _) in rest.items()})
            rest = {}
            if not whole:
                return
        # hidden states float[m, D] from a position on, with the prompt and, for guidance, without
        states: dict[int, tuple[int, list[Tensor]]] = {}
        if whole:
            x = denoising.x[torch.tensor(whole, device=self._starts.device)]
            made = [batch.full(whole, x) for batch in self._batches]
            states = {b: (0, [state[i] for state in made]) for i, b in enumerate(whole)}
        for width in {end - start for start, end in rest.values()}:
            rows = [b for b, (start, end) in rest.items() if end - start == width]
            at = torch.tensor([[*range(*rest[b])] for b in rows], device=self._starts.device)
            x = denoising.x[torch.tensor(rows, device=self._starts.device)].gather(1, at)
            made = [batch.window(x, at, rows) for batch in self._batches]
            states |= {b: (rest[b][0], [state[i] for state in made]) for i, b in enumerate(rows)}
            self._count(len(rows) * width)
        left = {b: need for b, need in needs.items() if b in states or not need}
        kinds: list[list[Tensor]] = [[batch.model.head[:0]] for batch in self._batches]
        for b, (start, made) in sorted(states.items()):
            for kind, state in zip(kinds, made, strict=True):
                kind.append(state[[i - start for i in needs[b]]])
        hidden, *free = [torch.cat(kind) for kind in kinds]
        sizes = {b: len(need) for b, need in left.items()}
        denoising.propose(hidden, head, denoising.indices(left), sizes, *free)

    def _span(self, need: list[int]) -> tuple[int, int]:
        """(start, end) of the window that holds needed positions: a block, or more of them where
        an earlier one has left masks."""
        width = self._spec.block_length
        start = need[0] // width * width
        return start, max(start + width, need[-1] + 1)

    def _is_plain(self, denoising: Denoising, spans: dict[int, tuple[int, int]]) -> bool:
        """Whether each is one block, and no row draws numbers or has tokens of its own to take."""
        one_block = all(end - start == self._spec.block_length for start, end in spans.values())
        free = all(denoising.row(b).canvas is None for b in spans)
        return one_block and free and self._spec.temperature == 0

    def _propose_blocks(
        self, denoising: Denoising, head: Tensor | PackedWeight, starts: dict[int, int]
    ) -> None:
        """Tokens for the block of each row that is in `starts`; of the others nothing is used."""
        begin = [starts.get(b, 0) for b in range(len(self._starts))]
        self._starts.copy_(torch.tensor(begin), non_blocking=True)

        def blocks() -> None:  # one shape, and nothing is read
            at = self._starts[:, None] + self._inside  # [B, W]
            x = denoising.x.gather(1, at)
            hidden, *free = [batch.window(x, at).flatten(0, 1) for batch in self._batches]
            rows = torch.arange(len(at), device=at.device)[:, None]
            indices = (rows * denoising.length + at).flatten()
            denoising.propose(hidden, head, indices, None, *free)

        if self._graph is None:
            blocks()
        else:
            self._graph.run(blocks)
        self._count(len(starts) * self._spec.block_length)

    def _count(self, positions: int) -> None:
        for batch in self._batches:
            batch.computed += positions


class Captured:
    """A step of fixed tensors on a GPU, as a CUDA graph from its second call on.

    The first call compiles kernels and makes constants. A capture computes nothing, so it is
    replayed at once. The step is not kept: a batch that kept itself would not free its memory.
    Where a capture fails, but for lack of memory, each call launches its kernels, which is slower.
    """

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = self._refused = False

    @property
    def ready(self) -> bool:
        """Whether calls replay a graph from now on."""
        return self._graph is not None

    def run(self, step: Callable[[], None]) -> None:
        """Take the step, the same one at every call. Raises what says that memory is short."""
        if self._warm and self._graph is None and not self._refused:
            self._graph = self._capture(step)
            self._refused = self._graph is None
        if self._graph is None:
            step()
            self._warm = True
        else:
            self._graph.replay()

    def _capture(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step as a graph, or None, which is said in the log."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
        except Exception as error:
            # a capture that is left early ends with an error of its own over the first
            first = error.__context__ or error
            if is_out_of_memory(first) or not isinstance(first, Exception):
                raise first from None
            if is_out_of_memory(error):
                raise
            log.warning(
                "no CUDA graph of a step with cache=dual (%s): slower", type(first).__name__
            )
            return None
        return graph


def _joined(rows: list[Tensor], model: Medv) -> Tensor:
    """float[n, D] each, as one."""
    if len(rows) == 1:
        return rows[0]
    return torch.cat([model.head.new_empty((0, model.head.shape[1])), *rows])
