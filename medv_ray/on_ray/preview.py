"""`--plan`: what a job would do, from the archive's index, its rows and a probe. Writes nothing."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from medv_ray.archive.chunks import Chunk, Row
from medv_ray.archive.plan import Plan
from medv_ray.archive.pseudonyms import find as find_pseudonyms
from medv_ray.archive.reading import read_rows
from medv_ray.archive.slides import slide_counts
from medv_ray.archive.survey import Survey, survey
from medv_ray.canvases import TileSettings
from medv_ray.data.canvas import Template
from medv_ray.data.decode_child import Decoder
from medv_ray.errors import DataError, shows_names
from medv_ray.file_parts import Picture
from medv_ray.on_ray.chunk import digest_of, request_of
from medv_ray.on_ray.findings import cores
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.predictor import PREDICTOR, RowPredictor, find, processor
from medv_ray.on_ray.score import Resume, planned, tell, tell_growth

EXACT_ROWS = 20_000
EXACT_S = 20.0
"""Archives up to this size are read as a whole, for this long at most. Of larger ones a sample is
named as what it is: nothing is extrapolated but the time."""
SAMPLE_CHUNKS = 16
PROBE_ROWS = 32


@dataclass
class Look:
    """What some chunks hold."""

    rows: int = 0
    pictures: dict[bytes, str | None] = field(default_factory=dict)
    """By digest, the code of what is wrong with each distinct picture."""
    problems: Counter[str] = field(default_factory=Counter)
    """Bad rows by code: cells, ids and pictures. Each row with a broken picture counts."""
    warnings: Counter[str] = field(default_factory=Counter)
    """Rows by what was changed to read them: an image's mark taken out, a repeated id."""
    good: list[Row] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `--plan` prints it."""
        return {
            "rows": self.rows,
            "distinct_images": len(self.pictures),
            "problems": dict(sorted(self.problems.items())),
            "warnings": dict(sorted(self.warnings.items())),
        }


def preview(
    settings: ScoreSettings, factory: str | None = None, resume: Resume | None = None
) -> dict[str, Any]:
    """Counts, problems and a probe's speed. Raises what the job would raise."""
    settings = settings.located(on_cluster=False)
    resume = resume or Resume()
    pseudonyms = find_pseudonyms(settings.privacy, settings.out, resume.new_run)
    plan, identity = planned(settings, resume, pseudonyms)
    tell(plan)
    known = survey(plan, settings.out, identity, resume.allow_added)
    if not known.changes:
        tell_growth(plan)
    counted, how = count(plan, settings)
    sample = take_sample(plan, settings)
    probe = take_probe(sample.good[:PROBE_ROWS], settings, factory)
    slides = slide_counts(plan.inputs)
    plan_line = {
        "rows": known.rows,
        "files": known.files,
        "chunks": known.chunks,
        "left_out": {"files": known.left_out.total, "groups": known.left_out.printed()},
        "several_rows": plan.several_rows,
        "unreadable_files": [{"name": u.name, "code": u.code} for u in known.unreadable],
        **({} if slides is None else {"slides": slides.printed()}),
        "duplicate_ids": known.duplicates,
        "images_named": known.named_images,
        "images_missing": known.missing_images,
        "images_missing_examples": [
            without_root(name) for name in known.missing_examples if shows_names()
        ],
        "resume_skips_rows": known.done_rows,
        "rows_added": known.added_rows,
        "changed_since_run_began": list(known.changes),
        "counted": how,
        "every_row": None if counted is None else counted.as_json(),
        "sample": sample.as_json(),
        "probe": probe,
    }
    if "seconds_per_row" in probe:
        plan_line["estimate"] = estimate(known, probe["seconds_per_row"], settings)
    return plan_line


def without_root(name: str) -> str:
    """A name as it can be printed: of an absolute path the last part alone."""
    plain = name.replace("\\", "/")
    return plain.rpartition("/")[2] if plain.startswith("/") or ":/" in plain else name


