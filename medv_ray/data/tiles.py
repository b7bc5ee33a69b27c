"""From one RGB picture to the square uint8 tiles that the vision tower sees.

Source: LLaDA-V mm_utils.py (process_images, select_best_resolution, process_anyres_image). Values
stay uint8: the tower's scaling (x / 255 - 0.5) / 0.5 is exact from there. Shapes: T tiles,
H = W = tile side in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.canvases import TileSettings, best_canvas

PAD_GREY = 127
"""int(0.5 * 255), the vision tower's mean colour."""


def cut(picture: Image.Image, settings: TileSettings) -> NDArray[np.uint8]:
    """uint8[T, H, W, 3] of an RGB picture.

    `square` squashes it to one tile, `pad` centres it on a grey square first, `anyres_max` gives
    the squashed whole followed by the tiles of the best canvas, row by row.
    """
    side = (settings.tile, settings.tile)
    if settings.aspect == "pad":
        picture = pad_to_square(picture)
    tiles = [picture.resize(side)]  # Pillow's default is bicubic; a resize to the same size copies
    if settings.aspect == "anyres_max":
        canvas = fit_canvas(picture, best_canvas(picture.size, settings.grid))
        tiles += [
            canvas.crop((x, y, x + settings.tile, y + settings.tile))
            for y in range(0, canvas.height, settings.tile)
            for x in range(0, canvas.width, settings.tile)
        ]
    return np.stack([np.asarray(tile) for tile in tiles])


def pad_to_square(picture: Image.Image) -> Image.Image:
    """The picture centred on a square of its longer side."""
    width, height = picture.size
    if width == height:
        return picture
    longer = max(width, height)
    canvas = Image.new("RGB", (longer, longer), (PAD_GREY, PAD_GREY, PAD_GREY))
    canvas.paste(picture, ((longer - width) // 2, (longer - height) // 2))
    return canvas


def fit_canvas(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled to fit, centred on a black canvas of `size`."""
    scale_w, scale_h = size[0] / picture.width, size[1] / picture.height
    if scale_w < scale_h:
        fitted = size[0], min(math.ceil(picture.height * scale_w), size[1])
    else:
        fitted = min(math.ceil(picture.width * scale_h), size[0]), size[1]
    canvas = Image.new("RGB", size, (0, 0, 0))
    canvas.paste(picture.resize(fitted), ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return canvas
