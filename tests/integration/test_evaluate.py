"""`medv eval` through the job that scores archives."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medv_ray.data import synthetic
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
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


@pytest.mark.slow
def test_a_model_twice_blind_and_with_other_words(tmp_path: Path) -> None:
    first = evaluate([RECIPE], settings(tmp_path / "a"))
    again = evaluate([RECIPE], settings(tmp_path / "a"))
    assert first == again
    one = first["recipes"]["synthetic"]
    assert one["headline"]["closed"]["mean"] == one["headline"]["open"]["mean"] == 1.0
    assert one["recipe"]["sampler"]["gen_length"] == 8, "the toy's own, and in the digest"
    assert (one["n"], one["whole"], one["run"]["answered"]) == (24, False, 24)
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == first
    closed = one["headline"]["closed"]["n"]
    scored = one["choices"]
    assert (scored["n"], scored["without_choices"]) == (closed, 0)
    assert scored["accuracy"]["mean"] == 1.0, "the toy knows its tiles either way"
    assert 0.9 < scored["probability"] <= 1
    free = RECIPE.model_copy(update={"choices": None})
    plain = evaluate([free], settings(tmp_path / "n"))["recipes"]["synthetic"]
    assert "choices" not in plain
    assert plain["headline"] == one["headline"], "free answers do not depend on choices"
    assert plain["recipe_sha256"] != one["recipe_sha256"]
    blind = evaluate([RECIPE], settings(tmp_path / "b", blind=True))["recipes"]["synthetic"]
    assert blind["headline"]["open"]["mean"] < 0.8
    told = compare(tmp_path / "a", tmp_path / "b")["synthetic"]["open"]
    assert told["only_first"] > told["only_second"] == 0
    asked = RECIPE.model_copy(update={"prompt": "{question} "})
    answers = tmp_path / "a" / "synthetic" / "answers.jsonl"
    given = {"model": None, "predictions": answers}
    other = evaluate([asked], settings(tmp_path / "c", **given))["recipes"]["synthetic"]
    assert other["headline"] == one["headline"], "answers of a file give the same figures"
    assert "choices" not in other, "and no choices"
    with pytest.raises(DataError, match="E1124: synthetic: prompt, sampler differ"):
        compare(tmp_path / "a", tmp_path / "c")


def test_multiple_choice_by_letters(tmp_path: Path) -> None:
    """Options reach the prompt and letters are scored; a damaged option costs its row."""
    tiles = [row for row in synthetic.rows(200, split="test") if row.question_type == "colour"][:8]
    colours = sorted({row.answer for row in tiles} | {"magenta", "beige"})
    rows = [
        Row(
            row.id,
            (row.image,),
            on_one_image([(row.question, row.answer)]),
            "closed",
            choices=tuple(colours),
            groups={"modality": "tile"},
        )
        for row in tiles
    ]
    write_dataset(tmp_path / "data", "mine", {"test": rows})
    recipe = RECIPES["pmc-vqa"].model_copy(update={"name": "mine", "sampler": None, "rows": None})
    out = tmp_path / "out"
    evaluate([recipe], settings(out, data=tmp_path / "data"))
    one = json.loads((out / "results.json").read_text())["recipes"]["mine"]
    assert one["headline"]["closed"]["metric"] == "strict.choice"
    assert (one["choices"]["n"], one["run"]["quarantined"]) == (len(tiles), 0)
    assert one["choices"]["groups"]["modality"]["tile"]["choices"]["n"] == len(tiles)
    first = json.loads((out / "mine" / "answers.jsonl").read_text().splitlines()[0])["metadata"]
    assert first["options"] == colours
    assert list(first["choices"]) == list("ABCDEFGHIJ"[: len(colours)])
    assert sum(first["choices"].values()) == pytest.approx(1)
    asked = pq.read_table(out / "mine" / "questions.parquet").to_pylist()[0]
    assert f"\nA. {colours[0]}\nB. {colours[1]}\n" in asked["question"]
    assert compare(out, out)["mine"]["closed"]["difference"]["mean"] == 0