def count(plan: Plan, settings: ScoreSettings) -> tuple[Look | None, str]:
    """Every row of a small archive, and in words what was done."""
    if plan.rows > EXACT_ROWS:
        return None, f"a sample only: the archive has more than {EXACT_ROWS} rows"
    with Decoder(settings.image, None) as decoder:
        found = look(plan, plan.chunks, decoder, seconds=EXACT_S)
    if found is None:
        return None, f"a sample only: to read every row takes more than {EXACT_S:g} s"
    return found, "every row: cells, ids and the headers of images, which are not decoded"


def take_sample(plan: Plan, settings: ScoreSettings) -> Look:
    """Chunks at even distances; each distinct picture is decoded."""
    number = min(SAMPLE_CHUNKS, len(plan.chunks))
    chosen = [plan.chunks[turn * len(plan.chunks) // number] for turn in range(number)]
    with Decoder(settings.image, TileSettings("square", 32)) as decoder:
        found = look(plan, chosen, decoder, keep=math.ceil(PROBE_ROWS / number))
    assert found is not None
    return found


def look(
    plan: Plan, chunks: Sequence[Chunk], decoder: Decoder, keep: int = 0, seconds: float = math.inf
) -> Look | None:
    """All rows of some chunks, of each `keep` good ones kept; None when `seconds` are over."""
    deadline = time.monotonic() + seconds
    found = Look()
    for chunk in chunks:
        good = []
        for row in _read(plan, chunk, found):
            if time.monotonic() > deadline:
                return None
            found.rows += 1
            found.warnings.update(row.warnings)
            code = row.error.code if row.error else _pictures_code(row, decoder, found)
            if code is None:
                good.append(row)
            else:
                found.problems[code] += 1
        if keep:
            found.good += good[:: max(1, len(good) // keep)][:keep]
    return found


def _read(plan: Plan, chunk: Chunk, found: Look) -> list[Row]:
    try:
        return read_rows(plan.archive, chunk)
    except DataError as error:
        found.rows += len(chunk.rows)
        found.problems[error.code] += len(chunk.rows)
        return []


def _pictures_code(row: Row, decoder: Decoder, found: Look) -> str | None:
    """What is wrong with the first bad picture of a row."""
    codes = [_picture_code(image, decoder, found) for image in row.pictures]
    return next((code for code in codes if code is not None), None)


def _picture_code(image: bytes | Picture, decoder: Decoder, found: Look) -> str | None:
    digest = digest_of(image)
    if digest not in found.pictures:
        try:
            decoder.prepare(image)
            found.pictures[digest] = None
        except DataError as error:
            found.pictures[digest] = error.code
    return found.pictures[digest]


def take_probe(rows: list[Row], settings: ScoreSettings, factory: str | None) -> dict[str, Any]:
    """Seconds a row, where this machine can tell."""
    if not rows:
        return {}
    if settings.device == "cuda" and not torch.cuda.is_available():
        return {"skipped": "no GPU here: run --plan on a machine like the actors'"}
    predictor = find(factory or PREDICTOR)(settings)
    try:
        probe = time_probe(predictor, rows, settings.template)
        return {**probe, "processor": processor(settings.device)}
    finally:
        predictor.close()


def time_probe(
    predictor: RowPredictor, rows: list[Row], template: Template | None = None
) -> dict[str, Any]:
    """Seconds a row on this machine, after one row that warms up."""
    requests = [replace(request_of(row), template=template) for row in rows]
    predictor.answer(requests[:1])
    timed = requests[1:] or requests
    started = time.perf_counter()
    predictor.answer(timed)
    seconds = time.perf_counter() - started
    return {"rows": len(timed), "seconds_per_row": round(seconds / len(timed), 5)}


def estimate(known: Survey, per_row_s: float, settings: ScoreSettings) -> dict[str, Any]:
    """Hours for the rows that are left, with the actors that were asked for or fit this machine."""
    pool = settings.pool
    fits = [cores() / pool.cpus] if pool.cpus else []
    fits += [torch.cuda.device_count() / pool.num_gpus] if pool.num_gpus else []
    most = pool.max_actors or int(min(fits, default=1))
    actors = max(1, min(most, known.chunks - known.done_chunks))
    left = known.rows - known.done_rows
    return {
        "rows": left,
        "actor_hours": round(left * per_row_s / 3600, 3),
        "actors": actors,
        "hours": round(left * per_row_s / actors / 3600, 3),
    }
