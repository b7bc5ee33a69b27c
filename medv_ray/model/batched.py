"""A denoiser for many rows at once: rows of one shape, their keys and values in one place.

Rows stand right-aligned, so that the response has the same positions in all of them, whatever the
length of the prompt: [padding | prompt | response | suffix]. Rotary positions still count from a
row's first token. What a pass computes has one shape, and it reads nothing from the device, so that
a window can be captured as a CUDA graph.

Shapes: B rows, n rows of a pass, L response positions, W window, P prompt positions (room for the
longest), S = P + L + suffix, D width, K key-value heads, C width of one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medv_ray.model.keys import kept_bytes
from medv_ray.model.medv import Medv


class _Written:
    """Takes the keys and values of a pass and gives those to attend to; see `Keys`."""

    start = 0

    def __init__(self, batch: Batched, rows: Tensor, positions: Tensor, whole: bool, every: bool):
        self._batch, self._whole, self._every = batch, whole, every
        self._rows, self._positions = rows, positions

    def __len__(self) -> int:
        return self._batch.positions

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the pass, float[n, K, W, C], where it computes whole rows; else of all."""
        kept = self._batch.keys[layer], self._batch.values[layer]
        for old, new in zip(kept, (k, v), strict=True):
            old[self._rows, :, self._positions] = new.transpose(1, 2)
        if self._whole:
            return k, v
        return kept if self._every else (kept[0][self._rows[:, 0]], kept[1][self._rows[:, 0]])


class Batched:
    """Rows of one model that are computed side by side.

    A row's numbers depend on the others only by the rounding of wider products.
    """

    def __init__(
        self,
        model: Medv,
        num_rows: int,
        prompt_room: int,
        gen_length: int,
        suffix_ids: Sequence[int] = (),
        keep: bool = False,
        unconditional_id: int | None = None,
    ) -> None:
        """
        Args:
            prompt_room: positions for the longest prompt, image tokens included.
            keep: keys and values, for `window`.
            unconditional_id: a token that stands at every position of prompts and suffix, for
                guidance.
        """
        self.model, self.num_rows = model, num_rows
        self.prompt_room, self.gen_length = prompt_room, gen_length
        self.positions = prompt_room + gen_length + len(suffix_ids)
        self.computed = 0
        """Positions of rows that have gone through the language tower, padding not counted."""
        language, at = model.config.language, model.head
        suffix = torch.tensor(suffix_ids, dtype=torch.int64, device=at.device)
        self._mask = None
        if unconditional_id is not None:
            suffix = torch.full_like(suffix, unconditional_id)
            self._mask = model.embed(torch.tensor([unconditional_id], device=at.device))  # [1, D]
        self._suffix = model.embed(suffix)
        self._prompts = at.new_zeros(num_rows, prompt_room, at.shape[1])
        self._lengths = [0] * num_rows  # of prompts
        self._padding = torch.full((num_rows,), prompt_room, device=at.device)
        shape = (num_rows, language.num_key_value_heads, self.positions, language.head_dim)
        kept = range(language.num_hidden_layers if keep else 0)
        self.keys = [at.new_zeros(shape) for _ in kept]
        self.values = [at.new_zeros(shape) for _ in kept]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all rows."""
        return sum(kept.nbytes for kept in (*self.keys, *self.values))

    @staticmethod
    def kept_bytes(model: Medv, positions: int) -> int:
        """Bytes of the keys and values of one row."""
        return kept_bytes(model.config.language, model.dtype, positions)

    def enter(self, row: int, prompt: Tensor) -> None:
        """Put a prompt float[<= P, D] into a row."""
        self._prompts[row].zero_()
        found = prompt if self._mask is None else self._mask.expand_as(prompt)
        self._prompts[row, self.prompt_room - len(prompt) :] = found
        self._lengths[row] = len(prompt)
        self._padding[row] = self.prompt_room - len(prompt)
        # weight 0 does not hide a NaN that the last row has left where this one has padding
        for kept in (*self.keys, *self.values):
            kept[row].zero_()

    def full(self, rows: Sequence[int], x: Tensor) -> Tensor:
        """Compute whole rows, and keep their keys and values.

        Args:
            rows: n of them.
            x: int64[n, L], their responses.

        Returns: hidden states float[n, L, D] of the responses.
        """
        lengths = [self._lengths[row] for row in rows]
        longest, at = max(lengths), x.device
        which = torch.tensor(rows, device=at)
        suffix = self._suffix.expand(len(rows), -1, -1)
        prompts = self._prompts[which, self.prompt_room - longest :]
        embeds = torch.cat((prompts, self.model.embed(x), suffix), dim=1)
        positions = torch.arange(self.prompt_room - longest, self.positions, device=at)
        padding = self._padding[which]
        seen = None
        if min(lengths) < longest:
            seen = self._bias(positions[None] >= padding[:, None])
        keys = None
        if self.keys:
            keys = _Written(self, which[:, None], positions[None], whole=True, every=False)
        need = torch.arange(longest, longest + self.gen_length, device=at)
        self.computed += sum(lengths) + len(rows) * (self.gen_length + len(self._suffix))
        return self.model.hidden(
            embeds,
            seen,
            positions=positions[None] - padding[:, None],
            need=need,
            ends=(embeds.shape[1],),
            keys=keys,
        )

    def window(self, x: Tensor, at: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Compute a window of some rows, and put its keys and values in place.

        Args:
            x: int64[n, W], tokens of the window.
            at: int64[n, W], their positions in the response.
            rows: n of them. None: all, free ones too.

        Returns: hidden states float[n, W, D].
        """
        positions = self.prompt_room + at
        which = torch.arange(self.num_rows, device=x.device)
        padding = self._padding
        if rows is not None:
            which = torch.tensor(rows, device=x.device)
            padding = padding[which]
        every = torch.arange(self.positions, device=x.device)
        return self.model.hidden(
            self.model.embed(x),
            self._bias(every[None] >= padding[:, None]),
            positions=positions - padding[:, None],
            ends=(self.positions,),
            keys=_Written(self, which[:, None], positions, whole=False, every=rows is None),
        )

    def _bias(self, seen: Tensor) -> Tensor:
        """bool[n, S] -> what is added to the scores, float[n, 1, 1, S]."""
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return bias.masked_fill_(~seen, -torch.inf)[:, None, None]
