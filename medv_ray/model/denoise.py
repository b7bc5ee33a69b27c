"""The exact denoiser: hidden states of response positions, prompt and image already bound.

Shapes: B rows, L response positions, P prompt positions (image tokens included), S all positions
of a row, D width, N needed positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from medv_ray.markers import IMAGE_SLOT
from medv_ray.model.keys import KeyValues
from medv_ray.model.medv import Medv


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with placeholders, and the images that fill them in order."""

    ids: Tensor
    """int64[P], IMAGE_SLOT at each image."""
    images: tuple[Tensor, ...] = ()
    """float[I, D] each, from `Medv.encode_image`."""
    ends: tuple[int, ...] = ()
    """Where attention is cut within the prompt, as positions in `ids`: see `LanguageTower`."""


class Pass(NamedTuple):
    """One row's share of a forward pass."""

    embeds: Tensor
    """float[W, D], the whole row, or a window of it where `keys` know the rest."""
    positions: Tensor
    """int64[N], those asked for, counted from the window's start."""
    ends: tuple[int, ...]
    """Of the segments of the whole row."""
    keys: KeyValues | None = None

    @torch.no_grad()
    def hidden(self, model: Medv) -> Tensor:
        """float[N, D], the last hidden states of what is asked for."""
        embeds = self.embeds[None]
        return model.hidden(embeds, need=self.positions, ends=self.ends, keys=self.keys)[0]


def splice(model: Medv, ids: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Embeddings of `ids`, image tokens in place of each IMAGE_SLOT: int64[P] -> float[P', D].

    Raises ValueError when placeholders and images differ in number.
    """
    ids = ids.to(model.device)
    return fill_slots(ids, model.embed(ids[ids != IMAGE_SLOT]), images)


def fill_slots(ids: Tensor, text: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Something of each position, `text` where no image is: [P', ...].

    Args:
        ids: int64[P], IMAGE_SLOT at each image.
        text: [P - images, ...].
        images: [I, ...] each, what comes in place of a placeholder.

    Raises ValueError when placeholders and images differ in number.
    """
    slots = (ids == IMAGE_SLOT).nonzero().flatten().tolist()
    if len(slots) != len(images):
        raise ValueError(f"{len(slots)} image slots in the prompt and {len(images)} images")
    first, *others = torch.tensor_split(text, [slot - i for i, slot in enumerate(slots)])
    pieces = [first]
    for image, other in zip(images, others, strict=True):
        pieces += [image.to(text), other]
    return torch.cat(pieces)


def splice_ends(ids: Tensor, images: Sequence[Tensor], ends: Sequence[int]) -> tuple[int, ...]:
    """Positions in `ids`, int64[P], as positions in the embeddings, where a placeholder is a whole
    image."""
    slots = (ids == IMAGE_SLOT).nonzero().flatten().tolist()
    more = [(slot, len(image) - 1) for slot, image in zip(slots, images, strict=True)]
    return tuple(end + sum(grown for slot, grown in more if slot < end) for end in ends)


class FullRecompute:
    """Prompt, response and suffix go through the tower at every call.

    A row's result does not depend on other rows. On CPU each row is computed alone, which makes it
    so to the last bit and costs nothing; elsewhere rows are padded on the right, padding is hidden
    from attention, and they run together, unless their prompts cut attention.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Medv,
        prompts: Sequence[Prompt | Tensor],
        suffix_ids: Sequence[int] = (),
        together: bool | None = None,
    ) -> None:
        """
        Args:
            model: not changed.
            prompts: one per row, a Prompt or its embeddings float[P, D].
            suffix_ids: given tokens after the response.
            together: run rows in one padded batch. None: only where the model is not on CPU.
        """
        self.model = model
        self.computed = 0
        """Positions that have gone through the language tower."""
        self.together = model.device.type != "cpu" if together is None else together
        self._prompts = [
            splice(model, prompt.ids, prompt.images)
            if isinstance(prompt, Prompt)
            else prompt.to(model.device, model.dtype)
            for prompt in prompts
        ]
        self._ends = [
            splice_ends(p.ids, p.images, p.ends) if isinstance(p, Prompt) else () for p in prompts
        ]
        self._suffix = model.embed(torch.tensor(suffix_ids, dtype=torch.int64, device=model.device))

    @property
    def head(self) -> Tensor:
        """float[V, D]."""
        return self.model.head

    def prompt_length(self, b: int) -> int:
        """Positions before the response of row b."""
        return len(self._prompts[b])

    def sequence_length(self, b: int, gen_length: int) -> int:
        """All positions of row b: prompt, `gen_length` response positions, suffix."""
        return len(self._prompts[b]) + gen_length + len(self._suffix)

    def kept_bytes(self, gen_length: int) -> int:
        """Bytes of keys and values that are kept between calls, at most."""
        return 0

    @torch.no_grad()
    def unconditional(self, mask_id: int) -> Self:
        """The same with the mask token at every prompt and suffix position, for guidance."""
        mask = self.model.embed(torch.tensor([mask_id], device=self.model.device))  # [1, D]
        blind = copy.copy(self)
        blind._prompts = [mask.expand_as(prompt) for prompt in self._prompts]
        blind._suffix = mask.expand_as(self._suffix)
        return blind

    def __call__(self, x: Tensor, need: Tensor) -> Tensor:
        """Last hidden states of the needed positions.

        Args:
            x: int64[B, L], response tokens now.
            need: bool[B, L].

        Returns: float[N, D], row after row, positions ascending. Rows without need cost nothing.
        """
        x, need = x.to(self.model.device), need.to(self.model.device)
        rows = need.any(dim=1).nonzero().flatten().tolist()
        passes = [self.one_pass(b, x[b], need[b].nonzero().flatten()) for b in rows]
        if self.together and len(rows) > 1 and all(len(one.ends) == 1 for one in passes):
            states = _padded(self.model, [one.embeds for one in passes])
            found = [state[one.positions] for state, one in zip(states, passes, strict=True)]
        else:
            found = [one.hidden(self.model) for one in passes]
        return torch.cat([self.head.new_empty((0, self.head.shape[1])), *found])

    def one(self, b: int, x: Tensor, positions: Sequence[int]) -> Tensor:
        """float[N, D] of some ascending positions of row b alone, given int64[L]."""
        at = torch.tensor(positions, dtype=torch.int64, device=self.model.device)
        return self.one_pass(b, x, at).hidden(self.model)

    def one_pass(self, b: int, x: Tensor, positions: Tensor) -> Pass:
        """What has to be computed for int64[N] ascending positions of row b, given int64[L].

        Its positions are counted as done.
        """
        embeds = torch.cat((self._prompts[b], self.model.embed(x), self._suffix))  # [S, D]
        self.computed += len(embeds)
        ends = (*self._ends[b], len(embeds))
        return Pass(embeds, positions + self.prompt_length(b), ends)


def _padded(model: Medv, rows: list[Tensor]) -> Tensor:
    """float[S, D] each -> hidden states float[B, max S, D]; no position sees padding."""
    lengths = torch.tensor([len(row) for row in rows])
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return model.hidden(embeds)
    attention_mask = torch.arange(embeds.shape[1])[None, :] < lengths[:, None]
    return model.hidden(embeds, attention_mask.to(model.device))
