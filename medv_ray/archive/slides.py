"""Slides in numbers: their tiles when they are planned, and their answers when rows are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from medv_ray.archive.accuracy import normal
from medv_ray.archive.prior import Image
from medv_ray.archive.results import input_files
from medv_ray.archive.rows import read_run
from medv_ray.errors import shows_names
from medv_ray.slide_parts import SlidePart

NAMED = 20
"""Slides that a plan lists by name."""
_COLUMNS = (
    "id", "image_paths", "status", "answer", "confidence", "tile_x", "tile_y",
)  # fmt: skip
BY_SLIDE = pa.schema(
    [
        pa.field("slide", pa.string()),  # the file inside the archive
        pa.field("rows", pa.int64()),
        pa.field("tiles", pa.int64()),  # rows of them that are tiles
        pa.field("answered", pa.int64()),
        pa.field("abstained", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field(
            "top_answer", pa.string()
        ),  # of most answered rows; of equal ones the first by text
        pa.field("top_share", pa.float64()),  # of the answered rows
        pa.field(
            "answers",
            pa.list_(
                pa.struct([("answer", pa.string()), ("rows", pa.int64()), ("share", pa.float64())])
            ),
        ),  # normalised, most frequent first
        pa.field("mean_confidence", pa.float64()),  # of the answered rows
        pa.field("surest_id", pa.string()),  # the answered row of highest confidence
        pa.field("surest_x", pa.int64()),
        pa.field("surest_y", pa.int64()),
        pa.field("surest_answer", pa.string()),
        pa.field("surest_confidence", pa.float64()),
    ]
)
"""A line for each picture file: a slide's tiles, a file's frames, or the one row of any other."""


class SlideCounts(NamedTuple):
    """Tiles of the slides of a plan."""

    slides: int
    """Those that become tiles."""
    tiles: int
    """Rows."""
    with_tissue: int
    """Tiles with as much tissue as is asked for; more than rows where slides.most_tiles cuts."""
    grid: int
    """All tiles of these slides."""
    names: dict[str, int]
    """Tiles of the first slides, by name."""

    def printed(self) -> dict[str, Any]:
        """As a plan prints it: names only where they are shown."""
        found = self._asdict()
        if not shows_names():
            del found["names"]
        return found

    def __str__(self) -> str:
        less = [f"{self.grid - self.with_tissue} tiles with less tissue than slides.tissue"]
        if self.with_tissue > self.tiles:
            less.append(f"{self.with_tissue - self.tiles} beyond slides.most_tiles")
        return f"{self.slides} in {self.tiles} tiles; left out: {', '.join(less)}"


def slide_counts(inputs: Iterable[Image]) -> SlideCounts | None:
    """Of the images of a plan; None where none is in tiles."""
    names: dict[str, int] = {}
    sums = Counter[str]()
    for image in inputs:
        first = next((text for text in image.parts or () if text.startswith("tile=")), None)
        if first is None:
            continue
        part = SlidePart.parse(first)
        sums.update(slides=1, tiles=part.planned, with_tissue=part.with_tissue, grid=part.grid)
        if len(names) < NAMED:
            names[image.name] = part.planned
    if not sums:
        return None
    return SlideCounts(sums["slides"], sums["tiles"], sums["with_tissue"], sums["grid"], names)


@dataclass
class _Sum:
    """What is known of a file so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    tiles: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    confidence: float = 0.0
    surest: Mapping[str, Any] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        self.statuses[row["status"]] += 1
        self.tiles += row["tile_x"] is not None
        if row["status"] != "answered":
            return
        self.answers[normal(row["answer"])] += 1
        self.confidence += row["confidence"]
        best = (-self.surest["confidence"], self.surest["id"]) if self.surest else (1.0, "")
        if (-row["confidence"], row["id"]) < best:
            self.surest = row

    def record(self, slide: str) -> dict[str, Any]:
        answered = self.statuses["answered"]
        order = sorted(self.answers.items(), key=lambda one: (-one[1], one[0]))
        listed = [{"answer": a, "rows": n, "share": n / answered} for a, n in order]
        return {
            "slide": slide,
            "rows": self.statuses.total(),
            "tiles": self.tiles,
            **{name: self.statuses[name] for name in ("answered", "abstained", "quarantined")},
            "top_answer": listed[0]["answer"] if listed else None,
            "top_share": listed[0]["share"] if listed else None,
            "answers": listed,
            "mean_confidence": self.confidence / answered if answered else None,
            "surest_id": self.surest.get("id"),
            "surest_x": self.surest.get("tile_x"),
            "surest_y": self.surest.get("tile_y"),
            "surest_answer": self.surest.get("answer"),
            "surest_confidence": self.surest.get("confidence"),
        }


def by_slide(out: str) -> pa.Table:
    """The rows of a run put together by picture file, as BY_SLIDE; by name.

    Rows of several pictures count with the first, rows without a named picture as one. Also while
    a job writes. Raises RunError E1507 where no run is, E1506 for damage.
    """
    input_files(out)
    sums: dict[str, _Sum] = {}
    for table in read_run(out, list(_COLUMNS)):
        for row in table.to_pylist():
            paths = row["image_paths"] or [None]
            sums.setdefault(paths[0] or "", _Sum()).add(row)
    return pa.Table.from_pylist([sums[name].record(name) for name in sorted(sums)], BY_SLIDE)
