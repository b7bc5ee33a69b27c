"""Pictures decoded in this process: a child for every engine takes longer than most tests."""

from __future__ import annotations

from medv_ray.canvases import TileSettings
from medv_ray.data.images import Prepared, inspect, prepare
from medv_ray.settings import ImageSettings


class Decoder:
    """As `decode_child.Decoder`, which tests/unit/data/test_decode_child.py holds to the same."""

    def __init__(self, image: ImageSettings, tiles: TileSettings | None) -> None:
        self._image, self._tiles = image, tiles

    def prepare(self, data: bytes) -> Prepared:
        if self._tiles is None:
            return inspect(data, self._image)
        return prepare(data, self._image, self._tiles)

    def close(self) -> None:
        pass
