"""From vision features to image tokens: the projector, and how tiles become one sequence.

Shapes: T tiles (the whole image, then its tiles row by row), N = side * side patches of a tile,
D language width, I image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medv_ray.canvases import best_canvas as best_canvas


def build_projector(vision_size: int, hidden_size: int) -> nn.Sequential:
    """`mlp2x_gelu`: linear, exact GELU, linear; published as `model.mm_projector.0` and `.2`."""
    first, second = nn.Linear(vision_size, hidden_size), nn.Linear(hidden_size, hidden_size)
    return nn.Sequential(first, nn.GELU(), second)


def merge_tiles(
    features: Tensor,
    newline: Tensor | None,
    size_wh: tuple[int, int],
    canvases: Sequence[tuple[int, int]],
    max_tiles: int | None,
) -> Tensor:
    """Image tokens of one image, in the order in which the language tower reads them.

    Args:
        features: float[T, N, D], projected.
        newline: float[D], ends every row of the tile map (`spatial_unpad`). None: no map, the
            tiles follow each other (`flat`).
        size_wh: the image's own size in pixels.
        canvases: sizes (width, height) that the tiling chose from.
        max_tiles: see `ModelConfig.max_tiles`.

    Returns: float[I, D]. I is T * N for `flat`; N + 1 for one tile; else N for the whole image and
    rows * (columns + 1) for the map of what is not padding.

    Raises ValueError when T is not one more than the tiles of the canvas.
    """
    if newline is None:
        return features.flatten(0, 1)
    whole, tiles = features[0], features[1:]
    if not len(tiles):
        return torch.cat((whole, newline[None]))
    tile_map = _shrink(
        _unpad(_map(tiles, best_canvas(size_wh, canvases)), size_wh), tiles, max_tiles
    )
    lines = torch.cat((tile_map, newline.expand(len(tile_map), 1, -1)), dim=1)
    return torch.cat((whole, lines.flatten(0, 1)))


def _map(tiles: Tensor, canvas: tuple[int, int]) -> Tensor:
    """float[T, N, D], row by row, -> float[rows * side, columns * side, D]."""
    # all tiles are squares of one size, so the canvas' aspect ratio and T give rows and columns
    columns = math.isqrt(len(tiles) * canvas[0] // canvas[1])
    rows = len(tiles) // max(columns, 1)
    if rows * columns != len(tiles) or rows * canvas[0] != columns * canvas[1]:
        raise ValueError(f"{len(tiles)} tiles do not cover a canvas of {canvas} pixels")
    side = math.isqrt(tiles.shape[1])
    grid = tiles.reshape(rows, columns, side, side, -1).transpose(1, 2)
    return grid.reshape(rows * side, columns * side, -1)


def _unpad(tile_map: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Cut the bands beside the image: float[H, W, D] -> float[H' <= H, W' <= W, D]."""
    rows, columns = tile_map.shape[:2]
    width, height = size_wh
    if width / height > columns / rows:
        band = (rows - int(height * (columns / width))) // 2
        return tile_map[band : rows - band]
    band = (columns - int(width * (rows / height))) // 2
    return tile_map[:, band : columns - band]


def _shrink(tile_map: Tensor, tiles: Tensor, max_tiles: int | None) -> Tensor:
    """Bilinear, to about the tokens of `max_tiles` tiles, where the map is a fifth larger."""
    rows, columns = tile_map.shape[:2]
    times = math.sqrt(rows * columns / (max_tiles * tiles.shape[1])) if max_tiles else 0.0
    if times <= 1.1:
        return tile_map
    size = (int(rows // times), int(columns // times))
    return F.interpolate(tile_map.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
