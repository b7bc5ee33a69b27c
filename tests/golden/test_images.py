"""Case 08: square, padded and tiled images, choice of the canvas. Exact with the named Pillow."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import PIL
import pytest

from medv_ray.canvases import TileSettings, best_canvas
from medv_ray.data.images import prepare
from medv_ray.settings import ImageSettings

if TYPE_CHECKING:
    from conftest import Golden

SIDE = 384
GRID = tuple((SIDE * i, SIDE * j) for i in range(1, 7) for j in range(1, 7))
ANY_SIZE = ImageSettings(min_side=1)
SAME_PILLOW = PIL.__version__ == "13.0.0"


def as_float(tiles: np.ndarray) -> np.ndarray:
    """What the tower sees, float32[T, 3, H, W], in the reference's order of operations."""
    scaled = tiles.transpose(0, 3, 1, 2) * np.float64(1 / 255)
    return ((scaled.astype(np.float32) - np.float32(0.5)) / np.float32(0.5)).astype(np.float32)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.subcases("08", "i")
def test_tiles(golden: Golden, key: str) -> None:
    entry = golden.case("08")["images"][key]
    data = golden.path("08", f"{key}.png").read_bytes()
    for aspect in ("square", "pad", "anyres"):
        settings = TileSettings("anyres_max" if aspect == "anyres" else aspect, SIDE, GRID)
        got = prepare(data, ANY_SIZE, settings)
        assert got.size_wh == tuple(entry["size_wh"])
        assert got.warnings == ()
        assert got.sha256 == hashlib.sha256(data).hexdigest()
        pixels = as_float(got.tiles)
        if aspect == "anyres":
            assert (
                len(pixels)
                == entry["anyres_tiles_incl_base"]
                == 1 + entry["grid_wh"][0] * entry["grid_wh"][1]
            )
        assert abs(pixels.mean() - entry["mean"][aspect]) < (1e-4 if SAME_PILLOW else 5e-3)
        if SAME_PILLOW:
            check_digests(entry, aspect, pixels)
        check_stored(golden, entry, key, aspect, got.tiles)


def check_digests(entry: dict, aspect: str, pixels: np.ndarray) -> None:
    whole = pixels if aspect == "anyres" else pixels[0]
    assert sha256(whole) == entry["sha256_float32"][aspect]
    if aspect == "anyres":
        assert [sha256(tile) for tile in pixels] == entry["anyres_tile_sha256_float32"]


def check_stored(golden: Golden, entry: dict, key: str, aspect: str, tiles: np.ndarray) -> None:
    """The tensors themselves, where the folder has them."""
    if golden.find("08", "tensors.safetensors") is None:
        return
    stored = {
        name: t for name, t in golden.tensors("08").items() if name.startswith(f"{key}.{aspect}")
    }
    for tensor in stored.values():
        want = tensor.numpy().reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1).astype(np.int16)
        indices = entry["anyres_stored_indices"] if aspect == "anyres" else [0]
        got = tiles[indices].astype(np.int16)
        assert np.abs(got - want).max() <= (0 if SAME_PILLOW else 1)


@pytest.mark.subcases("08", "table")
def test_best_canvas(golden: Golden, key: str) -> None:
    rows = golden.case("08")["best_resolution_table_6x6_of_384"]
    assert rows
    for row in rows:
        best = best_canvas(tuple(row["size_wh"]), GRID)
        assert best == tuple(row["best_wh"])
        assert best[0] // SIDE * (best[1] // SIDE) == row["tiles"]
