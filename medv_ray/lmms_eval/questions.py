"""Functions of our task files for lmms-eval: prepared datasets as its documents, and our metrics.

The environment's MEDV_DATA names a prepared dataset, or a folder with one per benchmark, called by
the recipe's name. A split that is not the recipe's is refused, as `medv eval` does;
MEDV_ANY_SPLIT=1 takes it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from medv_ray.data.dataset import Dataset
from medv_ray.errors import SettingsError
from medv_ray.evaluation import recipes
from medv_ray.evaluation.metrics import METRICS, values
from medv_ray.evaluation.recipes import RECIPES, Question
from medv_ray.prepared import INDEX

FILES = {"vqa_rad_files": "vqa-rad", "pathvqa_files": "pathvqa"}
"""Recipe by the name under which a task file asks for the files of its splits."""


def __getattr__(name: str) -> dict[str, str]:
    """`data_files` of a task, of which lmms-eval reads no more than that they are there: looked up
    when the task is loaded, not when it is listed."""
    if name not in FILES:
        raise AttributeError(name)
    recipe = RECIPES[FILES[name]]
    return {recipe.split: str(folder(recipe.name) / INDEX)}


def folder(benchmark: str) -> Path:
    """The prepared dataset of a benchmark. Raises SettingsError E1001."""
    given = os.environ.get("MEDV_DATA")
    if not given:
        raise SettingsError(
            "E1001", "MEDV_DATA is not set: a prepared dataset, or a folder of them by benchmark."
        )
    for place in (Path(given), Path(given) / benchmark):
        if (place / INDEX).is_file():
            return place.resolve()
    raise SettingsError(
        "E1001", f"MEDV_DATA has no {INDEX}, and no {benchmark}/{INDEX}: jobs/prepare_vqa.py."
    )


def vqa_rad_documents(rows: Any) -> Any:
    """datasets.Dataset of anything -> one of the split's questions."""
    return _documents("vqa-rad", rows)


def pathvqa_documents(rows: Any) -> Any:
    """datasets.Dataset of anything -> one of the split's questions."""
    return _documents("pathvqa", rows)


def _documents(benchmark: str, rows: Any) -> Any:
    """Raises DataError E1113, E1114, E1121, E1122."""
    recipe = RECIPES[benchmark]
    questions = _questions(benchmark)
    if os.environ.get("MEDV_ANY_SPLIT") != "1":
        recipes.check_split(recipe, questions)
    columns = {
        "benchmark": [benchmark] * len(questions),
        "id": [one.id for one in questions],
        "images": [list(one.images) for one in questions],
        "question": [recipe.ask(one.question) for one in questions],
        "answer": [one.answer for one in questions],
        "kind": [one.kind for one in questions],
    }
    return type(rows).from_dict(columns)


@lru_cache(maxsize=2)
def _dataset(place: Path, split: str) -> Dataset:
    return Dataset.open(place, split)


def _questions(benchmark: str) -> list[Question]:
    return recipes.questions_of(_dataset(folder(benchmark), RECIPES[benchmark].split))


def pictures(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The question's pictures, not decoded yet. Raises DataError E1114."""
    dataset = _dataset(folder(doc["benchmark"]), RECIPES[doc["benchmark"]].split)
    return [Image.open(io.BytesIO(dataset.image(sha256))) for sha256 in doc["images"]]


def text(doc: Mapping[str, Any]) -> str:
    """What the model is asked, in the recipe's words."""
    return str(doc["question"])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Value of each metric that is asked of a question of this kind."""
    one = Question(doc["id"], (), doc["question"], doc["answer"], doc["kind"], {})
    found = values([one.judged(results[0] if results else "")], METRICS)
    return {name: of[one.id] for name, of in found.items() if of}
