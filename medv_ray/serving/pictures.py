"""The body of /v1/picture: what a person sees of a picture, and what the model is given of it."""

from __future__ import annotations

from typing import Any

from medv_ray.canvases import TileSettings, best_canvas
from medv_ray.data.grey_values import GreyValues
from medv_ray.data.viewing import Viewed, packed, png_uri
from medv_ray.windows import PRESETS

PICTURE: dict[str, Any] = {
    "type": "object",
    "required": [
        *("width", "height", "frame", "frames", "warnings", "reduced", "picture", "values", "tiles")
    ],
    "properties": {
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "frame": {"type": "integer", "minimum": 1},
        "frames": {"type": "integer", "minimum": 1},
        "warnings": {"type": "array", "items": {"type": "string"}},
        "reduced": {"type": "integer", "minimum": 1},
        "picture": {"type": "string", "description": "PNG as a data: address."},
        "values": {"type": ["object", "null"]},
        "tiles": {"type": "object"},
    },
}
"""JSON schema of the answer."""


def picture_body(viewed: Viewed, tiles: TileSettings) -> dict[str, Any]:
    """The answer."""
    width, height = viewed.size_wh
    side = viewed.tiles.shape[1]
    columns, rows = 0, 0
    if len(viewed.tiles) > 1:
        canvas = best_canvas(viewed.size_wh, tiles.grid)
        columns, rows = canvas[0] // side, canvas[1] // side
    return {
        "width": width,
        "height": height,
        "frame": viewed.frame,
        "frames": viewed.frames,
        "warnings": list(viewed.warnings),
        "reduced": viewed.reduced,
        "picture": png_uri(viewed.picture),
        "values": None if viewed.values is None else _values(viewed.values),
        "tiles": {
            "side": side,
            "columns": columns,
            "rows": rows,
            "pictures": [png_uri(tile) for tile in viewed.tiles],
        },
    }


def _values(values: GreyValues) -> dict[str, Any]:
    rows, columns = values.numbers.shape
    return {
        "columns": columns,
        "rows": rows,
        "data": packed(values.numbers),
        "overlay": None if values.overlay is None else packed(values.overlay),
        "low": values.low,
        "step": values.step,
        "window": values.window,
        "function": values.function,
        "range": values.range,
        "inverted": values.inverted,
        "unit": values.unit,
        "presets": PRESETS if values.unit == "HU" else {},
    }
