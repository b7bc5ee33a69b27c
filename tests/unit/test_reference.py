"""The reference pages are those that the code makes; the site's navigation has every page."""

from pathlib import Path

import pytest
import yaml

from medv_ray.errors import CATALOGUE
from tests.doc_commands import ROOT, reference

FOLDER = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "errors.md", "columns.md"])
def test_pages_are_as_the_code_is(name: str) -> None:
    made = reference()["PAGES"][name]()
    assert (FOLDER / name).read_text() == made, "run: python docs/write_reference.py"


def test_every_setting_says_what_it_means() -> None:
    made = reference()
    silent = {
        f"{model.__name__}.{name}"
        for root in made["ROOTS"].values()
        for _, model in made["groups_of"](root)
        for name, field in model.model_fields.items()
        if not field.description and made["group_of"](model, name) is None
    }
    assert silent == set()


def test_every_column_and_error_is_told() -> None:
    made = reference()
    assert set(made["column_meanings"]()) == set(made["schema"].ANSWER_SCHEMA.names)
    errors = made["errors_page"]()
    assert all(f'id="{code.lower()}"' in errors for code in CATALOGUE)


def test_flags_stand_beside_the_settings_that_they_fill() -> None:
    flags_of = reference()["flags_of"]
    assert flags_of("medv score")["archive.encoding"] == "--encoding"
    assert flags_of("medv score")["model.path"] == "--model"
    assert "model.adapter" not in flags_of("medv serve")
    assert flags_of("medv serve")["adapters"] == "--adapter"
    assert flags_of("medv plan train")["rows.num_rows"] == "--rows"
    assert flags_of("jobs/finetune_pathvqa.py")["validation.every"] == "--validate-every"


def pages_of(node: object) -> set[str]:
    if isinstance(node, str):
        return {node}
    inner = node.values() if isinstance(node, dict) else node
    assert isinstance(inner, list | type({}.values()))
    return {page for one in inner for page in pages_of(one)}


def test_navigation_has_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in Path(docs).rglob("*.md")}
    assert pages_of(nav) == there
