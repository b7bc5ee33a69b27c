"""Scoring a labelled split to learn from it: how far confidence is to be trusted, and how far
repeated answers agree.

OUT/questions.parquet, OUT/scored/       what is asked, and the run that answers it
OUT/samples.parquet, OUT/sampled/        the same several times, for `consistency`
OUT/calibration.json, calibration.svg
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from medv_ray.archive import strict
from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.rows import read_run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Store
from medv_ray.data.dataset import Dataset
from medv_ray.errors import RunError
from medv_ray.evaluation import recipes
from medv_ray.evaluation.calibrating import Fitted
from medv_ray.evaluation.judged_rows import JudgedRows
from medv_ray.evaluation.recipes import Question
from medv_ray.evaluation.stored_calibration import StoredCalibration, decisive, held
from medv_ray.on_ray.options import PoolSettings, ScoreSettings, checkpoint_defaults
from medv_ray.on_ray.question_table import image_name, write_once
from medv_ray.on_ray.score import score
from medv_ray.settings import AnswerSettings, ModelSettings, SamplerSettings, build

COPY = "#"
"""Between a question's id and the number of its copy."""


class Asked(NamedTuple):
    """A split, and how it is answered."""

    dataset: Path
    split: str
    out: Path
    model: ModelSettings
    sampler: SamplerSettings
    pool: PoolSettings = PoolSettings()
    limit: int | None = None


def sampler_of(model: ModelSettings, over: dict[str, Any]) -> SamplerSettings:
    """What the checkpoint recommends, with other values over it."""
    return build(SamplerSettings, checkpoint_defaults(model.path).get("sampler", {}) | over)


def score_split(asked: Asked, copies: int | None = None, address: str | None = None) -> str:
    """Run folder of the split's questions, or of so many copies of each, which a sampler with noise
    answers differently. The same call goes on where it stopped.

    Raises DataError E1121 for dialogues, and what `score` raises.
    """
    questions = recipes.questions_of(Dataset.open(asked.dataset, asked.split))[: asked.limit]
    name, run = ("questions", "scored") if copies is None else ("samples", "sampled")
    table = asked.out / f"{name}.parquet"
    made = table_of(questions, copies)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_once(table, made)
    settings = ScoreSettings(
        out=str(asked.out / run),
        archive=ArchiveSettings(archive=str(table), images=str(asked.dataset)),
        model=asked.model,
        pool=asked.pool,
        sampler=asked.sampler,
        abstain_below=None,  # also where one is stored: all answers are looked at
    )
    if score(settings, address=address).summary is None:
        raise RunError("E1512", "the job was stopped; the same line goes on.")
    return settings.out


def table_of(questions: Sequence[Question], copies: int | None) -> pa.Table:
    """Questions about one picture lie side by side, so that it is looked at once."""
    ordered = sorted(questions, key=lambda one: one.images)
    rows = [
        (one, one.id if copies is None else f"{one.id}{COPY}{copy}")
        for one in ordered
        for copy in range(copies or 1)
    ]
    return pa.table(
        {
            "id": [key for _, key in rows],
            "question": [one.question for one, _ in rows],
            "answer": [one.answer for one, _ in rows],
            "answer_type": [one.kind for one, _ in rows],
            "image": [[image_name(s) for s in one.images] for one, _ in rows],
        }
    )


def agreement(rows: JudgedRows, sampled: str) -> list[float]:
    """Of each judged answer, the share of its samples that say the same: for yes and no by the
    first of them, else the same words. A sample that failed does not agree."""
    given = dict(zip(rows.id, rows.answer, strict=True))
    agreed: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for table in read_run(sampled, ["id", "answer"]):
        for row in table.to_pylist():
            key = row["id"].rpartition(COPY)[0]
            if key in given:
                counted[key] += 1
                agreed[key] += says_the_same(given[key], row["answer"] or "")
    return [agreed[key] / counted[key] if counted[key] else 0.0 for key in rows.id]


def says_the_same(answer: str, sample: str) -> bool:
    """Whether two answers to one question agree."""
    first = next((word for word in strict.words(answer) if word in ("yes", "no")), None)
    if first is not None:
        return strict.closed(sample, first)
    return strict.same(answer, sample)


class Origin(NamedTuple):
    """What a run's answers come from."""

    model: tuple[str, str | None]
    """Digests of model and adapter."""
    held: dict[str, Any]
    """dtype, device, logit_size."""
    answer: AnswerSettings


def origin(run: str) -> Origin:
    """Raises RunError E1507 where no run is."""
    manifest = read_manifest(Store(run))
    if manifest is None:
        raise RunError("E1507", "there is no run in this folder.")
    identity = manifest["identity"]
    model = identity["model"]
    digests = (model["sha256"], model.get("adapter_sha256"))
    return Origin(digests, held(model), build(AnswerSettings, identity["settings"]))


def stored_form(
    source: Origin, rows: JudgedRows, fitted: Fitted, target_risk: float, words: str
) -> StoredCalibration:
    """As it is written beside the model."""
    kept = fitted.abstention
    return StoredCalibration(
        model_sha256=source.model[0],
        adapter_sha256=source.model[1],
        held=source.held,
        answer=decisive(source.answer),
        rows=words,
        n=len(rows),
        right=sum(rows.right) / len(rows),
        calibrator=fitted.calibrator,
        ece_before=fitted.ece_before,
        ece_after=fitted.ece_after,
        target_risk=target_risk,
        abstain_below=None if kept is None else kept.below,
        coverage=None if kept is None else kept.coverage,
        risk=None if kept is None else kept.risk,
        risk_bound=None if kept is None else kept.bound,
    )


def store_folder(model: ModelSettings) -> Path:
    """Where a model's calibration lies: beside the adapter, where there is one."""
    return Path(model.adapter or model.path)
