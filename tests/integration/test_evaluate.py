"""`medv eval` through the job that scores archives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medv_ray.errors import DataError
from medv_ray.evaluation.comparison import compare
from medv_ray.evaluation.recipes import RECIPES
from medv_ray.on_ray.evaluate import EvalSettings, evaluate
from medv_ray.on_ray.options import PoolSettings
from medv_ray.settings import TOY, ModelSettings

pytestmark = pytest.mark.usefixtures("local_ray")
RECIPE = RECIPES["synthetic"]


def settings(out: Path, **more: object) -> EvalSettings:
    pool = PoolSettings(max_actors=1)
    found = EvalSettings(Path(), out, ModelSettings(path=str(TOY)), limit=24, pool=pool)
    return found._replace(**more)


def test_a_model_twice_blind_and_with_other_words(tmp_path: Path) -> None:
    first = evaluate([RECIPE], settings(tmp_path / "a"))
    again = evaluate([RECIPE], settings(tmp_path / "a"))
    assert first == again
    one = first["recipes"]["synthetic"]
    assert one["headline"]["closed"]["mean"] == one["headline"]["open"]["mean"] == 1.0
    assert one["recipe"]["sampler"]["gen_length"] == 8, "the toy's own, and in the digest"
    assert (one["n"], one["whole"], one["run"]["answered"]) == (24, False, 24)
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == first
    blind = evaluate([RECIPE], settings(tmp_path / "b", blind=True))["recipes"]["synthetic"]
    assert blind["headline"]["open"]["mean"] < 0.8
    told = compare(tmp_path / "a", tmp_path / "b")["synthetic"]["open"]
    assert told["only_first"] > told["only_second"] == 0
    asked = RECIPE.model_copy(update={"prompt": "{question} "})
    answers = tmp_path / "a" / "synthetic" / "answers.jsonl"
    given = {"model": None, "predictions": answers}
    other = evaluate([asked], settings(tmp_path / "c", **given))["recipes"]["synthetic"]
    assert other["headline"] == one["headline"], "answers of a file give the same figures"
    with pytest.raises(DataError, match="E1124: synthetic: prompt, sampler differ"):
        compare(tmp_path / "a", tmp_path / "c")
