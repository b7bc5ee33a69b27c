"""The sampler: one state machine that turns masks into tokens, for one row or many.

A step: hidden rows of the positions that may be committed -> token and odds of each (medv_kernels)
-> the best k take theirs. State is token ids plus a boolean of masked positions, made from
positions and never found by comparing ids. The host plans a step from what it read after the last
one: one read a step, whatever the number of rows.

Shapes: B rows, L positions of x, D width, N needed positions, V vocabulary.
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
from medv_kernels.ops import commit_step, select
from medv_kernels.reference import (
    ResponseState,
    accepted_by_factor,
    accepted_by_threshold,
    find_stop,
    join,
)
from medv_ray.diffusion.draws import Draws
from medv_ray.diffusion.rules import Row, topk_order
from medv_ray.diffusion.spec import Canvas, SampleSpec

__all__ = ["Canvas", "Denoise", "Denoising", "SampleSpec", "State", "sample"]


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


class _Piece(NamedTuple):
    """Needed positions that are chosen for together."""

    size: int
    """How many."""
    k: int | None = None
    """How many of them are committed, where no other odds are looked at."""
    uniform: Tensor | None = None
    """float64[n, V], their draws."""
    keys: Tensor | None = None
    """int64[n], what their draws are made of."""
    allowed: Tensor | None = None
    """bool[n, V], tokens that each may take."""


class Denoising:
    """Responses being denoised side by side. A row enters, takes steps, and leaves.

    A step: `propose` a token for every needed position, in one call or several, then `commit` and
    `read`; `advance` is all three. Rows share nothing but the calls: blocks, stop rule, steps,
    threshold, random numbers and pinned positions are a row's own.

    Attributes:
        state: the responses, on the device.
        rows: what the host knows of each; None where there is none.
    """

    def __init__(
        self,
        spec: SampleSpec,
        num_rows: int,
        device: torch.device | str = "cpu",
        *,
        begin: int = 0,
        together: bool | None = None,
    ) -> None:
        """
        Args:
            begin: where the first block begins; positions before it that are masked compete with
                the block's own for its tokens, and count in no schedule.
            together: choose tokens for all rows in one product. None: only where the device is no
                CPU; there a product of matrices is not bit-equal whatever its height, and a row's
                answer would depend on its company.
        """
        self.spec, self.begin = spec, begin
        self.length = begin + spec.gen_length
        shape = (num_rows, self.length)
        x = torch.full(shape, spec.mask_id, device=device)
        self.state = ResponseState.begin(x, torch.zeros(shape, dtype=torch.bool, device=device))
        self.rows: list[Row | None] = [None] * num_rows
        self.together = x.device.type != "cpu" if together is None else together
        self._token = torch.zeros_like(x)
        self._rest = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        self._number = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._allowed: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def blank(
        cls,
        spec: SampleSpec,
        rows: int = 1,
        generators: Sequence[torch.Generator] = (),
        prompt_lengths: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Denoising:
        """All of the answers masked and nothing else in x; see `of`."""
        x = torch.full((rows, spec.gen_length), spec.mask_id, device=device)
        return cls.of(spec, x, x == spec.mask_id, 0, generators, prompt_lengths)

    @classmethod
    def of(
        cls,
        spec: SampleSpec,
        x: Tensor,
        maskable: Tensor,
        begin: int = 0,
        generators: Sequence[torch.Generator] = (),
        prompt_lengths: Sequence[int] | None = None,
    ) -> Denoising:
        """A batch whose rows all enter at once.

        Args:
            x: int64[B, begin + gen_length], not changed.
            maskable: bool[B, L], positions to fill.
            begin: where the first block begins.
            generators: on the CPU, one per row, or one for all as in a seeded reference batch.
            prompt_lengths: positions in front of x, per row. Needed with noise="reference".

        Raises ValueError for arguments that do not fit each other.
        """
        rows = len(x)
        if x.shape[1] != begin + spec.gen_length or maskable.shape != x.shape:
            raise ValueError(
                f"x {tuple(x.shape)} and maskable {tuple(maskable.shape)} must both have "
                f"{begin} + {spec.gen_length} positions"
            )
        if len(generators) not in (0, 1, rows):
            raise ValueError(
                f"{len(generators)} generators for {rows} rows: give one, or one per row"
            )
        if spec.noise == "keyed" and 0 < len(generators) < rows:
            raise ValueError(
                'noise="keyed" draws from the seed of each row: give one generator per row'
            )
        if prompt_lengths is None and spec.noise == "reference":
            raise ValueError('noise="reference" counts prompt positions too: give prompt_lengths')
        made = cls(spec, rows, x.device, begin=begin)
        each = list(generators) * (rows if len(generators) == 1 else 1)
        for b in range(rows):
            prompt = 0 if prompt_lengths is None else prompt_lengths[b]
            made._enter(b, spec, x[b], maskable[b], each[b] if each else None, prompt)
        return made

    def enter(
        self,
        b: int,
        spec: SampleSpec | None = None,
        generator: torch.Generator | None = None,
        prompt_length: int = 0,
        canvas: Canvas | None = None,
    ) -> None:
        """A new response in the free row b, masked but for the pinned tokens of `canvas`.

        Args:
            spec: the row's own, of the batch's `kind`.
            generator: on the CPU. Needed with temperature or a random remasking.
            prompt_length: positions in front of x; for noise="reference".
        """
        x = torch.full((self.length,), self.spec.mask_id)
        maskable = torch.ones(self.length, dtype=torch.bool)
        for i, token in {} if canvas is None else canvas.pinned.items():
            x[self.begin + i], maskable[self.begin + i] = token, False
        self._enter(b, spec or self.spec, x, maskable, generator, prompt_length, canvas)

    def _enter(
        self,
        b: int,
        spec: SampleSpec,
        x: Tensor,
        maskable: Tensor,
        generator: torch.Generator | None,
        prompt_length: int,
        canvas: Canvas | None = None,
    ) -> None:
        if generator is None and (spec.temperature > 0 or spec.remasking != "low_confidence"):
            raise ValueError("temperature and random remasking draw numbers: give generators")
        state, draws = self.state, None
        if generator is not None:
            reference, after = spec.noise == "reference", len(spec.suffix_ids)
            draws = Draws(generator, reference, prompt_length, self.length, after)
        x, maskable = torch.where(maskable, spec.mask_id, x), maskable.clone()
        stop = torch.tensor([self.length])
        if canvas is not None:  # a stop sequence may be pinned
            find_stop(x[None], spec.stop_ids, stop, self.begin)
        self.rows[b] = Row(
            spec,
            self.begin,
            maskable.nonzero().flatten().tolist(),
            draws,
            0 if generator is None else generator.initial_seed(),
            None if int(stop) == self.length else int(stop),
            None if canvas is None or not canvas.allowed else canvas,
        )
        self._allowed.pop(b, None)
        state.x[b], state.masked[b] = x, maskable
        state.stop[b] = stop[0]
        state.failed[b], state.token_step[b] = False, -1
        state.token_confidence[b] = 0.0
        self._number[b] = spec.threshold if spec.rule == "threshold" else spec.factor

    def leave(self, b: int) -> None:
        """Free row b."""
        self.state.masked[b] = False
        self.rows[b] = None

    def halt(self, b: int) -> None:
        """Row b takes no further step."""
        self.row(b).done = True

    def row(self, b: int) -> Row:
        """The row that has entered at b."""
        row = self.rows[b]
        assert row is not None, "it has entered"
        return row

    @property
    def running(self) -> list[int]:
        """Rows that have steps to take."""
        return [b for b, row in enumerate(self.rows) if row is not None and row.running]

    @property
    def done(self) -> bool:
        """No row has steps to take."""
        return not self.running

    @property
    def x(self) -> Tensor:
        """int64[B, L], tokens now."""
        return self.state.x

    @property
    def masked(self) -> Tensor:
        """bool[B, L]."""
        return self.state.masked

    @property
    def token_confidence(self) -> Tensor:
        """float32[B, L], probability of each token when it was committed, 0 where none was."""
        return self.state.token_confidence

    @property
    def token_step(self) -> Tensor:
        """int32[B, L], the row's step at which it was committed, -1 where none was."""
        return self.state.token_step

    @property
    def step(self) -> int:
        """Steps that the row with the most has taken."""
        return max((row.total for row in self.rows if row is not None), default=0)

    @property
    def forward_passes(self) -> int:
        """Steps that needed the model, of the row with the most."""
        return max((row.forward_passes for row in self.rows if row is not None), default=0)

    def snapshot(self) -> State:
        """The responses now."""
        return State(self.x.clone(), self.masked.clone(), self.step, self.done)

    def stop_position(self, b: int) -> int | None:
        """Where row b's first stop sequence begins, counted from the answer's start."""
        stop = self.row(b).stop
        return None if stop is None else stop - self.begin

    def finish(self, b: int) -> Literal["stop", "length"]:
        """Why row b's answer ends where it does."""
        return "length" if self.row(b).stop is None else "stop"

    def answer(self, b: int) -> Tensor:
        """int64[n], row b's answer: cut at the stop, then the suffix."""
        suffix = torch.tensor(self.spec.suffix_ids, dtype=torch.int64, device=self.x.device)
        return torch.cat([self.x[b, self.begin : self.row(b).stop], suffix])

    def needs(self) -> dict[int, list[int]]:
        """Positions of each running row whose hidden states a step wants; a step may want none."""
        return {b: self.row(b).need() for b in self.running}

    def need(self) -> Tensor:
        """bool[B, L], `needs` on the device."""
        need = torch.zeros(self.x.shape, dtype=torch.bool)
        for b, positions in self.needs().items():
            need[b, positions] = True
        return need.to(self.x.device)

    def places(self, needs: dict[int, list[int]]) -> Tensor:
        """int64[N], needed positions of rows in row-major order, as places in x.flatten()."""
        flat = [b * self.length + i for b, positions in needs.items() for i in positions]
        return torch.tensor(flat, dtype=torch.int64).to(self.x.device)

    @torch.no_grad()
    def propose(
        self,
        hidden: Tensor,
        head: Tensor | PackedWeight | None,
        places: Tensor,
        sizes: dict[int, int] | None = None,
        unconditional: Tensor | None = None,
    ) -> None:
        """Choose a token for positions. Without `sizes`, nothing is read from the device.

        Args:
            hidden: float[N, D] hidden states, or float[N, V] logits with head None.
            head: float[V, D].
            places: int64[N], as `places` makes them; those that are not needed do no harm.
            sizes: how many of them are of each row, in their order, where `places` are the needed
                ones of all running rows; required where numbers are drawn.
            unconditional: as `hidden`, without the prompt; needed with cfg_scale > 0.
        """
        spec = self.spec
        if spec.cfg_scale > 0 and unconditional is None:
            raise ValueError(f"cfg_scale={spec.cfg_scale} needs the unconditional rows too")
        width = hidden.shape[1] if head is None else len(head)
        vocabulary = width if spec.logit_size is None else min(width, spec.logit_size)
        parts, start = [], 0
        for part in self._pieces(places, sizes, vocabulary):
            piece = slice(start, start + part.size)
            start += part.size
            parts.append(
                select(
                    hidden[piece],
                    head,
                    forbidden=spec.excluded,
                    unranked=spec.unranked,
                    temperature=spec.temperature,
                    uniform=part.uniform,
                    keys=part.keys,
                    logit_size=spec.logit_size,
                    unconditional=None if unconditional is None else unconditional[piece],
                    cfg_scale=spec.cfg_scale,
                    k=part.k,
                    allowed=part.allowed,
                    check=False,
                )
            )
        found = join(parts, hidden.device)
        self._token.view(-1)[places] = found.token
        self._rest.view(-1)[places] = found.rest

    def _pieces(
        self, places: Tensor, sizes: dict[int, int] | None, vocabulary: int
    ) -> Iterator[_Piece]:
        """The positions in their order, those of one row or of all together."""
        spec = self.spec
        if sizes is None or (
            self.together
            and spec.temperature == 0
            and all(self.row(b).canvas is None for b in sizes)
        ):
            yield _Piece(len(places))
            return
        ranked = spec.remasking == "low_confidence" and spec.noise != "reference"
        ranked = ranked and spec.rule == "schedule"
        start = 0
        for b, size in sizes.items():
            row, mine = self.row(b), places[start : start + size] - b * self.length
            start += size
            allowed = None
            if row.canvas is not None:
                if b not in self._allowed:
                    sets = row.canvas.sets(self.length, self.begin, vocabulary)
                    self._allowed[b] = sets[0].to(places.device), sets[1].to(places.device)
                allowed = self._allowed[b][0][self._allowed[b][1][mine]]
            if spec.temperature == 0:
                yield _Piece(size, row.k if ranked and size else None, allowed=allowed)
            elif spec.noise == "keyed":
                yield _Piece(size, keys=row_keys(row.seed, row.total, mine), allowed=allowed)
            else:
                assert row.draws is not None
                done = 0
                for uniform in row.draws.tokens(row.need(), vocabulary):
                    some = slice(done, done + len(uniform))
                    yield _Piece(
                        len(uniform),
                        uniform=uniform.to(places.device),
                        allowed=None if allowed is None else allowed[some],
                    )
                    done += len(uniform)

    @torch.no_grad()
    def commit(self) -> None:
        """Let the positions that the rules choose take their proposed tokens."""
        spec, state = self.spec, self.state
        needs = self.needs()
        plan = [[0] * len(self.rows) for _ in range(4)]
        for b, need in needs.items():
            row = self.row(b)
            plan[0][b] = row.limit if need else 0
            plan[1][b] = row.total
            plan[2][b] = row.k if spec.rule == "schedule" else 0
            plan[3][b] = len(row.masks)
        key, counts = self._order(needs, plan[2])
        limit, step, k, num_masks = torch.tensor(plan).to(self.x.device, non_blocking=True)
        rule = "schedule" if counts else spec.rule
        commit_step(
            state,
            self._token,
            self._rest,
            limit,
            step,
            k if rule == "schedule" else None,
            mask_id=spec.mask_id,
            key=key,
            stop_ids=spec.stop_ids,
            begin=self.begin,
            threshold=self._number if rule == "threshold" else None,
            factor=self._number if rule.startswith("factor") else None,
            # LLaDA-V ranks the masks of later blocks too, behind all others; Fast-dLLM the block's
            # own
            num_masks=num_masks if rule == "factor_llada_v" else None,
        )

    def _order(self, needs: dict[int, list[int]], k: list[int]) -> tuple[Tensor | None, bool]:
        """What is ranked in place of the odds, float64[B, L], where something is; and whether `k`,
        which is changed then, holds the counts of other rules too."""
        spec = self.spec
        drawn, as_topk = spec.remasking != "low_confidence", spec.noise == "reference"
        if not drawn and not as_topk:
            return None, False
        key = torch.zeros(self.x.shape, dtype=torch.float64)
        rest = self._rest.cpu() if as_topk else key
        for b, need in needs.items():
            row, mine = self.row(b), rest[b]
            if drawn:
                assert row.draws is not None
                draws = row.draws.positions(need)
                mine = torch.zeros_like(mine).index_copy_(0, torch.tensor(need).long(), -draws)
                if spec.remasking == "independent":
                    k[b] = int((draws >= row.remain).sum())
            elif spec.rule != "schedule":
                k[b] = self._accepted(b, mine, need)
            if as_topk and spec.remasking != "independent":
                before, after = 0 if row.draws is None else row.draws.before, len(spec.suffix_ids)
                mine = topk_order(mine, need, k[b], before, after)
            key[b] = mine
        return key.to(self.x.device), True

    def _accepted(self, b: int, rest: Tensor, need: list[int]) -> int:
        """How many tokens row b commits by a threshold or a factor, given float64[L]."""
        spec, row = self.row(b).spec, self.row(b)
        eligible = torch.zeros(1, self.length, dtype=torch.bool)
        eligible[0, need] = True
        if spec.rule == "threshold":
            return int(accepted_by_threshold(rest[None], eligible, spec.threshold))
        num_masks = torch.tensor([len(row.masks)]) if spec.rule == "factor_llada_v" else None
        return int(accepted_by_factor(rest[None], eligible, spec.factor, num_masks))

    def read(self) -> None:
        """Tell the rows what the step has come to: the one read from the device."""
        state, passed = self.state, self.needs()
        told = torch.cat((state.masked, state.failed[:, None], state.stop[:, None]), 1).tolist()
        for b, need in passed.items():
            *masked, failed, stop = told[b]
            masks = [i for i, hidden in enumerate(masked) if hidden]
            self.row(b).advance(masks, None if stop == self.length else stop, failed, bool(need))

    def advance(
        self,
        hidden: Tensor,
        head: Tensor | PackedWeight | None,
        unconditional: Tensor | None = None,
    ) -> None:
        """Take one step of every running row.

        Args:
            hidden: float[N, D] hidden states of `need()`, or float[N, V] logits with head None.
            head: float[V, D].
            unconditional: as `hidden`, without the prompt; needed with cfg_scale > 0.

        Raises FloatingPointError when a row's logits are not finite; nothing of it has changed.
        """
        needs = self.needs()
        sizes = {b: len(positions) for b, positions in needs.items()}
        if len(hidden) != sum(sizes.values()):
            raise ValueError(f"{len(hidden)} hidden rows for {sum(sizes.values())} needed ones")
        self.propose(hidden, head, self.places(needs), sizes, unconditional)
        self.commit()
        self.read()
        failed = [b for b in sizes if self.row(b).failed]
        if failed:
            raise FloatingPointError(
                f"the logits of row {failed[0]} of {len(self.rows)} are not finite: the weights or "
                "the hidden states are not, or every token is forbidden"
            )


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
        head: the denoiser's, packed already; by default it is packed here, as large as it is.

    Raises FloatingPointError when logits are not finite.
    """
    if denoising is None:
        lengths = [denoise.prompt_length(0)] if spec.noise == "reference" else None
        denoising = Denoising.blank(spec, 1, generators, lengths, denoise.head.device)
    head = pack(denoise.head[: spec.logit_size]) if head is None else head
    guide = denoise.unconditional(spec.mask_id) if spec.cfg_scale > 0 else None
    yield denoising.snapshot()
    while not denoising.done and not (cancelled and cancelled()):
        x, need = denoising.x, denoising.need()
        rows = denoise(x, need)
        denoising.advance(rows, head, guide(x, need) if guide else None)
        yield denoising.snapshot()
