"""Denoising without an engine: rows that all enter at once, over one denoiser.

Shapes: B rows, L positions of x, D width, N needed positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight, pack
from medv_ray.diffusion.canvas import Canvas
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec


class Denoise(Protocol):
    """A denoiser: last hidden states of response positions, prompt and image already bound."""

    @property
    def head(self) -> Tensor:
        """float[V, D]."""

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        """x int64[B, L], need bool[B, L] -> float[N, D]."""

    def unconditional(self, mask_id: int) -> Denoise:
        """The same with the mask token at every given position; for cfg_scale > 0."""

    def prompt_length(self, b: int) -> int:
        """Positions in front of x in row b; for noise="reference"."""


class State(NamedTuple):
    """A moment between two steps; the tensors are copies."""

    x: Tensor
    """int64[B, L], the mask token where masked."""
    masked: Tensor
    """bool[B, L]."""
    step: int
    """Steps taken so far."""
    done: bool


def begin(
    spec: SampleSpec,
    x: Tensor,
    maskable: Tensor,
    start: int = 0,
    generators: Sequence[torch.Generator] = (),
    prompt_lengths: Sequence[int] | None = None,
) -> Denoising:
    """A batch at its beginning.

    Args:
        x: int64[B, start + gen_length], not changed.
        maskable: bool[B, L], positions to fill.
        start: where the first block begins.
        generators: on the CPU, one per row, or one for all as in a seeded reference batch.
        prompt_lengths: positions in front of x, per row. Needed with noise="reference".

    Raises ValueError for arguments that do not fit each other.
    """
    rows, count = len(x), len(generators)
    if x.shape[1] != start + spec.gen_length or maskable.shape != x.shape:
        raise ValueError(
            f"x {tuple(x.shape)} and maskable {tuple(maskable.shape)} must both have "
            f"{start} + {spec.gen_length} positions"
        )
    if count not in (0, 1, rows) or spec.noise == "keyed" and 0 < count < rows:
        raise ValueError(f"{count} generators for {rows} rows: give one generator per row")
    if prompt_lengths is None and spec.noise == "reference":
        raise ValueError('noise="reference" counts prompt positions too: give prompt_lengths')
    made = Denoising(spec, rows, x.device, start=start)
    for b, row in enumerate(x.tolist()):
        given = [i for i, masked in enumerate(maskable[b].tolist()) if not masked]
        generator = generators[b % count] if count else None
        prompt = 0 if prompt_lengths is None else prompt_lengths[b]
        made.enter(b, spec, generator, prompt, Canvas({i - start: row[i] for i in given}))
    return made


def blank(
    spec: SampleSpec,
    rows: int = 1,
    generators: Sequence[torch.Generator] = (),
    prompt_lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Denoising:
    """A batch with all of its answers masked and nothing else in x; see `begin`."""
    x = torch.full((rows, spec.gen_length), spec.mask_id, device=device)
    return begin(spec, x, x == spec.mask_id, 0, generators, prompt_lengths)


def answer(denoising: Denoising, b: int) -> Tensor:
    """int64[n], row b's answer: cut at the stop, then the suffix."""
    suffix = torch.tensor(denoising.spec.suffix_ids, dtype=torch.int64, device=denoising.x.device)
    return torch.cat([denoising.x[b, denoising.start : denoising.row(b).stop], suffix])


def sample(
    denoise: Denoise,
    spec: SampleSpec,
    denoising: Denoising | None = None,
    *,
    generators: Sequence[torch.Generator] = (),
    head: Tensor | PackedWeight | None = None,
) -> Iterator[State]:
    """Denoise, yielding the state before each step and the final one. Closing the iterator ends it.

    Args:
        denoising: what to go on with; by default one row with all of its answer masked, drawing
            from `generators`.
        head: float[V, D], the denoiser's, packed already; by default it is packed here, as large
            as it is.

    Raises FloatingPointError when logits are not finite.
    """
    if denoising is None:
        lengths = [denoise.prompt_length(0)] if spec.noise == "reference" else None
        denoising = blank(spec, 1, generators, lengths, denoise.head.device)
    head = pack(denoise.head[: spec.logit_size]) if head is None else head
    guide = denoise.unconditional(spec.mask_id) if spec.cfg_scale > 0 else None
    while True:
        x, done = denoising.x, denoising.done
        yield State(x.clone(), denoising.masked.clone(), denoising.step, done)
        if done:
            return
        need = denoising.need()
        rows = denoise(x, need)
        denoising.advance(rows, head, guide(x, need) if guide else None)
