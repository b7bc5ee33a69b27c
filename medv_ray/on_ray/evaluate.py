"""A suite of benchmarks: prepare, score through the job that scores archives, count, compare.

    RUN/results.json          figures of every recipe
    RUN/NAME/dataset/         where a release was given and not a prepared dataset
    RUN/NAME/questions.parquet, RUN/NAME/scored/    what is asked, and the run that answers it
    RUN/NAME/answers.jsonl    answers by id, in LLaVA-Med's form
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.archive.rows import read_run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.data.dataset import INDEX, Dataset, image_path
from medv_ray.data.synthetic import grey_image
from medv_ray.data.vqa.prepare import prepare
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import RunError, SettingsError
from medv_ray.evaluation import predictions, recipes, results
from medv_ray.evaluation.recipes import Question, Recipe
from medv_ray.files import write_whole
from medv_ray.on_ray.options import PoolSettings, ScoreSettings, checkpoint_defaults
from medv_ray.on_ray.score import score
from medv_ray.settings import EngineSettings, ModelSettings, SamplerSettings

RESULTS = "results.json"
GREY = "grey.png"


class EvalSettings(NamedTuple):
    """What is evaluated on what."""

    data: Path
    out: Path
    model: ModelSettings | None = None
    predictions: Path | None = None
    """Answers in place of a model."""
    partial: bool = False
    blind: bool = False
    """Every picture is a grey one: what the words of the questions alone give away."""
    limit: int | None = None
    sampler: SamplerSettings | None = None
    """In place of the recipe's; another digest."""
    engine: EngineSettings = EngineSettings()
    pool: PoolSettings = PoolSettings()


def evaluate(chosen: Sequence[Recipe], settings: EvalSettings, address: str | None) -> dict[str, Any]:
    """Figures of every recipe, as results.json has them.

    Raises SettingsError E1001, DataError E1113 to E1123, and what `score` raises.
    """
    if (settings.model is None) == (settings.predictions is None):
        raise SettingsError("E1001", "give --model or --predictions, one of them.")
    found = {}
    for recipe in chosen:
        if settings.sampler is not None:
            recipe = recipe.model_copy(update={"sampler": settings.sampler})
        found[recipe.name] = _one(recipe, settings, len(chosen) > 1, address)
    whole = {"format": 1, "blind": settings.blind, "recipes": found}
    settings.out.mkdir(parents=True, exist_ok=True)
    write_whole(settings.out / RESULTS, json.dumps(whole, indent=1).encode())
    return whole
