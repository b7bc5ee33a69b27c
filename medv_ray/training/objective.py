"""The loss of a micro-batch as one module, so that an engine may shard the weights below it.

Ranks that share weights gather them module by module, in the same order; so whatever the rows hold,
a call runs projector, embedding, each layer and head once (layers once a row where attention is
cut), and the vision tower once where it learns.

Shapes: B rows, P token ids of a row, S positions of a row with image tokens, T tiles of an image,
N patches of a tile, C width of the tower, D width of the language tower, M masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from medv_ray.diffusion.loss import row_losses, token_losses
from medv_ray.diffusion.noise import draw, forward_noise
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model.denoise import fill_slots, splice_ends
from medv_ray.model.medv import Medv


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a row: its tiles, or what a frozen tower made of them."""

    size_wh: tuple[int, int]
    tiles: Tensor | None = None
    """uint8[T, H, W, 3], for a tower that learns."""
    features: Tensor | None = None
    """float[T, N, C], of a frozen tower."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of a micro-batch."""

    ids: Tensor
    """int64[P], IMAGE_SLOT at each image."""
    labels: Tensor
    """int64[P], IGNORE where the token is no target."""
    ends: tuple[int, ...]
    """Of the segments of attention, as indices in `ids`; one where all see all."""
    pictures: tuple[Picture, ...]
    seed: int
    """Of the noise level and the mask."""
    t: float | None = None
    """The noise level, where it is not drawn."""


class Prompt(NamedTuple):
    """What stands in front of a response."""

    embeds: Tensor
    """float[P, D], image tokens in their place."""
    ends: tuple[int, ...]
    """Of the segments of attention that end within it."""


class Response(NamedTuple):
    """A response as it stands, and the positions whose logits are wanted."""

    prompt: Prompt
    x: Tensor
    """int64[L], what follows the prompt."""
    need: Tensor
    """int64[N], ascending."""


Way = Literal["loss", "prompts", "logits"]
"""What a forward pass makes: losses of Samples, Prompts of Samples, or logits of Responses."""


class Padding(NamedTuple):
    """The reference's way of making rows of a micro-batch equally long."""

    token_id: int
    """End of text, which is a target there."""
    max_length: int
    """Positions of a row, image tokens included; what would go beyond is cut off."""


class Outcome(NamedTuple):
    """What a forward pass says of its rows."""

    loss: Tensor
    """float32[], mean over the rows."""
    by_row: Tensor
    """float32[B], without gradient."""
    t: Tensor
    """float32[B], noise levels."""
    num_tokens: int
    """Positions that the language tower worked on, image tokens included."""
    num_masked: int


