"""What a load run sends: its settings, and the bodies of its requests, written beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from medv_ray.archive.plan import plan
from medv_ray.archive.reading import iter_rows
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.client.endpoint import messages_of
from medv_ray.data import synthetic
from medv_ray.errors import DataError
from medv_ray.settings import Settings

BODIES_BYTES = 512 * 2**20
"""Requests are written before the first is sent, so that writing costs no time; up to this size."""


class LoadSettings(Settings):
    """What is sent, how fast, and for how long."""

    url: str = "http://127.0.0.1:8000"
    """The endpoint."""
    model: str | None = None
    """None: the first that /v1/models lists."""
    clients: PositiveInt | None = None
    """Closed loop: requests at the same time. None: 20, unless `rate` is given."""
    rate: PositiveFloat | None = None
    """Open loop: requests per second on average; gaps are drawn from an exponential law."""
    seconds: PositiveFloat | None = None
    """No request begins after this time. None: 60, or no end where `requests` is given."""
    requests: PositiveInt | None = None
    """Requests at most."""
    stream: bool = True
    """Whether answers come as streams."""
    max_tokens: PositiveInt | None = None
    """None: the endpoint's own."""
    limit_s: PositiveFloat = 2.0
    """Goodput counts answers that are whole within this time."""
    timeout_s: PositiveFloat = 150.0
    """A request that takes longer is given up, as an error."""
    seed: NonNegativeInt = 0
    """Of the arrivals, and of the synthetic tiles."""
    rows: PositiveInt = 256
    """Distinct questions, asked by turns."""
    archive: ArchiveSettings | None = None
    """Its first rows are asked. None: synthetic tiles."""

    @model_validator(mode="after")
    def _one_loop(self) -> Self:
        if self.clients is not None and self.rate is not None:
            raise ValueError("give clients (closed loop) or rate (open loop), not both")
        return self

    @property
    def seconds_or_end(self) -> float:
        """How long requests begin."""
        if self.seconds is None:
            return math.inf if self.requests is not None else 60.0
        return self.seconds


@dataclass
class Questions:
    """Bodies of requests, written beforehand."""

    bodies: list[bytes] = field(default_factory=list)
    images: int = 0
    """Distinct ones."""


def questions(settings: LoadSettings, model: str) -> Questions:
    """The rows that can be asked. Raises DataError, SettingsError."""
    asked: dict[str, Any] = {"model": model, "stream": settings.stream}
    if settings.stream:
        asked["stream_options"] = {"include_usage": True}
    if settings.max_tokens is not None:
        asked["max_tokens"] = settings.max_tokens
    made, seen, size = Questions(), set(), 0
    for question, image in islice(_rows(settings), settings.rows):
        images = [] if image is None else [image]
        body = json.dumps({**asked, "messages": messages_of(question, images)}).encode()
        size += len(body)
        if size > BODIES_BYTES and made.bodies:
            break
        made.bodies.append(body)
        seen |= {hash(image) for image in images}
    if not made.bodies:
        raise DataError("E1110", "none of the archive's first rows can be asked.")
    made.images = len(seen)
    return made


def _rows(settings: LoadSettings) -> Iterator[tuple[str, bytes | None]]:
    if settings.archive is None:
        for tile in synthetic.rows(settings.rows, settings.seed):
            yield tile.question, tile.image
        return
    limit = min(settings.rows, settings.archive.limit or settings.rows)
    chosen = settings.archive.model_copy(update={"limit": limit})
    planned = plan(open_archive(chosen), "")
    for chunk in planned.chunks:
        for row in iter_rows(planned.archive, chunk):
            if row.error is None and row.question is not None:
                yield row.question, row.image
