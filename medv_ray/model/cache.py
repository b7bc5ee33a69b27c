"""The denoiser with a KV cache: a pass computes a window of the sequence, not all of it.

That approximates: what is kept was computed before the latest tokens were committed. It is exact
for what does not see them: in a model whose attention cuts the prompt, all before the last cut.

Shapes: B rows, L response positions, P prompt positions, S all positions of a row, D width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from medv_ray.model.denoise import FullRecompute, Pass, Prompt
from medv_ray.model.keys import KeyValues, kept_bytes
from medv_ray.model.medv import Medv

Kind = Literal["prefix", "dual"]


@dataclass
class Refresh:
    """When a row computes all of its positions: at the first pass of a block, and then at every
    `interval`-th one."""

    interval: int | None
    """None: not again in the block."""
    block: int = -1
    calls: int = 0
    """Passes since the block was entered."""

    def due(self, block: int) -> bool:
        """Whether the coming pass, which is for `block`, is one; counts it."""
        if block != self.block:
            self.block, self.calls = block, 0
        call, self.calls = self.calls, self.calls + 1
        return call % (self.interval or call + 1) == 0


@dataclass
class _Kept:
    """What one row keeps."""

    keys: KeyValues
    refresh: Refresh


class Cached(FullRecompute):
    """Keys and values are kept; between refreshes only a window is computed.

    prefix: from the block's start to the end of the sequence (LLaDA-V's hook, and Fast-dLLM).
    dual: the block alone (Fast-dLLM). A refresh computes everything: when a block is entered, and
    at every `refresh_interval`-th pass of the block.

    Where prompts cut attention, what lies before the last cut is computed once and no refresh
    repeats it; the first segment once for all rows that share it. So refresh_interval=1 is exact
    and spares most of the prompt.

    The block is that of the first needed position. Rows share nothing but `store`.
    """

    def __init__(
        self,
        model: Medv,
        prompts: Sequence[Prompt | Tensor],
        suffix_ids: Sequence[int] = (),
        *,
        kind: Kind,
        block_length: int,
        refresh_interval: int | None = None,
        store: PromptStore | None = None,
    ) -> None:
        """
        Args:
            block_length: blocks count from the start of x.
            refresh_interval: None refreshes when a block is entered and not again.
            store: of the first segments of prompts that cut attention.
        """
        super().__init__(model, prompts, suffix_ids, together=False)
        self.kind, self.block_length = kind, block_length
        self.refresh_interval = refresh_interval
        self._store = store
        self._kept: dict[int, _Kept] = {}

    def unconditional(self, mask_id: int) -> Self:
        """As FullRecompute's, with keys and values of its own."""
        blind = super().unconditional(mask_id)
        blind._kept, blind._store = {}, None
        return blind

    def kept_bytes(self, gen_length: int) -> int:
        """Bytes of the keys and values of all rows."""
        positions = sum(self.sequence_length(b, gen_length) for b in range(len(self._prompts)))
        return kept_bytes(self.model.config.language, self.model.dtype, positions)

    def one_pass(self, b: int, x: Tensor, positions: Tensor) -> Pass:
        """The window of row b that int64[N] positions need, given int64[L]; see `FullRecompute`."""
        row = self._kept.get(b)
        if row is None:
            row = self._kept[b] = _Kept(self._begin(b), Refresh(self.refresh_interval))
        prompt = self.prompt_length(b)
        start, end = self._window(b, row, int(positions[0]), int(positions[-1]), len(x))
        row.keys.start = start
        ends = (*self._ends[b], self.sequence_length(b, len(x)))
        self.computed += end - start
        sequence = torch.cat((self._prompts[b], self.model.embed(x), self._suffix))  # [S, D]
        return Pass(sequence[start:end], positions + (prompt - start), ends, row.keys)

    def _begin(self, b: int) -> KeyValues:
        """Keys and values of what of a prompt is known before the first pass."""
        if self._store is None or not self._ends[b]:
            return KeyValues(len(self.model.model.layers))
        beginning, misses = self._prompts[b][: self._ends[b][0]], self._store.misses
        found = self._store.get(self.model, beginning).grown()
        self.computed += len(beginning) * (self._store.misses - misses)
        return found

    def _window(self, b: int, row: _Kept, first: int, last: int, length: int) -> tuple[int, int]:
        """(start, end) of what the coming pass computes, in the sequence; needed positions of the
        response run from first to last."""
        prompt, whole = self.prompt_length(b), self.sequence_length(b, length)
        block = first // self.block_length
        if row.refresh.due(block):
            cut = self._ends[b][-1] if self._ends[b] else 0
            return min(len(row.keys), cut), whole
        start = block * self.block_length
        end = prompt + max(start + self.block_length, last + 1)
        return prompt + start, whole if self.kind == "prefix" else end


class PromptStore:
    """Keys and values of the beginnings of prompts, by their embeddings; the least recently used go
    beyond `limit_bytes`.

    A beginning is computed alone, so that it is the same to the last bit whoever asks first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[bytes, KeyValues] = OrderedDict()
        self.nbytes = 0
        self.hits = self.misses = self.evictions = 0

    def get(self, model: Medv, embeds: Tensor) -> KeyValues:
        """Of float[P, D], one segment. Not to be written to: see `KeyValues.grown`."""
        key = hashlib.sha256(embeds.contiguous().view(torch.uint8).cpu().numpy().data).digest()
        found = self._kept.get(key)
        if found is not None:
            self.hits += 1
            self._kept.move_to_end(key)
            return found
        self.misses += 1
        found = KeyValues(len(model.model.layers))
        model.hidden(embeds[None], need=embeds.new_zeros(1, dtype=torch.int64), keys=found)
        self._kept[key] = found
        self.nbytes += found.nbytes
        self.shrink(self._limit_bytes)
        return found

    def shrink(self, limit_bytes: int) -> None:
        """Keep so many bytes at most, from now on."""
        self._limit_bytes = limit_bytes
        while self.nbytes > limit_bytes:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes
            self.evictions += 1
