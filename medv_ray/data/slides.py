"""Pictures out of slides: which parts one is read in, and one part at a time, at a stated size.

OpenSlide is C code that reads untrusted files: this runs in the child process of slide_child. A
slide is opened by its path, as it may hold gigabytes. Its label and macro images may show patient
data: they are not touched unless they are asked for by name. Source of the words mpp and objective
power: openslide.org/api/python, standard properties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medv_ray.data.slide_tissue import TISSUE_MPP, shares, tissue_of
from medv_ray.errors import DataError
from medv_ray.slide_parts import SlidePart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medv_ray.settings import SlideSettings

MPP = (0.05, 20.0)
"""Micrometres a pixel of a scan; what lies beyond is a screen's resolution, 353 for 72 dpi."""
POWER = (0.5, 200.0)
MPP_OF_1X = 10.0
"""Nominal: 10x is 1 micrometre a pixel, 40x is 0.25."""
SAME = 0.01
"""A level so near the resolution asked for is taken as it is."""
MOST_TILES = 2**20
_BLOCK = 4096
_OVERVIEW_PIXELS = 25_000_000
_LOOKED_AT = 8
"""Pixels along a tile's side that tissue is told by, at least."""


class Scale(NamedTuple):
    """How large a slide's finest pixels are. What the file does not say follows from the other."""

    mpp: float
    power: float


