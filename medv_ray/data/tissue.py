"""Stained-tissue-like tiles, drawn from the attributes that `toy_questions` asks about.

A tile has 4 x 4 fields. Large round cells lie in distinct fields, a vessel mid-edge,
pigment in one corner; a fibrous band crosses the tile below the cells. Coordinates are fractions of
width and height, so that a tile squashed to a square shows the same picture at any aspect ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FIELDS = 4
CANVAS = 128  # pixels at which every tile is drawn; larger ones are enlarged from it
SIDES = ("left", "right", "top", "bottom")
COLOURS: dict[str, tuple[int, int, int]] = {
    "purple": (112, 66, 172),
    "brown": (142, 88, 38),
    "green": (48, 142, 92),
    "red": (208, 44, 58),
}
COUNTS = ("one", "two", "three", "four")
CORNERS = ((0, 0), (0, FIELDS - 1), (FIELDS - 1, 0), (FIELDS - 1, FIELDS - 1))

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """What a tile shows, and the seed of what is not asked about (places, shades, noise)."""

    colour: str
    """One of COLOURS: the stain of the large cells."""
    count: str
    """One of COUNTS: how many large cells."""
    vessel: str
    """One of SIDES, or "none"."""
    pigment: str
    """"yes" or "no": a clump of dark granules in a corner."""
    band: str
    """"yes" or "no": a pale blue fibrous band across the tile."""
    seed: tuple[int, ...]

    def caption(self) -> str:
        """One sentence that names every attribute."""
        cells = "cell" if self.count == "one" else "cells"
        vessel = "no vessel" if self.vessel == "none" else f"vessel on the {self.vessel}"
        pigment = "pigment" if self.pigment == "yes" else "no pigment"
        band = "fibrous band" if self.band == "yes" else "no fibrous band"
        return f"{self.count} {self.colour} {cells}, {vessel}, {pigment}, {band}"


def draw(scene: Scene, size_wh: tuple[int, int] = (CANVAS, CANVAS)) -> Image.Image:
    """RGB picture of `scene`; the same scene and size give the same pixels."""
    rng = np.random.default_rng(scene.seed)
    image = _ground(rng)
    pen = ImageDraw.Draw(image)
    if scene.band == "yes":
        _band(pen, rng)
    _stroma(pen, rng)
    if scene.vessel != "none":
        _vessel(pen, rng, scene.vessel)
    if scene.pigment == "yes":
        _pigment(pen, rng)
    _cells(pen, rng, scene)
    image = image.filter(ImageFilter.GaussianBlur(0.7))
    if size_wh != image.size:
        image = image.resize(size_wh, Image.Resampling.BICUBIC)
    return _grain(image, rng)


def _ground(rng: np.random.Generator) -> Image.Image:
    """Eosin pink with slow changes of brightness."""
    pink = np.array([236.0, 192.0, 212.0]) + rng.uniform(-8, 8, 3)
    slow = Image.fromarray(rng.uniform(0, 255, (6, 6)).astype(np.uint8)).resize(
        (CANVAS, CANVAS), Image.Resampling.BICUBIC
    )
    shade = (np.asarray(slow, np.float64)[..., None] / 255 - 0.5) * 18
    return Image.fromarray(np.clip(pink + shade, 0, 255).astype(np.uint8))


def _stroma(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Fibres and nuclei too small to be taken for large cells."""
    for _ in range(30):
        x, y, angle, length = rng.uniform((0, 0, 0, 0.05), (1, 1, math.pi, 0.15))
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        pen.line([_at((x, y)), _at(end)], fill=_shade((222, 160, 190), rng, 10), width=1)
    for x, y in rng.uniform(0, 1, (18, 2)):
        _disc(pen, (x, y), (0.010, 0.014), _shade((120, 80, 150), rng, 15))


