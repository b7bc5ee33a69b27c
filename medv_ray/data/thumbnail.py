"""Small copies of images for pages that a person looks at."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.canvases import TileSettings
from medv_ray.data.decode_child import Decoder
from medv_ray.file_parts import Picture
from medv_ray.settings import ImageSettings


class Thumbnails:
    """Thumbnails as data URIs, `side` pixels at most; decoding happens in the child process."""

    def __init__(self, image: ImageSettings, side: int = 320) -> None:
        self._decoder = Decoder(image, TileSettings("pad", side))

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def make(self, data: bytes | Picture) -> str:
        """Raises DataError E1112, E1201 .. E1212."""
        prepared = self._decoder.prepare(data)
        return data_uri(without_padding(prepared.tiles[0], prepared.size_wh))


def without_padding(tile: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8[h, w, 3] of a padded square uint8[H, H, 3], given the size of the picture in it."""
    side, longer = len(tile), max(size_wh)
    width, height = (max(1, round(side * length / longer)) for length in size_wh)
    left, top = (side - width) // 2, (side - height) // 2
    return tile[top : top + height, left : left + width]


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A JPEG of uint8[H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