class Slide:
    """An open slide. Raises DataError E1203 (damaged), E1211 (of a kind that is not read here)."""

    def __init__(self, path: str, background: int) -> None:
        import openslide

        self._failure = openslide.OpenSlideError
        self._background = (background,) * 3
        with self._own_words("opened"):
            self._file = openslide.OpenSlide(path)
        self.size: tuple[int, int] = self._file.dimensions
        self.downsamples: tuple[float, ...] = self._file.level_downsamples
        known: Mapping[str, str] = self._file.properties
        self._mpp = [_number(known, f"openslide.mpp-{axis}", MPP) for axis in "xy"]
        self._power = _number(known, "openslide.objective-power", POWER)
        names = {"x": 0, "y": 0, "width": 1, "height": 1}
        bounds = [_number(known, f"openslide.bounds-{n}", (names[n], 2**40)) for n in names]
        whole = (0, 0, *self.size)
        self.bounds = tuple(map(int, bounds)) if None not in bounds else whole  # type: ignore[arg-type]
        """Of what was scanned: left, upper, width, height on the finest level."""
        self.dicom_uid = known.get("dicom.SOPInstanceUID", "")
        """Of the file that the finest level lies in."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def scale(self, assume_mpp: float | None) -> Scale | None:
        """As the file says, else as assumed; None where nothing is known."""
        x, y = self._mpp
        mpp = math.sqrt(x * y) if x and y else None
        if mpp is None and self._power is None:
            mpp = assume_mpp
        if mpp is None and self._power is None:
            return None
        power = self._power or MPP_OF_1X / (mpp or 1)
        return Scale(mpp or MPP_OF_1X / power, power)

    def read(self, part: SlidePart) -> Image.Image:
        """RGB of a part: pixels of the next finer level, resized; background beyond the slide."""
        if part.name not in ("tile", "whole"):
            return self.associated(part.name)
        level = self._level(part)
        step = self.downsamples[level]
        out = (part.out_width, part.out_height)
        if _on_level(part, step) == out and max(out) <= _BLOCK:
            return self._region(part.x, part.y, level, out)
        picture = Image.new("RGB", out)
        ratio_x = part.width / part.out_width / step
        ratio_y = part.height / part.out_height / step
        block = (max(1, int(_BLOCK / ratio_x)), max(1, int(_BLOCK / ratio_y)))
        for top in range(0, part.out_height, block[1]):
            for left in range(0, part.out_width, block[0]):
                size = (
                    min(block[0], part.out_width - left),
                    min(block[1], part.out_height - top),
                )
                x, y = left * ratio_x, top * ratio_y  # on the level, from the part's corner
                skip_x, skip_y = x - int(x), y - int(y)
                box = (skip_x, skip_y, skip_x + size[0] * ratio_x, skip_y + size[1] * ratio_y)
                # rounding errors must not ask for a pixel more
                read = (math.ceil(box[2] - 1e-6), math.ceil(box[3] - 1e-6))
                corner = (part.x + round(int(x) * step), part.y + round(int(y) * step))
                piece = self._region(*corner, level, read)
                box = (box[0], box[1], min(box[2], read[0]), min(box[3], read[1]))
                picture.paste(piece.resize(size, Image.Resampling.BICUBIC, box), (left, top))
        return picture

    def _level(self, part: SlidePart) -> int:
        """The coarsest level that has as many pixels as the picture."""
        sizes = [_on_level(part, step) for step in self.downsamples]
        fitting = [
            n for n, (width, height) in enumerate(sizes)
            if width >= part.out_width and height >= part.out_height
        ]  # fmt: skip
        return max(fitting, key=lambda n: self.downsamples[n], default=0)

    def _region(self, x: int, y: int, level: int, size: tuple[int, int]) -> Image.Image:
        with self._own_words("read"):
            pixels = self._file.read_region((x, y), level, size)
        ground = Image.new("RGB", pixels.size, self._background)
        ground.paste(pixels, mask=pixels.getchannel("A"))
        return ground

    def associated_names(self) -> list[str]:
        """Names of the label, macro and thumbnail images; none of them is read."""
        return list(self._file.associated_images)

    def associated(self, name: str) -> Image.Image:
        """RGB of the label, say."""
        with self._own_words("read"):
            picture = self._file.associated_images[name].convert("RGBA")
        ground = Image.new("RGB", picture.size, self._background)
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground

    def whole(self, side: int) -> SlidePart:
        """What was scanned, its longer side as many pixels; a smaller slide as it is."""
        x, y, width, height = self.bounds
        shrink = max(1.0, max(width, height) / side)
        out = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        scale = self.scale(None)
        known = (scale.mpp * shrink, scale.power / shrink) if scale else (0.0, 0.0)
        return SlidePart("whole", x, y, width, height, *out, *known)

    @contextmanager
    def _own_words(self, done: str) -> Iterator[None]:
        """OpenSlide's messages may name files."""
        try:
            yield
        except MemoryError:
            raise DataError("E1209", "reading the slide takes more memory than allowed.") from None
        except (self._failure, OSError, KeyError, ValueError) as error:
            if "nsupported" in str(error):
                detail = "the slide is of a kind or compression that OpenSlide does not read, or "
                raise DataError("E1211", f"{detail}its headers are damaged.") from None
            where = "" if done == "opened" else " though it opens"
            raise DataError(
                "E1203", f"the slide cannot be {done}{where}: damaged or cut short."
            ) from None


def plan_parts(slide: Slide, settings: SlideSettings) -> list[SlidePart]:
    """What becomes rows: tiles with tissue or the whole slide, then associated images asked for.

    Raises DataError E1214 (resolution not known, or finer than the scan), E1215 (no tissue) and
    those of reading.
    """
    parts = tiles_of(slide, settings) if settings.read == "tiles" else []
    parts = parts or [slide.whole(settings.thumbnail_side)]
    there = slide.associated_names() if settings.associated else []
    for name in settings.associated:
        if name in there:
            width, height = slide.associated(name).size
            parts.append(SlidePart(name, 0, 0, width, height, width, height))
    return parts


