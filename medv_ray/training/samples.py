"""The sample at each position of a run: its row encoded, its pictures ready for the objective."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
from medv_ray.training.prefetch import Prefetch
from medv_ray.training.rows import RowEncoder, naming_row
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
        device_cache_bytes: int = 0,
    ) -> None:
        """A vision tower that does not learn is taken out of `model`."""
        self._dataset, self._stage = dataset, stage
        self._order = Order(len(dataset), stage.seed)
        self._encode = RowEncoder(tokenizer, stage)
        self._pictures = Pictures(dataset, stage, model, cache_bytes, device_cache_bytes)
        self._ahead: Prefetch[Sample] | None = None

    def prefetch(self, positions: Iterable[int], rows: int) -> None:
        """Let a thread make the samples of these positions, of which at most `rows` wait; they must
        be asked for in this order."""
        if rows:
            self._ahead = Prefetch(self._make, positions, rows)

    def __call__(self, position: int) -> Sample:
        """Raises DataError, with the dataset's row, for a row or picture that cannot be used."""
        sample = self._make(position) if self._ahead is None else self._ahead(position)
        hold(sample.pictures)
        return sample

    def _make(self, position: int) -> Sample:
        number = self.row(position)
        with naming_row(self._dataset, number):
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

    @property
    def tower(self) -> FrozenTower | None:
        """The vision tower that was taken out of the model."""
        return self._pictures.tower

    def row(self, position: int) -> int:
        """The dataset's row at a position of the run."""
        return self._order[position]

    def close(self) -> None:
        """End the thread and the decoder's child processes."""
        if self._ahead is not None:
            self._ahead.close()
        self._pictures.close()


class Pictures:
    """Pictures by digest: the first ones stay on the GPU while there is room, of the others the
    least recently used go beyond `cache_bytes` of host memory."""

    def __init__(
        self,
        dataset: Dataset,
        stage: StageSettings,
        model: Medv,
        cache_bytes: int,
        device_cache_bytes: int = 0,
        tower: FrozenTower | None = None,
    ) -> None:
        """`tower`: what another one has taken out of the model before."""
        self._dataset, self._stage, self._cache_bytes = dataset, stage, cache_bytes
        self._config = model.config
        self.tower = tower
        if tower is None and "vision" not in stage.trainable and model.config.vision is not None:
            self.tower = FrozenTower(model)
        on_gpu = self.tower is not None and model.device.type == "cuda"
        self._device_room = device_cache_bytes if on_gpu else 0
        self._decoders: dict[bool, Decoder] = {}
        self._on_device: dict[tuple[str, bool], Picture] = {}
        self._kept: OrderedDict[tuple[str, bool], Picture] = OrderedDict()
        self._used_bytes = 0
        self.tower_runs = 0

    def get(self, digest: str, several: bool) -> Picture:
        """The picture, cut as one of `several` of a row or as an only one; features of a frozen
        tower on its device."""
        key = (digest, several)
        if key in self._on_device:
            return self._on_device[key]
        found = self._kept.get(key)
        if found is None:
            found = self._make(digest, several)
            if _size(found) <= self._device_room:
                self._device_room -= _size(found)
                self._on_device[key] = found
                return found
            kept = found
            if self.tower is not None and found.features is not None:
                kept = replace(found, features=self.tower.to_host(found.features))
            self._kept[key] = kept
            self._used_bytes += _size(found)
            while self._used_bytes > self._cache_bytes and len(self._kept) > 1:
                self._used_bytes -= _size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        if self.tower is None or found.features is None:
            return found
        return replace(found, features=self.tower.to_device(found.features))

    def _make(self, digest: str, several: bool) -> Picture:
        if several not in self._decoders:
            cut = tile_settings(self._config, self._stage, several)
            self._decoders[several] = Decoder(self._stage.image, cut)
        prepared = self._decoders[several].prepare(self._dataset.image(digest))
        tiles = torch.from_numpy(prepared.tiles)
        if self.tower is None:
            return Picture(prepared.size_wh, tiles)
        self.tower_runs += 1
        return Picture(prepared.size_wh, None, self.tower(tiles))

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()


def hold(pictures: Iterable[Picture]) -> None:
    """Features that were made on another stream: their memory is not to be used anew before this
    one is done."""
    for picture in pictures:
        if picture.features is not None and picture.features.is_cuda:
            picture.features.record_stream(torch.cuda.current_stream(picture.features.device))


class FrozenTower:
    """A vision tower that does not learn: taken out of the model, so that it is not sharded.

    On a GPU it works on a stream of its own, beside the training step, and waits for nothing else.
    """

    def __init__(self, model: Medv) -> None:
        self._tower = model.model.get_submodule("vision_tower.vision_tower.vision_model")
        del model.model.vision_tower
        self._device, self._dtype = model.device, model.dtype
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # its weights are there
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _done(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    @torch.no_grad()
    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8[T, H, W, 3] -> float[T, N, C] on the model's device."""
        with self._beside():
            parts = torch.split(tiles.to(self._device), TILES_PER_PASS)
            made = torch.cat([self._tower(scale_pixels(p).to(self._dtype)) for p in parts])
        self._done()
        return made

    def to_device(self, features: Tensor) -> Tensor:
        """float[T, N, C], moved where it is not there."""
        if features.device == self._device:
            return features
        with self._beside():
            moved = features.to(self._device)
        self._done()
        return moved

    def to_host(self, features: Tensor) -> Tensor:
        """float[T, N, C] in host memory. The training step is not waited for."""
        with self._beside():
            moved = features.cpu()
        self._done()
        return moved


def _size(picture: Picture) -> int:
    held = picture.tiles if picture.features is None else picture.features
    return 1024 + (0 if held is None else held.nbytes)
