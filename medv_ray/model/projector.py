"""From vision features to image tokens: the projector, and how the tiles of one image become one sequence.

Shapes: T tiles (the whole image first, then its tiles row by row), N = side * side patches, D language width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_projector(vision_size: int, hidden_size: int) -> nn.Sequential:
    """`mlp2x_gelu`: linear, exact GELU, linear. Its published names are `model.mm_projector.0` and `.2`."""
    return nn.Sequential(nn.Linear(vision_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))


def merge_tiles(
    features: Tensor,
    newline: Tensor | None,
    size_wh: tuple[int, int],
    grid: tuple[int, int] | None,
    max_tiles: int | None,
) -> Tensor:
    """Image tokens of one image, in the order in which the language tower reads them.

    Args:
        features: float[T, N, D], projected.
        newline: float[D], put after every row of the tile map (`spatial_unpad`), or None (`flat`: tiles in a line).
        size_wh: size in pixels of the image that was tiled.
        grid: (columns, rows) of the tiles; needed for T > 1 with a newline.
        max_tiles: a tile map of more tokens than so many tiles have (by more than a tenth) is shrunk. None: never.

    Returns: float[I, D]. `flat` gives T * N tokens; one tile N + 1; more tiles N and the map of what is not padding.

    Raises ValueError when T is not 1 + columns * rows.
    """
    if newline is None:
        return features.flatten(0, 1)
    whole = features[0]
    if len(features) == 1:
        return torch.cat((whole, newline[None]))
    if grid is None or len(features) != 1 + grid[0] * grid[1]:
        raise ValueError(f"{len(features)} tiles do not make a whole image and a grid of {grid} (columns, rows)")
    side = math.isqrt(whole.shape[0])
    columns, rows = grid
    tiles = features[1:].reshape(rows, columns, side, side, -1)
    tile_map = tiles.transpose(1, 2).reshape(rows * side, columns * side, -1)
    tile_map = _shrink(_unpad(tile_map, size_wh), side, max_tiles)
    lines = torch.cat((tile_map, newline.expand(tile_map.shape[0], 1, -1)), dim=1)
    return torch.cat((whole, lines.flatten(0, 1)))


def _unpad(tile_map: Tensor, size_wh: tuple[int, int]) -> Tensor:
    """Cut the bands that the canvas shows beside the image; float[H, W, D] -> float[H' <= H, W' <= W, D]."""
    rows, columns = tile_map.shape[:2]
    width, height = size_wh
    if width / height > columns / rows:
        band = (rows - int(height * (columns / width))) // 2
        return tile_map[band : rows - band]
    band = (columns - int(width * (rows / height))) // 2
    return tile_map[:, band : columns - band]


def _shrink(tile_map: Tensor, side: int, max_tiles: int | None) -> Tensor:
    """Bilinear reduction to about `max_tiles` tiles' worth of tokens, where there are clearly more."""
    rows, columns = tile_map.shape[:2]
    times = math.sqrt(rows * columns / (max_tiles * side**2)) if max_tiles else 0.0
    if times <= 1.1:
        return tile_map
    size = (int(rows // times), int(columns // times))
    return F.interpolate(tile_map.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