def tiles_of(slide: Slide, settings: SlideSettings) -> list[SlidePart]:
    """Tiles with enough tissue, row by row. Raises as `plan_parts`."""
    scale = slide.scale(settings.assume_mpp)
    downsample = asked_downsample(slide, settings, scale)
    assert scale is not None
    x, y = grid(slide.bounds, settings, downsample)
    side = max(1, round(settings.tile * downsample))
    found = np.full(len(x), -1.0)
    if settings.tissue > 0:
        found = tissue_shares(slide, scale, x, y, side)
    chosen = np.flatnonzero((found >= settings.tissue) | (settings.tissue == 0))
    if not len(chosen):
        raise DataError(
            "E1215", f"none of {len(x)} tiles shows {settings.tissue:g} of tissue or more."
        )
    kept = chosen
    if settings.most_tiles is not None and len(chosen) > settings.most_tiles:
        steps = (np.arange(settings.most_tiles) + 0.5) * len(chosen) / settings.most_tiles
        kept = chosen[steps.astype(np.int64)]
    known = (scale.mpp * downsample, scale.power / downsample)
    counts = (len(kept), len(chosen), len(x))
    out = (settings.tile, settings.tile)
    return [
        SlidePart(
            "tile", int(x[n]), int(y[n]), side, side, *out, *known, round(float(found[n]), 4),
            *counts,
        )
        for n in kept
    ]  # fmt: skip


def asked_downsample(slide: Slide, settings: SlideSettings, scale: Scale | None) -> float:
    """Pixels of the finest level that one of a tile stands for, along a side."""
    if scale is None:
        detail = "the slide says neither its magnification nor its micrometres a pixel."
        raise DataError("E1214", detail)
    if settings.magnification is not None:
        downsample = scale.power / settings.magnification
        asked, has = f"{settings.magnification:g}x", f"{scale.power:g}x"
    else:
        assert settings.mpp is not None
        downsample = settings.mpp / scale.mpp
        asked, has = f"{settings.mpp:g} micrometres a pixel", f"{scale.mpp:.4g}"
    if downsample < 1 - SAME:
        raise DataError("E1214", f"asked for are {asked}; the slide was scanned at {has}.")
    near = [level for level in slide.downsamples if abs(downsample / level - 1) <= SAME]
    return near[0] if near else max(1.0, downsample)


def grid(
    bounds: tuple[int, ...], settings: SlideSettings, downsample: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64[T] each: left upper corners of tiles that cover what was scanned, row by row.

    The last ones of a row or column may reach beyond it. Raises DataError E1214 for too many.
    """
    left, upper, width, height = bounds
    step = (settings.tile - settings.overlap) * downsample
    over = settings.overlap * downsample
    across, down = (max(1, math.ceil((side - over) / step - 1e-6)) for side in (width, height))
    if across * down > MOST_TILES:
        raise DataError(
            "E1214", f"the slide has {across * down} tiles; at most {MOST_TILES} are allowed."
        )
    x = left + np.rint(np.arange(across) * step).astype(np.int64)
    y = upper + np.rint(np.arange(down) * step).astype(np.int64)
    return np.tile(x, down), np.repeat(y, across)


def tissue_shares(
    slide: Slide, scale: Scale, x: NDArray[np.int64], y: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """float64[T]: tissue's share of each tile, by a picture of the slide at TISSUE_MPP."""
    left, upper, width, height = slide.bounds
    shrink = min(TISSUE_MPP / scale.mpp, side / _LOOKED_AT)
    shrink = max(shrink, math.sqrt(width * height / _OVERVIEW_PIXELS), 1.0)
    out = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    mask = tissue_of(slide.read(SlidePart("whole", left, upper, width, height, *out)))
    boxes = np.stack([x - left, y - upper, x - left + side, y - upper + side], axis=1)
    ratio = np.array([out[0] / width, out[1] / height] * 2)
    return shares(mask, boxes * ratio)


def _on_level(part: SlidePart, step: float) -> tuple[int, int]:
    return round(part.width / step), round(part.height / step)


def _number(known: Mapping[str, Any], name: str, bounds: tuple[float, float]) -> float | None:
    """A property that is a number within bounds; None for any other."""
    try:
        value = float(known[name])
    except (KeyError, ValueError):
        return None
    return value if bounds[0] <= value <= bounds[1] else None
