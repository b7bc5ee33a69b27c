"""Slides that tests make: tiled TIFFs of several levels, as scanners write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from medv_ray.data.slide_child import SlideReader
from medv_ray.data.slide_shelf import Shelf

PINK = (214, 150, 190)
GLASS = (243, 241, 244)
LABEL = (200, 30, 30)


def scan(size: tuple[int, int] = (1024, 768), ground: tuple[int, int, int] = GLASS) -> Image.Image:
    """Glass with a disc of tissue in its left upper quarter."""
    picture = Image.new("RGB", size, ground)
    width, height = size
    box = (width // 16, height // 16, width // 2 - width // 16, height // 2 - height // 16)
    ImageDraw.Draw(picture).ellipse(box, fill=PINK)
    return picture


def write_slide(
    path: Path,
    picture: Image.Image,
    *,
    shrink: tuple[int, ...] = (1, 2, 4),
    said: str | None = "|AppMag = 20|MPP = 0.5",
    associated: tuple[str, ...] = ("label", "macro"),
) -> Path:
    """An Aperio slide: its levels, a thumbnail, and pictures beside it of one colour (LABEL).

    Without `said` it is a plain tiled TIFF of several levels.
    """
    options = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for number, step in enumerate(shrink):
            size = (picture.width // step, picture.height // step)
            level = picture.resize(size, Image.Resampling.BOX)
            text = (
                None if said is None else f"Aperio Image Library v12\r\n{size[0]}x{size[1]} {said}"
            )
            reduced = {} if not number else {"subfiletype": 1}
            file.write(np.asarray(level), description=text, **options, **reduced)
            if number == 0 and said is not None:
                small = np.asarray(picture.resize((64, 48)))
                text = "Aperio Image Library v12\r\n64x48"
                file.write(small, description=text, photometric="rgb", metadata=None)
        for name in associated if said is not None else ():
            colour = np.full((40, 60, 3), LABEL, np.uint8)
            text = f"Aperio Image Library v12\r\n{name} 60x40"
            file.write(colour, description=text, photometric="rgb", metadata=None, subfiletype=1)
    return path


class NoProcess(SlideReader):
    """Answers as the child process does, in this one: no process is started."""

    _shelf: Shelf | None = None

    def _prepare(self, data: bytes, part: str = "", sha256: str = "") -> Any:
        with self._lock:
            self._shelf = self._shelf or Shelf(json.loads(self._setup))
            header, payload = self._shelf.answer(data)
        return self._understand(json.loads(json.dumps(header)), bytearray(payload))