class Objective(nn.Module):
    """Noise, splice, forward pass and 1/p-weighted loss. Source: LLaDA-V, LLaDAModelLM.forward.

    Rows of a micro-batch do not see each other: what pads a shorter one is hidden from attention
    and is no target. So the batch's loss does not depend on how it is cut into micro-batches. With
    `padding` they are padded as the reference pads them (`pad_with_targets`), and all is attended
    to; for micro-batches of one row both are the same.
    """

    def __init__(self, model: Medv, mask_id: int, padding: Padding | None = None) -> None:
        super().__init__()
        self.model = model
        self.mask_id = mask_id
        self.padding = padding

    def forward(self, rows: Sequence[Any], way: Way = "loss") -> Any:
        """All of it goes through this call, so that an engine knows where a pass begins."""
        if way == "loss":
            return self.losses(rows)
        return self.prompts(rows) if way == "prompts" else self.logits(rows)

    @property
    def _padding(self) -> Padding | None:
        """None in validation: its loss does not depend on which rows stand together."""
        return self.padding if self.training else None

    def losses(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """The fields of an `Outcome`, of which the first three are float32[], float32[B] and
        float32[B]; a plain tuple, which DeepSpeed's hooks look into."""
        images, tie = self._images(samples)
        if self._padding is not None:
            samples = pad_with_targets(samples, images, self._padding)
        labels = [_spread(s.ids, s.labels, found) for s, found in zip(samples, images, strict=True)]
        noise = [self._noise(sample, label) for sample, label in zip(samples, labels, strict=True)]
        rows = self._embed(samples, images, [masked for masked, _, _ in noise])
        ends = [splice_ends(s.ids, f, s.ends) for s, f in zip(samples, images, strict=True)]
        states = [
            row[masked] for row, (masked, _, _) in zip(self._hidden(rows, ends), noise, strict=True)
        ]
        counts = torch.tensor([len(state) for state in states])
        row_of = torch.repeat_interleave(torch.arange(len(rows)), counts)
        targets = torch.cat([label[m] for label, (m, _, _) in zip(labels, noise, strict=True)])
        weights = torch.cat([p.expand(int(n)) for (_, p, _), n in zip(noise, counts, strict=True)])
        # ids, labels and masks stay on the host, where rows are cut and put together
        row_of, targets, weights = (t.to(self.model.device) for t in (row_of, targets, weights))
        head, size = self.model.lm_head, self.model.logit_size
        losses = token_losses(torch.cat(states), head, targets, size) / weights
        even = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE)
        by_row = row_losses(losses, row_of, even)
        return (
            by_row.mean() + tie,
            by_row.detach(),
            torch.cat([t for _, _, t in noise]),
            sum(map(len, rows)),
            int(counts.sum()),
        )

    def prompts(self, samples: Sequence[Sample]) -> list[Prompt]:
        """Prompts of samples that end where a response begins."""
        images, _ = self._images(samples)
        wide = [_spread(s.ids, s.ids, found) for s, found in zip(samples, images, strict=True)]
        rows = self._embed(samples, images, [torch.zeros_like(ids).bool() for ids in wide])
        return [
            Prompt(row, splice_ends(s.ids, found, s.ends))
            for s, row, found in zip(samples, rows, images, strict=True)
        ]

    def logits(self, responses: Sequence[Response]) -> Tensor:
        """float[N, V] of the needed positions of all responses, row after row."""
        device = self.model.device
        x = torch.cat([response.x for response in responses]).to(device)
        texts = torch.split(self.model.embed(x), [len(response.x) for response in responses])
        rows = [torch.cat((r.prompt.embeds, t)) for r, t in zip(responses, texts, strict=True)]
        ends = [(*r.prompt.ends, len(row)) for r, row in zip(responses, rows, strict=True)]
        states = [
            state[r.need.to(device) + len(r.prompt.embeds)]
            for r, state in zip(responses, self._hidden(rows, ends), strict=True)
        ]
        logits: Tensor = self.model.lm_head(torch.cat(states))
        return logits[:, : self.model.logit_size]

    def _noise(self, sample: Sample, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """bool[S] masked, float[1] p_mask and float[1] t of one row, from its own generator."""
        t, u = draw(1, len(labels), torch.Generator().manual_seed(sample.seed))
        if sample.t is not None:
            t = torch.tensor([sample.t])
        noise = forward_noise(labels[None], t, u)
        return noise.masked[0], noise.p_mask, t

    def _images(self, samples: Sequence[Sample]) -> tuple[list[list[Tensor]], Tensor | float]:
        """Image tokens float[I, D] of each picture of each row; and 0, which ties an unused blank
        picture to the loss: its gradient is awaited on every rank."""
        if self.model.config.vision is None:
            return [[] for _ in samples], 0.0
        pictures = [picture for sample in samples for picture in sample.pictures]
        used = pictures or [self._blank()]
        made = [picture.features for picture in used if picture.features is not None]
        if made:
            features = torch.cat(made).to(self.model.device, self.model.dtype)
        else:
            tiles = [picture.tiles for picture in used if picture.tiles is not None]
            features = self.model.tower_features(torch.cat(tiles))
        parts = torch.split(self.model.project(features), [_num_tiles(one) for one in used])
        merged = [self.model.merge(p, used[i].size_wh) for i, p in enumerate(parts)]
        found = iter(merged)
        tokens = [[next(found) for _ in sample.pictures] for sample in samples]
        return tokens, 0.0 if pictures else merged[0].sum() * 0

    def _blank(self) -> Picture:
        """A picture of one tile, in the form in which the tower's learning needs it."""
        config = self.model.config.vision
        assert config is not None
        side = config.image_size
        if hasattr(self.model.model, "vision_tower"):  # else it is frozen, and not here
            return Picture((side, side), torch.zeros(1, side, side, 3, dtype=torch.uint8))
        return Picture((side, side), None, torch.zeros(1, config.side**2, config.hidden_size))

    def _embed(
        self, samples: Sequence[Sample], images: list[list[Tensor]], masked: list[Tensor]
    ) -> list[Tensor]:
        """float[S, D] of each row, the mask token at its masked positions."""
        texts = []
        for sample, found, hidden in zip(samples, images, masked, strict=True):
            ids = _spread(sample.ids, sample.ids, found)
            texts.append(torch.where(hidden, self.mask_id, ids)[ids != IGNORE])
        ids = torch.cat(texts).to(self.model.device)
        embeds = torch.split(self.model.embed(ids), [len(text) for text in texts])
        return [
            fill_slots(s.ids, text, f) for s, text, f in zip(samples, embeds, images, strict=True)
        ]

    def _hidden(self, rows: list[Tensor], ends: list[tuple[int, ...]]) -> list[Tensor]:
        """float[S, D] of each row after the final norm."""
        # not by the rows at hand alone: under ZeRO-3 each rank must run the layers equally often
        if self.model.config.attention != "full" or any(len(cuts) > 1 for cuts in ends):
            return [
                self.model.hidden(row[None], ends=cuts)[0]
                for row, cuts in zip(rows, ends, strict=True)
            ]
        lengths = torch.tensor([len(row) for row in rows])
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        seen = torch.arange(batch.shape[1]) < lengths[:, None]
        # the reference attends to the zeros that even out rows of fewer image tokens
        all_seen = self._padding is not None or bool(seen.all())
        hidden = self.model.hidden(batch, None if all_seen else seen.to(batch.device))
        return [state[:length] for state, length in zip(hidden, lengths.tolist(), strict=True)]


def pad_with_targets(
    samples: Sequence[Sample], images: Sequence[Sequence[Tensor]], padding: Padding
) -> list[Sample]:
    """Rows with end of text behind them, as targets, up to the longest row of token ids.

    Args:
        images: image tokens float[I, D] of each picture of each row, which count for the limit.

    Source: LLaDA-V, train.py, the collator; LLaDA, GUIDELINES.md, pads so too. Both cut rows at
    their limit after the image tokens are in; here that meets the padding alone, as longer rows
    are refused before the first step.
    """
    longest, rows = max(len(sample.ids) for sample in samples), []
    for sample, found in zip(samples, images, strict=True):
        length = len(sample.ids) + sum(len(image) - 1 for image in found)
        fill = max(0, min(longest - len(sample.ids), padding.max_length - length))
        tail = sample.ids.new_full((fill,), padding.token_id)
        ids, labels = torch.cat([sample.ids, tail]), torch.cat([sample.labels, tail])
        rows.append(replace(sample, ids=ids, labels=labels, ends=(len(ids),)))
    return rows


def _spread(ids: Tensor, values: Tensor, images: Sequence[Tensor]) -> Tensor:
    """int64[P] -> int64[S]: IGNORE at every position of an image."""
    gaps = [values.new_full((len(image),), IGNORE) for image in images]
    return fill_slots(ids, values[ids != IMAGE_SLOT], gaps)


def _num_tiles(picture: Picture) -> int:
    made = picture.tiles if picture.features is None else picture.features
    assert made is not None
    return len(made)
