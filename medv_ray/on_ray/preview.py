"""`--plan`: what a job would do, from the archive's index, a sample and a probe. Writes nothing."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import Plan, read_rows
from medv_ray.archive.survey import survey
from medv_ray.data.decode_child import Decoder
from medv_ray.data.tiles import TileSettings
from medv_ray.engine import Request
from medv_ray.errors import DataError
from medv_ray.on_ray.answerer import PREDICTOR, Answerer, find
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.score import planned

SAMPLE_CHUNKS = 16
PROBE_ROWS = 32


@dataclass
class Sample:
    """What a few chunks from all over the archive hold."""

    rows: int = 0
    pictures: Counter[str] = field(default_factory=Counter)
    """Rows by digest of their image."""
    problems: Counter[str] = field(default_factory=Counter)
    """Bad rows by code: cells, ids, and pictures that do not decode."""
    good: list[Row] = field(default_factory=list)


def preview(settings: ScoreSettings, actors: int, factory: str | None = None) -> dict[str, Any]:
    """Counts, a sample's problems and a probe's speed. Raises what the job would raise."""
    settings = settings.located(on_cluster=False)
    plan, identity = planned(settings)
    known = survey(plan, settings.out, identity)
    sample = take_sample(plan, settings)
    probe = {}
    if sample.good:
        predictor = find(factory or PREDICTOR)(settings)
        try:
            probe = time_probe(predictor, sample.good[:PROBE_ROWS], settings)
        finally:
            predictor.close()
    left = known.rows - known.done_rows
    told = {
        "rows": known.rows,
        "files": known.files,
        "chunks": known.chunks,
        "ignored_files": known.ignored,
        "unreadable_files": [{"name": u.name, "code": u.code} for u in known.unreadable],
        "duplicate_ids": known.duplicates,
        "images_named": known.named_images,
        "images_missing": known.missing_images,
        "resume_skips_rows": known.done_rows,
        "changed_since_run_began": list(known.changes),
        "sample": {
            "rows": sample.rows,
            "distinct_images": len(sample.pictures),
            "problems": dict(sorted(sample.problems.items())),
        },
        "probe": probe,
    }
    if probe:
        per_row = probe["seconds_per_row"]
        told["estimate"] = {
            "rows": left,
            "actor_hours": round(left * per_row / 3600, 3),
            "actors": actors,
            "hours": round(left * per_row / actors / 3600, 3),
        }
    return told


def take_sample(plan: Plan, settings: ScoreSettings) -> Sample:
    """Read chunks at even distances; decode each distinct picture once, in the decoder's child."""
    sample = Sample()
    step = max(1, len(plan.chunks) // SAMPLE_CHUNKS)
    with Decoder(settings.image, TileSettings("square", 32)) as decoder:
        for chunk in plan.chunks[::step][:SAMPLE_CHUNKS]:
            for row in _read(plan, chunk, sample):
                sample.rows += 1
                problem = row.error or _picture_problem(row, decoder, sample)
                if problem is None:
                    sample.good.append(row)
                else:
                    sample.problems[problem.code] += 1
    sample.good = sample.good[:: max(1, len(sample.good) // PROBE_ROWS)]
    return sample


def _read(plan: Plan, chunk: Chunk, sample: Sample) -> list[Row]:
    try:
        return read_rows(plan.archive, chunk)
    except DataError as error:
        sample.problems[error.code] += len(chunk.rows)
        return []


def _picture_problem(row: Row, decoder: Decoder, sample: Sample) -> DataError | None:
    if row.image is None:
        return None
    digest = hashlib.sha256(row.image).hexdigest()
    sample.pictures[digest] += 1
    if sample.pictures[digest] > 1:
        return None
    try:
        decoder.prepare(row.image)
    except DataError as error:
        return error
    return None


def time_probe(predictor: Answerer, rows: list[Row], settings: ScoreSettings) -> dict[str, Any]:
    """Seconds a row on this machine, after one row that warms up."""
    requests = [
        Request(row.question or "", () if row.image is None else (row.image,)) for row in rows
    ]
    predictor.answer(requests[:1])
    timed = requests[1:] or requests
    started = time.perf_counter()
    predictor.answer(timed)
    seconds = time.perf_counter() - started
    return {"rows": len(timed), "seconds_per_row": round(seconds / len(timed), 5)}
