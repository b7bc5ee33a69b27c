"""The sample at each position of a run: its row encoded, its pictures ready for the objective."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medv_ray.data.dataset import Dataset
from medv_ray.data.decode_child import Decoder
from medv_ray.model.medv import TILES_PER_PASS, Medv
from medv_ray.model.vision import scale_pixels
from medv_ray.training.lengths import tile_settings
from medv_ray.training.objective import Picture, Sample
from medv_ray.training.order import Order, noise_seed
from medv_ray.training.rows import RowEncoder, row_told
from medv_ray.training.stages import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Samples:
    """Reads rows of a dataset in the run's order.

    A frozen tower runs once per picture while its features are kept; a tower that learns gets
    tiles. Pictures are decoded in a limited child process, as in scoring.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerFast,
        stage: StageSettings,
        model: Medv,
        cache_bytes: int,
    ) -> None:
        """A vision tower that does not learn is taken out of `model`."""
        self._dataset, self._stage = dataset, stage
        self._order = Order(len(dataset), stage.seed)
        self._encode = RowEncoder(tokenizer, stage)
        self._pictures = Pictures(dataset, stage, model, cache_bytes)

    def __call__(self, position: int) -> Sample:
        """Raises DataError, with the dataset's row, for a row or picture that cannot be used."""
        number = self.row(position)
        with row_told(self._dataset, number):
            example = self._dataset[number]
            row = self._encode(example.conversations, len(example.images), number)
            several = len(example.images) > 1
            pictures = tuple(self._pictures.get(digest, several) for digest in example.images)
        return Sample(
            torch.tensor(row.ids),
            torch.tensor(row.labels),
            row.ends,
            pictures,
            noise_seed(self._stage.seed, position),
        )

    def row(self, position: int) -> int:
        """The dataset's row at a position of the run."""
        return self._order[position]

    def close(self) -> None:
        """End the decoder's child processes."""
        self._pictures.close()


class Pictures:
    """Pictures by digest; the least recently used go beyond `cache_bytes`."""

    def __init__(
        self, dataset: Dataset, stage: StageSettings, model: Medv, cache_bytes: int
    ) -> None:
        self._dataset, self._stage, self._cache_bytes = dataset, stage, cache_bytes
        self._config = model.config
        self._tower: FrozenTower | None = None
        if "vision" not in stage.trainable and model.config.vision is not None:
            self._tower = FrozenTower(model)
        self._decoders: dict[bool, Decoder] = {}
        self._kept: OrderedDict[tuple[str, bool], Picture] = OrderedDict()
        self._used_bytes = 0
        self.tower_runs = 0

    def get(self, digest: str, several: bool) -> Picture:
        """The picture, cut as one of `several` of a row or as an only one."""
        key = (digest, several)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = self._make(digest, several)
            self._used_bytes += _size(found)
            while self._used_bytes > self._cache_bytes and len(self._kept) > 1:
                self._used_bytes -= _size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return found

    def _make(self, digest: str, several: bool) -> Picture:
        if several not in self._decoders:
            cut = tile_settings(self._config, self._stage, several)
            self._decoders[several] = Decoder(self._stage.image, cut)
        prepared = self._decoders[several].prepare(self._dataset.image(digest))
        tiles = torch.from_numpy(prepared.tiles)
        if self._tower is None:
            return Picture(prepared.size_wh, tiles)
        self.tower_runs += 1
        return Picture(prepared.size_wh, None, self._tower(tiles))

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()


class FrozenTower:
    """A vision tower that does not learn: taken out of the model, so that it is not sharded."""

    def __init__(self, model: Medv) -> None:
        self._tower = model.model.get_submodule("vision_tower.vision_tower.vision_model")
        del model.model.vision_tower
        self._device, self._dtype = model.device, model.dtype

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8[T, H, W, 3] -> float[T, N, C] on the host."""
        parts = torch.split(tiles.to(self._device), TILES_PER_PASS)
        return torch.cat([self._tower(scale_pixels(p).to(self._dtype)).cpu() for p in parts])


def _size(picture: Picture) -> int:
    held = picture.tiles if picture.features is None else picture.features
    return 1024 + (0 if held is None else held.nbytes)
