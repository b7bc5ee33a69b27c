"""Image features by digest: one decode and one tower run per distinct image while it is kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from medv_ray.data.decoders import Decoders, Key, key_of
from medv_ray.data.images import Prepared, Refused
from medv_ray.engine.request import Counters
from medv_ray.errors import DataError
from medv_ray.file_parts import Picture
from medv_ray.model.config import no_vision
from medv_ray.model.medv import Medv
from medv_ray.settings import ImageSettings


@dataclass(frozen=True)
class Features:
    """One image as the language tower sees it."""

    tokens: Tensor  # float[I, D]
    warnings: tuple[str, ...]
    sha256: str
    size_wh: tuple[int, int]
    """Of the upright picture, in pixels."""


class ImageStore:
    """Features by what they are of; the least recently used go beyond `cache_bytes`.

    Failures are kept too, so that a broken image with many questions is decoded once.
    """

    def __init__(
        self, model: Medv, image: ImageSettings, cache_bytes: int, counters: Counters
    ) -> None:
        self._model = model
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._kept: OrderedDict[Key, Features | DataError] = OrderedDict()
        self._counters = counters
        self.tiles = model.config.tiling(image.aspect) if model.config.vision is not None else None
        """How a picture is cut that stands alone; None where the model sees none."""
        self._decoders = None if self.tiles is None else Decoders(image, self.tiles)

    def decode(self, data: bytes | Picture, several: bool) -> bytes | Picture | Prepared:
        """An image ready for the vision tower, or `data` again where its features are kept.

        Any thread may call it. Raises DataError E12xx, CheckpointError E1410.
        """
        if key_of(data, several) in self._kept:
            return data
        self._counters.decodes += 1
        return self._decoded(data, several)

    def get(self, data: bytes | Picture | Prepared | Refused, several: bool) -> Features:
        """Features of an image; `several`: it is one of a group. Raises DataError E12xx."""
        key = key_of(data, several)
        found = self._kept.get(key)
        if found is None:
            found = self._make(data, several)
            self._keep(key, found)
        else:
            self._kept.move_to_end(key)
            self._counters.image_hits += 1
        if isinstance(found, DataError):
            raise found
        return found

    def _make(
        self, data: bytes | Picture | Prepared | Refused, several: bool
    ) -> Features | DataError:
        prepared = data
        if isinstance(prepared, Refused):
            return prepared.error
        if not isinstance(prepared, Prepared):
            try:
                self._counters.decodes += 1
                prepared = self._decoded(prepared, several)
            except DataError as error:
                return error
        self._counters.tower_runs += 1
        with torch.inference_mode():
            tokens = self._model.encode_image(torch.from_numpy(prepared.tiles), prepared.size_wh)
        return Features(tokens, prepared.warnings, prepared.sha256, prepared.size_wh)

    def _decoded(self, data: bytes | Picture, several: bool) -> Prepared:
        if self._decoders is None:
            raise no_vision()
        return self._decoders.prepare(data, several)

    def _keep(self, key: Key, made: Features | DataError) -> None:
        self._kept[key] = made
        self._used_bytes += _size(made)
        while self._used_bytes > self._cache_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._used_bytes -= _size(dropped)

    def close(self) -> None:
        """End the decoder's child processes."""
        if self._decoders is not None:
            self._decoders.close()


def _size(made: Features | DataError) -> int:
    """Bytes that a kept entry stands for."""
    return 1024 if isinstance(made, DataError) else made.tokens.nbytes + 1024
