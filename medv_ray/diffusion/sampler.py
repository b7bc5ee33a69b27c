"""The sampler: one state machine that turns masks into tokens, for one row or many.

A step: hidden rows of the positions that may be committed -> token and odds of each (medv_kernels)
-> the best k take theirs. State is token ids plus a boolean of masked positions, made from
positions and never found by comparing ids. The host plans a step from what it read after the last
one: one read a step, whatever the number of rows; filling in a row's span or blank takes more.

Longer than a module should be: it is that one state machine.

Shapes: B rows, L positions of x, D width, N needed positions, V vocabulary.
Source: ML-GSAI/LLaDA generate.py; LLaDA-V generate_with_embeds; LLaDA-MedV supplement, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from medv_kernels.linear import PackedWeight, linear
from medv_kernels.noise import row_keys
from medv_kernels.ops import commit_step, select
from medv_kernels.reference import ResponseState, find_stop, join
from medv_ray.diffusion.canvas import Canvas, OpenSpan
from medv_ray.diffusion.draws import Draws
from medv_ray.diffusion.rules import Row, topk_order
from medv_ray.diffusion.spec import SampleSpec


class Denoising:
    """Responses being denoised side by side. A row enters, takes steps, and leaves.

    A step: `propose` a token for every needed position, in one call or several, then `commit` and
    `read`; `advance` is all three. Rows share nothing but the calls: blocks, stop rule, steps,
    threshold, random numbers and pinned positions are a row's own.

    Attributes:
        rows: what the host knows of each; None where there is none.
        x: int64[B, L].  masked: bool[B, L].
        token_confidence: float32[B, L], probability of each token when it was committed, 0 where
            none was.
        token_step: int32[B, L], step of the row at which it was committed, -1 where none was.
    """

    def __init__(
        self,
        spec: SampleSpec,
        num_rows: int,
        device: torch.device | str = "cpu",
        *,
        start: int = 0,
        together: bool | None = None,
    ) -> None:
        """
        Args:
            start: where the first block begins; positions before it that are masked compete with
                the block's own for its tokens, and count in no schedule.
            together: choose tokens for all rows in one product. None: only where the device is no
                CPU; there a product of matrices is not bit-equal whatever its height, and a row's
                answer would depend on its company.
        """
        self.spec, self.start = spec, start
        self.length = start + spec.gen_length
        shape = (num_rows, self.length)
        x = torch.full(shape, spec.mask_id, device=device)
        self._state = ResponseState.begin(x, torch.zeros(shape, dtype=torch.bool, device=device))
        self.x, self.masked = self._state.x, self._state.masked  # they change in place
        self.token_confidence, self.token_step = (
            self._state.token_confidence,
            self._state.token_step,
        )
        self.rows: list[Row | None] = [None] * num_rows
        self.together = x.device.type != "cpu" if together is None else together
        self._token = torch.zeros_like(x)
        self._rest = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        self._number = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._allowed: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(
        self,
        b: int,
        spec: SampleSpec | None = None,
        generator: torch.Generator | None = None,
        prompt_length: int = 0,
        canvas: Canvas | None = None,
    ) -> None:
        """A new response in the free row b, masked but for the pinned tokens of `canvas`, which has
        positions below 0 for what stands in front of the first block.

        Positions of its spans but the leaders, and those behind its length, show the mask token
        and compete for nothing.

        Args:
            spec: the row's own, of the batch's `kind`.
            generator: on the CPU. Needed with temperature or a random remasking.
            prompt_length: positions in front of x; for noise="reference".
        """
        spec, state = spec or self.spec, self._state
        if spec.kind != self.spec.kind:
            raise ValueError("rows of a batch have one kind of settings")
        if generator is None and (spec.temperature > 0 or spec.remasking != "low_confidence"):
            raise ValueError("temperature and random remasking draw numbers: give generators")
        pinned = {} if canvas is None else {self.start + i: t for i, t in canvas.pinned.items()}
        if not all(0 <= i < self.length for i in pinned):
            raise ValueError("a pinned position lies outside of x")
        spans = [] if canvas is None else [OpenSpan(one, self.start) for one in canvas.spans]
        waiting = {i for span in spans for i in span.positions if i != span.leader}
        end = self.length if canvas is None or canvas.length is None else self.start + canvas.length
        masks = [i for i in range(end) if i not in pinned and i not in waiting]
        stop = self.length
        state.x[b], state.masked[b], state.stop[b] = spec.mask_id, False, stop
        state.masked[b, torch.tensor(masks, dtype=torch.int64, device=self.x.device)] = True
        state.failed[b], state.token_step[b], state.token_confidence[b] = False, -1, 0.0
        if pinned:
            where = torch.tensor([*pinned], device=self.x.device)
            state.x[b, where] = torch.tensor([*pinned.values()], device=self.x.device)
            if canvas is not None and canvas.length is None:
                find_stop(self.x[b : b + 1], spec.stop_ids, state.stop[b : b + 1], self.start)
                stop = int(state.stop[b])
        self._number[b] = spec.threshold if spec.rule == "threshold" else spec.factor
        self.rows[b] = Row(
            spec,
            self.start,
            masks,
            Draws(generator, spec, prompt_length, self.length),
            None if stop == self.length else stop,
            None if canvas is None or canvas.plain else canvas,
            spans,
        )

    def leave(self, b: int) -> None:
        """Free row b."""
        self.masked[b] = False
        self.rows[b] = None
        self._allowed.pop(b, None)

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
    def step(self) -> int:
        """Steps that the row with the most has taken."""
        return max((row.total for row in self.rows if row is not None), default=0)

    def finish(self, b: int) -> Literal["stop", "length"]:
        """Why row b's answer ends where it does."""
        row = self.row(b)
        return "stop" if row.whole or row.stop is not None else "length"

    def needs(self) -> dict[int, list[int]]:
        """Positions of each running row whose hidden states a step wants; a step may want none."""
        return {b: self.row(b).look() for b in self.running}

    def need(self) -> Tensor:
        """bool[B, L], `needs` on the device."""
        need = torch.zeros(self.x.shape, dtype=torch.bool)
        for b, positions in self.needs().items():
            need[b, positions] = True
        return need.to(self.x.device)

    def indices(self, needs: dict[int, list[int]]) -> Tensor:
        """int64[N], needed positions of rows in row-major order, as indices of x.flatten()."""
        flat = [b * self.length + i for b, positions in needs.items() for i in positions]
        return torch.tensor(flat, dtype=torch.int64).to(self.x.device)

    @torch.no_grad()
    def propose(
        self,
        hidden: Tensor,
        head: Tensor | PackedWeight | None,
        indices: Tensor,
        sizes: dict[int, int] | None = None,
        unconditional: Tensor | None = None,
    ) -> None:
        """Choose a token for positions. Without `sizes`, nothing is read from the device.

        Args:
            hidden: float[N, D] hidden states, or float[N, V] logits with head None.
            head: float[V, D].
            indices: int64[N], as `indices` makes them; those that are not needed do no harm.
            sizes: how many of them are of each row, in their order, where they are the needed
                ones of all running rows; required where numbers are drawn.
            unconditional: as `hidden`, without the prompt; needed with cfg_scale > 0.
        """
        spec = self.spec
        if spec.cfg_scale > 0 and unconditional is None:
            raise ValueError(f"cfg_scale={spec.cfg_scale} needs the unconditional rows too")
        width = hidden.shape[1] if head is None else len(head)
        vocabulary = width if spec.logit_size is None else min(width, spec.logit_size)
        parts, start = [], 0
        for size, options in self._pieces(indices, sizes, vocabulary):
            piece = slice(start, start + size)
            start += size
            parts.append(
                select(
                    hidden[piece],
                    head,
                    forbidden=spec.excluded,
                    unranked=spec.unranked,
                    temperature=spec.temperature,
                    logit_size=spec.logit_size,
                    unconditional=None if unconditional is None else unconditional[piece],
                    cfg_scale=spec.cfg_scale,
                    check=False,
                    **options,
                )
            )
        found = join(parts, hidden.device)
        self._token.view(-1)[indices] = found.token
        self._rest.view(-1)[indices] = found.rest
        start = 0
        for b, size in (sizes or {}).items():
            piece = slice(start, start + size)
            start += size
            if self.row(b).spans:
                guide = None if unconditional is None else unconditional[piece]
                self._look_at_spans(b, hidden[piece], head, guide)

    def _look_at_spans(
        self, b: int, hidden: Tensor, head: Tensor | PackedWeight | None, guide: Tensor | None
    ) -> None:
        """Let the leaders of row b stand for their pieces, given float[n, D] of `Row.look`."""
        row = self.row(b)
        index = {i: n for n, i in enumerate(row.look())}
        for span in row.spans:
            if span.leader not in index:
                continue
            at = [index[i] for i in span.ahead]
            logits = self._logits(hidden[at], head)
            if guide is not None:
                base = self._logits(guide[at], head)
                logits = base + (self.spec.cfg_scale + 1) * (logits - base)
            self._token[b, span.leader], self._rest[b, span.leader] = span.look(logits)

    def _logits(self, rows: Tensor, head: Tensor | PackedWeight | None) -> Tensor:
        """float32[n, V]."""
        found = rows if head is None else linear(rows, head)
        return found[:, : self.spec.logit_size].float()

    def _pieces(
        self, indices: Tensor, sizes: dict[int, int] | None, vocabulary: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """How many of the positions are chosen for together, in their order, and what `select` is
        found of them: those of one row, or of all."""
        spec = self.spec
        plain = sizes is None or all(self.row(b).canvas is None for b in sizes)
        if sizes is None or self.together and plain and spec.temperature == 0:
            yield len(indices), {}
            return
        if self.together and plain and spec.noise == "keyed":
            each = [
                (self.row(b).draws.seed, self.row(b).total) for b in sizes for _ in range(sizes[b])
            ]
            seeds, steps = torch.tensor(each, dtype=torch.int64).to(indices.device).view(-1, 2).T
            yield len(indices), {"keys": row_keys(seeds, steps, indices % self.length)}
            return
        # no other odds are looked at than those of the k best
        ranked = spec.remasking == "low_confidence" and spec.rule == "schedule"
        ranked = ranked and spec.noise != "reference"
        start = 0
        for b, size in sizes.items():
            row, mine = self.row(b), indices[start : start + size] - b * self.length
            start += size
            allowed = self._allowed_at(b, mine, vocabulary)
            if spec.temperature == 0:
                k = row.k if ranked and size and not row.spans else None
                yield size, {"k": k, "allowed": allowed}
            elif spec.noise == "keyed":
                keys = row_keys(row.draws.seed, row.total, mine)
                yield size, {"keys": keys, "allowed": allowed}
            else:
                done = 0
                for uniform in row.draws.tokens(row.look(), vocabulary):
                    some = None if allowed is None else allowed[done : done + len(uniform)]
                    done += len(uniform)
                    yield len(uniform), {"uniform": uniform.to(indices.device), "allowed": some}

    def _allowed_at(self, b: int, positions: Tensor, vocabulary: int) -> Tensor | None:
        """bool[n, V], tokens that int64[n] positions of row b may take; None: every one."""
        canvas = self.row(b).canvas
        if canvas is None:
            return None
        if b not in self._allowed:
            sets, which = canvas.sets(self.length, self.start, vocabulary, self.spec.mask_id)
            self._allowed[b] = sets.to(positions.device), which.to(positions.device)
        sets, which = self._allowed[b]
        return sets[which[positions]]

    @torch.no_grad()
    def commit(self) -> None:
        """Let the positions that the rules choose take their proposed tokens."""
        spec = self.spec
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
            self._state,
            self._token,
            self._rest,
            limit,
            step,
            k if rule == "schedule" else None,
            mask_id=spec.mask_id,
            key=key,
            stop_ids=spec.stop_ids,
            start=self.start,
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
        key = self._rest.cpu() if as_topk else torch.zeros(self.x.shape, dtype=torch.float64)
        for b in needs:
            row = self.row(b)
            need = row.need()
            if drawn:
                draws = row.draws.positions(need)
                key[b, need] = -draws
                if spec.remasking == "independent":
                    k[b] = int((draws >= row.remain).sum())
                    continue
            elif spec.rule != "schedule":
                k[b] = row.accepted(key[b])
            if as_topk:
                key[b] = topk_order(key[b], need, k[b], row.draws.before, row.draws.after)
        return key.to(self.x.device), True

    def read(self) -> None:
        """Tell the rows what the step has come to: the one read from the device."""
        state, passed = self._state, self.needs()
        said = torch.cat((state.masked, state.failed[:, None], state.stop[:, None]), 1).tolist()
        for b, need in passed.items():
            *masked, failed, stop = said[b]
            row, masks = self.row(b), [i for i, hidden in enumerate(masked) if hidden]
            if row.spans and not failed:
                masks = self._fill_spans(b, masks)
            if row.canvas is not None and row.canvas.tails and not failed:
                masks = self._fill_tails(b, masks)
            none = stop == self.length or row.whole
            row.advance(masks, None if none else stop, failed, bool(need))

    def _fill_spans(self, b: int, masks: list[int]) -> list[int]:
        """Fill in the pieces of row b whose leaders have been committed; what is masked now."""
        row, left = self.row(b), {*masks}
        assert row.canvas is not None
        for span in row.spans:
            if span.leader is None or span.leader in left:
                continue
            taken = span.take()
            self._put(b, taken)
            left.difference_update(i for i, _, _ in taken)
            if span.leader is not None:
                left.add(span.leader)
                self.masked[b, span.leader] = True
                continue
            void = {*span.void}
            for other in row.spans:
                if other.leader in void:
                    left.update(other.positions[len(other.tokens) :])
                    other.close()
            assert row.canvas.end is not None or not void
            sure = taken[-1][2]
            self._put(b, [(i, row.canvas.end or 0, sure) for i in sorted(void & left)])
            left -= void
        return sorted(left)

    def _fill_tails(self, b: int, masks: list[int]) -> list[int]:
        """Fill what is of no use behind an end token of row b; what is masked now."""
        canvas, x = self.row(b).canvas, self.x[b].tolist()
        assert canvas is not None
        void = set[int]()
        for tail in canvas.tails:
            positions = [self.start + i for i in tail]
            ends = [i for i in positions if x[i] == canvas.end]
            void |= {i for i in positions if ends and i > ends[0]}
        left = [i for i in masks if i in void]
        self._put(b, [(i, canvas.end or 0, 1.0) for i in left])
        return [i for i in masks if i not in void]

    def _put(self, b: int, taken: list[tuple[int, int, float]]) -> None:
        """Commit (position, token, confidence) of row b."""
        if not taken:
            return
        where, tokens, sure = zip(*taken, strict=True)
        at = torch.tensor(where, device=self.x.device)
        self.x[b, at] = torch.tensor(tokens, device=self.x.device)
        self.masked[b, at] = False
        self.token_confidence[b, at] = torch.tensor(sure, device=self.x.device)
        self.token_step[b, at] = self.row(b).total

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
        self.propose(hidden, head, self.indices(needs), sizes, unconditional)
        self.commit()
        self.read()
        failed = [b for b in sizes if self.row(b).failed]
        if failed:
            raise FloatingPointError(
                f"the logits of row {failed[0]} of {len(self.rows)} are not finite: the weights or "
                "the hidden states are not, or every token is forbidden"
            )
