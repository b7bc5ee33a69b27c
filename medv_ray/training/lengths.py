"""How many tokens an image takes in a row, from its header."""

from __future__ import annotations

from functools import lru_cache

import torch

from medv_ray.canvases import TileSettings, best_canvas
from medv_ray.data.dataset import Dataset
from medv_ray.data.decode_child import Decoder
from medv_ray.model.config import ModelConfig
from medv_ray.model.projector import merge_tiles
from medv_ray.training.stages import StageSettings


def tile_settings(config: ModelConfig, stage: StageSettings, several: bool) -> TileSettings:
    """How a picture is cut; one of `several` of a row is padded to a square, as the reference does.

    Raises CheckpointError E1410 without a vision tower.
    """
    return config.tiling("pad" if several else stage.aspect)


class ImageTokens:
    """Counts the image tokens of a dataset's pictures, and finds those whose header is refused.

    Each picture is read once, and nothing is decoded.
    """

    def __init__(self, dataset: Dataset, stage: StageSettings, config: ModelConfig) -> None:
        """`config` is the model's as the stage sees it."""
        self._dataset, self._stage, self._config = dataset, stage, config
        self._headers = Decoder(stage.image, None)
        self._sizes: dict[str, tuple[int, int]] = {}

    def __call__(self, sha256: str, several: bool) -> int:
        """Raises CheckpointError E1410 without a vision tower, DataError E1114 for a picture that
        changed and E1112, E1201 .. E1210 for one that is refused."""
        cut = tile_settings(self._config, self._stage, several)
        size_wh = self._sizes.get(sha256)
        if size_wh is None:
            prepared = self._headers.prepare(self._dataset.image(sha256))
            size_wh = self._sizes[sha256] = prepared.size_wh
        if cut.aspect != "anyres_max":
            size_wh = (cut.tile, cut.tile)  # whatever it is, one tile
        return num_image_tokens(self._config, cut, size_wh)

    def close(self) -> None:
        """End the decoder's child process."""
        self._headers.close()


@lru_cache(maxsize=4096)
def num_image_tokens(config: ModelConfig, cut: TileSettings, size_wh: tuple[int, int]) -> int:
    """Of a picture of this size: what `merge_tiles` makes of empty features."""
    assert config.vision is not None
    tiles = 1
    if cut.aspect == "anyres_max":
        width, height = best_canvas(size_wh, cut.grid)
        tiles += width * height // cut.tile**2
    features = torch.empty(tiles, config.vision.side**2, 1)
    newline = torch.empty(1) if "unpad" in config.mm_patch_merge_type else None
    canvases, max_tiles = config.image_grid_pinpoints, config.max_tiles
    return len(merge_tiles(features, newline, size_wh, canvases, max_tiles))