def _band(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    angle, phase, shift = rng.uniform((0, 0, -0.15), (math.pi, 2 * math.pi, 0.15))
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    points = []
    for step in np.linspace(-0.8, 0.8, 40):
        wave = shift + 0.03 * math.sin(9 * step + phase)
        points.append(
            (0.5 + step * along[0] + wave * across[0], 0.5 + step * along[1] + wave * across[1])
        )
    colour = _shade((128, 172, 226), rng, 8)
    pen.line(
        [_at(point) for point in points], fill=colour, width=round(0.11 * CANVAS), joint="curve"
    )


def _vessel(pen: ImageDraw.ImageDraw, rng: np.random.Generator, side: str) -> None:
    """A white lumen in a dark wall, long axis along the edge."""
    edge, middle = rng.uniform(0.11, 0.13), rng.uniform(0.46, 0.54)
    centre, radii = {
        "left": ((edge, middle), (0.075, 0.19)),
        "right": ((1 - edge, middle), (0.075, 0.19)),
        "top": ((middle, edge), (0.19, 0.075)),
        "bottom": ((middle, 1 - edge), (0.19, 0.075)),
    }[side]
    wall = 0.028
    _disc(pen, centre, (radii[0] + wall, radii[1] + wall), _shade((118, 62, 96), rng, 8))
    _disc(pen, centre, radii, _shade((250, 247, 246), rng, 4))


def _pigment(pen: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, y = (0.12 if corner == 0 else 0.88 for corner in CORNERS[rng.integers(4)])
    for dx, dy, radius in rng.uniform((-0.075, -0.075, 0.018), (0.075, 0.075, 0.032), (24, 3)):
        _disc(pen, (x + dx, y + dy), (radius, radius), _shade((38, 28, 26), rng, 8))


def _cells(pen: ImageDraw.ImageDraw, rng: np.random.Generator, scene: Scene) -> None:
    taken = {
        "left": ((0, 1), (0, 2)),
        "right": ((3, 1), (3, 2)),
        "top": ((1, 0), (2, 0)),
        "bottom": ((1, 3), (2, 3)),
        "none": (),
    }[scene.vessel]
    free = [
        (x, y)
        for x in range(FIELDS)
        for y in range(FIELDS)
        if (x, y) not in CORNERS and (x, y) not in taken
    ]
    stain = _shade(COLOURS[scene.colour], rng, 10)
    for choice in rng.permutation(len(free))[: COUNTS.index(scene.count) + 1]:
        x, y = ((field + 0.5) / FIELDS + rng.uniform(-0.02, 0.02) for field in free[choice])
        rx, ry = rng.uniform(0.088, 0.102, 2)
        _disc(pen, (x, y), (rx, ry), _mix(stain, (60, 40, 60), 0.35))
        _disc(pen, (x, y), (rx - 0.012, ry - 0.012), _mix(stain, (255, 240, 245), 0.22))
        nx, ny = rng.uniform(-0.015, 0.015, 2)
        _disc(pen, (x + nx, y + ny), (0.55 * rx, 0.55 * ry), _mix(stain, (20, 10, 30), 0.18))


def _grain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Sensor noise: makes the bytes of any two tiles differ."""
    pixels = np.asarray(image, np.int16)
    noise = rng.integers(-4, 5, (CANVAS, CANVAS, 1), dtype=np.int16)
    down, right = -(-pixels.shape[0] // CANVAS), -(-pixels.shape[1] // CANVAS)
    field = np.tile(noise, (down, right, 1))[: pixels.shape[0], : pixels.shape[1]]
    return Image.fromarray(np.clip(pixels + field, 0, 255).astype(np.uint8))


def _at(point: Point) -> Point:
    return point[0] * CANVAS, point[1] * CANVAS


def _disc(pen: ImageDraw.ImageDraw, centre: Point, radii: Point, colour: Colour) -> None:
    (x, y), (rx, ry) = _at(centre), _at(radii)
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _shade(colour: Colour, rng: np.random.Generator, spread: int) -> Colour:
    return _colour(np.array(colour) + rng.integers(-spread, spread + 1, 3))


def _mix(a: Colour, b: Colour, share_of_b: float) -> Colour:
    return _colour(np.array(a) * (1 - share_of_b) + np.array(b) * share_of_b)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue
