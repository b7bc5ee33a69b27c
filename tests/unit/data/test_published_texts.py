"""The recipes' digests of published splits, against the real releases where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from medv_ray.data.dataset import Example
from medv_ray.data.dataset_writer import Row
from medv_ray.data.vqa.prepare import KINDS, find_form, split_rows
from medv_ray.evaluation import recipes
from tests.unit.data.releases import real, settings


class AnyPicture:
    """Stands for the pictures, which are not in the digests."""

    def read_all(self, images: Sequence[bytes | str]) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
        return (b"",) * len(images), ()


class Rows(list[Example]):
    split = "test"


@pytest.mark.parametrize(
    ("name", "folder"), [("vqa-rad", "vqa_rad"), ("slake", "slake"), ("pathvqa", "pathvqa")]
)
def test_the_published_split_has_the_recipes_digest(tmp_path: Path, name: str, folder: str) -> None:
    recipe = recipes.RECIPES[name]
    asked = settings(recipe.dataset, real(folder)).model_copy(update={"splits": ("test",)})
    form, found = find_form(asked)
    kind = KINDS[recipe.dataset]
    pictures = cast(Any, AnyPicture())
    made = [*split_rows([], "test", found["test"], form, asked, pictures, kind)]
    rows = [row for row in made if isinstance(row, Row)]
    examples = Rows(
        Example(row.id, list(row.conversations), (), row.answer_type, row.question_type)
        for row in rows
    )
    questions = recipes.questions_of(cast(Any, examples))
    assert recipe.texts_sha256 is not None
    recipes.check_split(recipe, questions)
    groups = {group for row in rows for group in row.groups}
    assert groups == {"vqa-rad": {"organ"}, "slake": {"modality", "location"}}.get(name, set())
