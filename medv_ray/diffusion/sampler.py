"""The exact sampler: one loop that turns masks into tokens, behind door 1.

A step: hidden rows of the positions that may be committed -> token and odds of each (medv_kernels)
-> the best k take theirs. State is token ids plus a boolean of masked positions, made from
positions and never found by comparing ids.

Shapes: B rows, L positions of x, D width, N needed positions in row-major order, V vocabulary.
Source: ML-GSAI/LLaDA generate.py; LLaDA-V generate_with_embeds; LLaDA-MedV supplement, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight, pack
from medv_kernels.noise import row_keys
from medv_kernels.ops import commit, select
from medv_kernels.reference import (
    Selection,
    accepted_by_factor,
    accepted_by_threshold,
    join,
)
from medv_ray.diffusion.draws import Draws
from medv_ray.diffusion.rules import RowProgress, commit_as_topk, find_stop
from medv_ray.diffusion.schedule import remain_probability, transfer_schedule
from medv_ray.diffusion.spec import SampleSpec

__all__ = ["Denoise", "Denoising", "SampleSpec", "State", "sample"]


class Denoise(Protocol):
    """Door 1: last hidden states of chosen response positions, prompt and image already bound."""

    @property
    def head(self) -> Tensor:
        """float[V, D]."""

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        """x int64[B, L], need bool[B, L] -> float[N, D]."""

    def unconditional(self, mask_id: int) -> Denoise:
        """The same door with the mask token at every given position; for cfg_scale > 0."""

    def prompt_length(self, b: int) -> int:
        """Positions in front of x in row b; for noise="reference"."""


@dataclass(frozen=True, eq=False)
class State:
    """A moment between two steps; the tensors are copies."""

    x: Tensor
    """int64[B, L], the mask token where masked."""
    masked: Tensor
    """bool[B, L]."""
    step: int
    """Steps taken so far."""
    done: bool


def _check(
    spec: SampleSpec,
    x: Tensor,
    maskable: Tensor,
    answer_start: int,
    generators: Sequence[torch.Generator],
    prompt_lengths: Sequence[int] | None,
) -> None:
    """Refuse arguments of Denoising that do not fit each other."""
    if x.shape[1] != answer_start + spec.gen_length or maskable.shape != x.shape:
        raise ValueError(
            f"x {tuple(x.shape)} and maskable {tuple(maskable.shape)} must both have "
            f"{answer_start} + {spec.gen_length} positions"
        )
    if not generators and (spec.temperature > 0 or spec.remasking != "low_confidence"):
        raise ValueError("temperature and random remasking draw numbers: give generators")
    if spec.noise == "keyed" and 0 < len(generators) < len(x):
        raise ValueError(
            'noise="keyed" draws from the seed of each row: give one generator per row'
        )
    if prompt_lengths is None and spec.noise == "reference":
        raise ValueError('noise="reference" counts prompt positions too: give prompt_lengths')


class _Piece(NamedTuple):
    """Needed rows that are chosen for together."""

    size: int
    """How many."""
    k: int | None = None
    """For how many places they compete, where no other odds are looked at."""
    uniform: Tensor | None = None
    """float64[n, V], their draws."""
    keys: Tensor | None = None
    """int64[n], what their draws are made of."""


class Denoising:
    """A batch being denoised, a state machine: while not done, forward `need()` and `advance`.

    Rows share nothing but the call: blocks, stop rule, and (with one generator per row) random
    numbers are per row.

    Attributes:
        x: int64[B, L].  masked: bool[B, L].
        step: steps taken.  forward_passes: steps that needed the model.
        token_confidence: float32[B, L], probability of each token when it was committed, 0 where
            none was.
        token_step: int32[B, L], step of the row at which it was committed, -1 where none was.
    """

    def __init__(
        self,
        spec: SampleSpec,
        x: Tensor,
        maskable: Tensor,
        answer_start: int = 0,
        generators: Sequence[torch.Generator] = (),
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            x: int64[B, answer_start + gen_length], not changed.
            maskable: bool[B, L], positions to fill. Those before `answer_start` are filled too,
                compete with the block's own for its tokens, and count in no schedule.
            answer_start: where the first block begins.
            generators: on the CPU, one per row or one for all. Needed with temperature or a random
                remasking.
            prompt_lengths: positions in front of x, per row. Needed with noise="reference".
        """
        _check(spec, x, maskable, answer_start, generators, prompt_lengths)
        rows, length = x.shape
        self.spec = spec
        self.masked = maskable.clone()
        self.x = torch.where(maskable, spec.mask_id, x)
        self.answer_start = answer_start
        self.step = 0
        self._need: Tensor | None = None
        self.forward_passes = 0
        self.token_confidence = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        self.token_step = torch.full(x.shape, -1, dtype=torch.int32, device=x.device)
        self._progress = [
            RowProgress(
                answer_start, length, spec.block_length, spec.steps_per_block, spec.run_all_steps
            )
            for _ in range(rows)
        ]
        self._prompt_lengths = list(prompt_lengths or [0] * rows)
        generators = list(generators) or [torch.Generator()]
        self._seeds = [g.initial_seed() for g in generators] * (rows if len(generators) == 1 else 1)
        self._draws = Draws(
            generators,
            spec.noise == "reference",
            self._prompt_lengths,
            length,
            len(spec.suffix_ids),
        )
        for b in range(rows):
            self._settle(b)

    @classmethod
    def blank(
        cls,
        spec: SampleSpec,
        rows: int = 1,
        generators: Sequence[torch.Generator] = (),
        prompt_lengths: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Denoising:
        """All of the answer masked and nothing else in x."""
        x = torch.full((rows, spec.gen_length), spec.mask_id, device=device)
        maskable = torch.ones_like(x, dtype=torch.bool)
        return cls(spec, x, maskable, 0, generators, prompt_lengths)

    @property
    def done(self) -> bool:
        return all(row.done for row in self._progress)

    def state(self) -> State:
        return State(self.x.clone(), self.masked.clone(), self.step, self.done)

    def stop_position(self, b: int) -> int | None:
        """Where row b's first stop sequence begins, counted from the answer's start."""
        stop = self._progress[b].stop
        return None if stop is None else stop - self.answer_start

    def finish(self, b: int) -> Literal["stop", "length"]:
        return "length" if self._progress[b].stop is None else "stop"

    def answer(self, b: int) -> Tensor:
        """int64[n], row b's answer: cut at the stop, then the suffix."""
        suffix = torch.tensor(self.spec.suffix_ids, dtype=torch.int64, device=self.x.device)
        return torch.cat([self.x[b, self.answer_start : self._progress[b].stop], suffix])

    def eligible(self) -> Tensor:
        """bool[B, L], masked positions that this step may commit."""
        limits = [0 if row.done else row.limit for row in self._progress]
        positions = torch.arange(self.x.shape[1], device=self.x.device)
        return self.masked & (positions < torch.tensor(limits, device=self.x.device)[:, None])

    def need(self) -> Tensor:
        """bool[B, L], positions whose hidden rows `advance` wants; a step may commit nothing."""
        if self._need is None:
            spec = self.spec
            always = spec.rule != "schedule" or spec.remasking == "independent"
            works = [not row.done and (always or row.k > 0) for row in self._progress]
            self._need = self.eligible() & torch.tensor(works, device=self.x.device)[:, None]
        return self._need

    @torch.no_grad()
    def advance(
        self, rows: Tensor, head: Tensor | PackedWeight | None, unconditional: Tensor | None = None
    ) -> None:
        """Take one step.

        Args:
            rows: float[N, D] hidden states of `need()`, or float[N, V] logits with head None.
            head: float[V, D].
            unconditional: as `rows`, from the door without prompt; needed with cfg_scale > 0.

        Raises FloatingPointError when a row's logits are not finite; nothing has changed then.
        """
        need, spec = self.need(), self.spec
        count = int(need.sum())
        if len(rows) != count:
            raise ValueError(f"{len(rows)} hidden rows for {count} needed positions")
        if spec.cfg_scale > 0 and unconditional is None:
            raise ValueError(f"cfg_scale={spec.cfg_scale} needs the unconditional rows too")
        rest = torch.full(self.x.shape, torch.inf, dtype=torch.float64, device=self.x.device)
        selection = self._choose(need, rows, head, unconditional)
        token = self.x.masked_scatter(need, selection.token)
        rest.masked_scatter_(need, selection.rest)
        self.x, chosen = self._commit(need, token, rest)
        self.masked &= ~chosen | (self.x == spec.mask_id)
        totals = torch.tensor([row.total for row in self._progress], dtype=torch.int32)
        self.token_step = torch.where(chosen, totals.to(chosen.device)[:, None], self.token_step)
        confidence = (1 / (1 + rest)).float()
        self.token_confidence = torch.where(chosen, confidence, self.token_confidence)
        self._need = None
        self.step += 1
        self.forward_passes += count > 0
        for b, row in enumerate(self._progress):
            if not row.done:
                self._finish_step(b, row)

    def _choose(
        self,
        need: Tensor,
        rows: Tensor,
        head: Tensor | PackedWeight | None,
        unconditional: Tensor | None,
    ) -> Selection:
        """Token and odds of the needed positions, N of each."""
        spec = self.spec
        width = rows.shape[1] if head is None else len(head)
        vocabulary = width if spec.logit_size is None else min(width, spec.logit_size)
        parts, start = [], 0
        for part in self._pieces(need, vocabulary):
            piece = slice(start, start + part.size)
            start += part.size
            base = None if unconditional is None else unconditional[piece]
            parts.append(
                select(
                    rows[piece],
                    head,
                    forbidden=spec.excluded,
                    unranked=spec.unranked,
                    temperature=spec.temperature,
                    uniform=part.uniform,
                    keys=part.keys,
                    logit_size=spec.logit_size,
                    unconditional=base,
                    cfg_scale=spec.cfg_scale,
                    k=part.k,
                )
            )
        return join(parts, rows.device)

    def _pieces(self, need: Tensor, vocabulary: int) -> Iterator[_Piece]:
        """The needed rows in order, in pieces.

        A row of the batch never shares a piece with another on the CPU: a product of matrices is
        not bit-equal whatever its height.
        """
        counts = need.sum(1).tolist()
        if self.spec.temperature == 0:
            if need.device.type != "cpu":
                yield _Piece(sum(counts))
                return
            spec = self.spec
            ranked = spec.remasking == "low_confidence" and spec.noise != "reference"
            ranked = ranked and spec.rule == "schedule"
            for size, row in zip(counts, self._progress, strict=True):
                yield _Piece(size, row.k if ranked and size else None)
            return
        for b, row in enumerate(self._progress):
            if not row.done and self.spec.noise == "keyed":
                positions = need[b].nonzero()[:, 0]
                yield _Piece(counts[b], keys=row_keys(self._seeds[b], row.total, positions))
            elif not row.done:
                for uniform in self._draws.tokens(b, need[b].cpu(), vocabulary):
                    yield _Piece(len(uniform), uniform=uniform.to(need.device))

    def _commit(self, need: Tensor, token: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The new x and which positions were chosen, by the rule of `remasking`."""
        spec = self.spec
        if spec.remasking != "low_confidence":
            rest = torch.zeros_like(rest)
            for b, row in enumerate(self._progress):
                if not row.done:
                    rest[b, need[b]] = -self._draws.positions(b, need[b].cpu()).to(rest.device)
        if spec.remasking == "independent":
            remain = [remain_probability(row.step, row.steps) for row in self._progress]
            chosen = need & (-rest >= torch.tensor(remain, device=rest.device)[:, None])
            return torch.where(chosen, token, self.x), chosen
        k = self._accepted(need, rest)
        if spec.noise == "reference":
            before, after = self._prompt_lengths, len(spec.suffix_ids)
            return commit_as_topk(self.x, need, token, rest, k, before, after)
        return commit(self.x, need, token, rest, k)

    def _accepted(self, need: Tensor, rest: Tensor) -> list[int]:
        """How many tokens each row commits, by the rule."""
        spec = self.spec
        if spec.rule == "schedule":
            return [0 if row.done else row.k for row in self._progress]
        if spec.rule == "threshold":
            return accepted_by_threshold(rest, need, spec.threshold).tolist()
        # LLaDA-V ranks the masks of later blocks too, behind all others; Fast-dLLM the block's own
        num_masks = self.masked.sum(1) if spec.rule == "factor_llada_v" else None
        return accepted_by_factor(rest, need, spec.factor, num_masks).tolist()

    def _finish_step(self, b: int, row: RowProgress) -> None:
        """Count the step and look for a stop sequence."""
        row.step += 1
        row.total += 1
        answer = self.x[b, self.answer_start :]
        found = None if row.stop is None else row.stop - self.answer_start
        found = find_stop(answer, self.spec.stop_ids, found)
        row.stop = None if found is None else found + self.answer_start
        self._settle(b)

    def _settle(self, b: int) -> None:
        """Move row b to the next step that it takes."""
        row, masked = self._progress[b], self.masked[b]
        while not row.done:
            if not row.schedule:
                count = torch.tensor([row.count_masks(masked)])
                row.schedule = transfer_schedule(count, row.steps)[0].tolist()
            if not row.block_is_over(masked):
                return
            row.next_block()


def sample(
    denoise: Denoise,
    spec: SampleSpec,
    denoising: Denoising | None = None,
    *,
    generators: Sequence[torch.Generator] = (),
    cancelled: Callable[[], bool] | None = None,
    head: Tensor | PackedWeight | None = None,
) -> Iterator[State]:
    """Denoise, yielding the state before each step and the final one.

    Args:
        denoising: what to go on with; by default one row with all of its answer masked, drawing
            from `generators`.
        cancelled: asked before each step; True ends the iterator with a last state that is not
            done. Closing the iterator does the same.
        head: the door's, packed already; by default it is packed here, as large as it is.
    """
    if denoising is None:
        lengths = [denoise.prompt_length(0)] if spec.noise == "reference" else None
        denoising = Denoising.blank(spec, 1, generators, lengths, denoise.head.device)
    head = pack(denoise.head[: spec.logit_size]) if head is None else head
    guide = denoise.unconditional(spec.mask_id) if spec.cfg_scale > 0 else None
    yield denoising.state()
    while not denoising.done and not (cancelled and cancelled()):
        x, need = denoising.x, denoising.need()
        rows = denoise(x, need)
        denoising.advance(rows, head, guide(x, need) if guide else None)
        yield denoising.state()
