"""A door for many rows at once: slots of one shape, their keys and values in one place.

Rows stand right-aligned, so that the response has the same places in all of them, whatever the
length of the prompt: [padding | prompt | response | suffix]. Positions still count from a row's
first token. What a pass computes has one shape, and it reads nothing from the device, so that a
window can be captured as a CUDA graph.

Shapes: B slots, n rows of a pass, L response positions, W window, P prompt places (room for the
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

    def __init__(self, slots: Slots, rows: Tensor, places: Tensor, whole: bool) -> None:
        self._slots, self._rows, self._places, self._whole = slots, rows, places, whole

    def __len__(self) -> int:
        return self._slots.places

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the pass, float[n, K, W, C], where it computes whole rows; else of all."""
        kept = self._slots.keys[layer], self._slots.values[layer]
        for old, new in zip(kept, (k, v), strict=True):
            old[self._rows, :, self._places] = new.transpose(1, 2)
        return (k, v) if self._whole else kept


class Slots:
    """Rows of one model that are computed side by side, each in a slot of its own.

    A row's numbers depend on the others only by the rounding of wider products.
    """

    def __init__(
        self,
        model: Medv,
        num_slots: int,
        prompt_places: int,
        gen_length: int,
        suffix_ids: Sequence[int] = (),
        keep: bool = False,
    ) -> None:
        """
        Args:
            prompt_places: room for the longest prompt, image tokens included.
            keep: keys and values, for `window`.
        """
        self.model, self.num_slots = model, num_slots
        self.prompt_places, self.gen_length = prompt_places, gen_length
        self.places = prompt_places + gen_length + len(suffix_ids)
        self.computed = 0
        """Positions of rows that have gone through the language tower, padding not counted."""
        language, at = model.config.language, model.head
        self._suffix = model.embed(torch.tensor(suffix_ids, dtype=torch.int64, device=at.device))
        self._prompts = at.new_zeros(num_slots, prompt_places, at.shape[1])
        self._lengths = [0] * num_slots  # of prompts
        self._padding = torch.full((num_slots,), prompt_places, device=at.device)
        shape = (num_slots, language.num_key_value_heads, self.places, language.head_dim)
        kept = range(language.num_hidden_layers if keep else 0)
        self.keys = [at.new_zeros(shape) for _ in kept]
        self.values = [at.new_zeros(shape) for _ in kept]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all slots."""
        return sum(kept.nbytes for kept in (*self.keys, *self.values))

    @staticmethod
    def kept_bytes(model: Medv, places: int) -> int:
        """Bytes of the keys and values of one slot."""
        return kept_bytes(model.config.language, model.dtype, places)

    def enter(self, slot: int, prompt: Tensor) -> None:
        """Put a prompt float[<= P, D] into a slot."""
        self._prompts[slot].zero_()
        self._prompts[slot, self.prompt_places - len(prompt) :] = prompt
        self._lengths[slot] = len(prompt)
        self._padding[slot] = self.prompt_places - len(prompt)
        # weight 0 does not hide a NaN that the last row has left where this one has padding
        for kept in (*self.keys, *self.values):
            kept[slot].zero_()

    def full(self, slots: Sequence[int], x: Tensor) -> Tensor:
        """Compute whole rows, and keep their keys and values.

        Args:
            slots: n of them.
            x: int64[n, L], their responses.

        Returns: hidden states float[n, L, D] of the responses.
        """
        lengths = [self._lengths[slot] for slot in slots]
        longest, at = max(lengths), x.device
        rows = torch.tensor(slots, device=at)
        suffix = self._suffix.expand(len(slots), -1, -1)
        prompts = self._prompts[rows, self.prompt_places - longest :]
        embeds = torch.cat((prompts, self.model.embed(x), suffix), dim=1)
        first = self.prompt_places - longest
        places = torch.arange(first, self.places, device=at)
        padding = self._padding[rows]
        seen = None
        if min(lengths) < longest:
            seen = self._bias(places[None] >= padding[:, None])
        keys = _Written(self, rows[:, None], places[None], True) if self.keys else None
        need = torch.arange(longest, longest + self.gen_length, device=at)
        self.computed += sum(lengths) + len(slots) * (self.gen_length + len(self._suffix))
        return self.model.hidden(
            embeds,
            seen,
            positions=places[None] - padding[:, None],
            need=need,
            ends=(embeds.shape[1],),
            keys=keys,
        )

    def window(self, x: Tensor, at: Tensor) -> Tensor:
        """Compute a window of every slot, empty ones too, and put its keys and values in place.

        Args:
            x: int64[B, W], tokens of the window.
            at: int64[B, W], their positions in the response.

        Returns: hidden states float[B, W, D].
        """
        places = self.prompt_places + at
        rows = torch.arange(self.num_slots, device=x.device)[:, None]
        every = torch.arange(self.places, device=x.device)
        return self.model.hidden(
            self.model.embed(x),
            self._bias(every[None] >= self._padding[:, None]),
            positions=places - self._padding[:, None],
            ends=(self.places,),
            keys=_Written(self, rows, places, False),
        )

    def _bias(self, seen: Tensor) -> Tensor:
        """bool[n, S] -> what is added to the scores, float[n, 1, 1, S]."""
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return bias.masked_fill_(~seen, -torch.inf)[:, None, None]
