"""What a model card says of base, data, recipe, results and licence."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import write_dataset
from medv_ray.model import weights
from medv_ray.settings import override
from medv_ray.training.card import base_licence, card
from medv_ray.training.job import TrainSettings
from medv_ray.training.stages import StageSettings
from tests.unit.training import tiny

FIGURES = {
    "step": 4, "rows": 7, "loss": 1.25, "accuracy": 3 / 7, "accuracy_open": None,
    "accuracy_closed": 0.5, "rows_open": 0, "rows_closed": 6,
}  # fmt: skip


@pytest.fixture
def settings(home: Path, tmp_path: Path) -> TrainSettings:
    """A job whose base and data may be changed."""
    base = tmp_path / "runs" / "stage1" / "model"
    shutil.copytree(home / "base", base)
    write_dataset(tmp_path / "data", "tiles | of 2", {"train": tiny.rows()}, licence="CC0\n1.0")
    changed = {"model": str(base), "data": str(tmp_path / "data")}
    return tiny.settings(home, lr=0.25).model_copy(update=changed)


def identity(settings: TrainSettings) -> dict[str, Any]:
    return {
        "base_sha256": weights.digest(settings.model),
        "data_sha256": Dataset.open(settings.data).digest,
        "survey": {"rows": 19, "images": 6, "targets": 99},
        "code": {"medv_ray": "0.1"},
    }


def write(settings: TrainSettings, **manifest: Any) -> str:
    manifest = {"step": 4, "num_steps": 6} | manifest
    return card(settings, identity(settings), manifest, "float32")


def test_base_data_and_recipe(settings: TrainSettings, tmp_path: Path) -> None:
    said = write(settings)
    known = identity(settings)
    assert f"| base | stage1/model, sha256 {known['base_sha256']} |" in said
    assert "| dataset | tiles of 2 (train 19) |" in said
    assert f"19 rows, 6 pictures, 99 targets, sha256 {known['data_sha256']}" in said
    assert "| licence of the data | CC0 1.0 |" in said
    assert "| lr | 0.25 |" in said
    assert "4 of 6 updates" in said
    assert "looked at no validation split" in said
    assert "no medical device" in said
    assert str(tmp_path) not in said
    assert "all updates" in write(settings, step=6)


def test_epochs_are_named_where_they_end_the_stage(settings: TrainSettings) -> None:
    stage = settings.stage.model_copy(update={"epochs": 1000, "max_steps": 6})
    settings = settings.model_copy(update={"stage": stage})
    said = write(settings, num_steps=6)
    assert "| max_steps | 6 |" in said
    assert "| epochs |" not in said
    assert "| epochs | 1000.0 |" in write(settings, num_steps=5)


def test_how_it_is_asked_as_it_was_taught(settings: TrainSettings) -> None:
    def asking(**changed: Any) -> str:
        stage = StageSettings.model_validate(settings.stage.model_dump() | changed)
        said = write(settings.model_copy(update={"stage": stage}))
        return said.partition("## Asking\n\n")[2].partition("\n")[0]

    usual = {"system": "general", "token_after_image": "reference", "aspect": "checkpoint"}
    assert asking(**usual) == "Scoring asks as the training did, by default."
    other = {"system": "medical", "token_after_image": "training", "aspect": "square"}
    said = asking(**other, image={"window": "40/400", "background": 0, "formats": ["PNG"]})
    program, command, dots, *parts = shlex.split(said.split("`")[1])
    assert (program, command, dots) == ("medv", "score", "...")
    assert set(parts[::2]) == {"--set"}
    values = override({}, parts[1::2])
    assert values == {
        "prompt": {"system": "medical", "token_after_image": "training"},
        "image": {"aspect": "square", "window": "40/400", "background": 0, "formats": ["PNG"]},
    }
    assert asking(template="plain", trainable=["projector"]) == ""


def test_results(settings: TrainSettings) -> None:
    state = {"by": "loss", "last": FIGURES, "best": FIGURES | {"step": 2, "loss": None}}
    said = write(settings, validation=state)
    assert "On rows of a validation split; answers" in said  # as older manifests are
    assert "On 7 rows of split dev2; answers" in write(
        settings, validation=state | {"split": "dev2", "rows": 7}
    )
    assert "| last | 4 | 1.2500 | 42.9% of 7 | - | 50.0% of 6 |" in said
    assert "| best | 2 | - | 42.9% of 7 | - | 50.0% of 6 |" in said


def test_data_that_is_gone_or_changed_is_told(settings: TrainSettings) -> None:
    known = identity(settings)
    index = Path(settings.data) / "dataset.json"
    said = json.loads(index.read_text())
    said["counts"]["train"]["sha256"] = "0" * 64
    index.write_text(json.dumps(said))
    args = (known, {"step": 6, "num_steps": 6}, "float32")
    assert "| dataset | changed since" in card(settings, *args)
    shutil.rmtree(settings.data)
    assert "| dataset | not where it lay" in card(settings, *args)


def test_the_licence_is_the_bases(settings: TrainSettings) -> None:
    """By whichever way it is named, and over a chain of stages."""
    base = Path(settings.model)
    assert base_licence(base) == (None, None)
    assert "names none; the base's holds here too" in write(settings)
    note = {"licence": {"text": "By: agreement\nof 2024", "from": "--licence"}}
    (base / "import.json").write_text(json.dumps(note))
    first = write(settings)
    assert 'license: other\nlicense_name: "By: agreement of 2024"\n---' in first
    assert "As its base, stage1/model: By: agreement of 2024." in first
    (base / "import.json").unlink()
    (base / "README.md").write_text(first)  # the next stage's base
    assert write(settings) == first
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert "\nlicense: apache-2.0\n---" in write(settings)
    (base / "LICENSE").write_text("text")
    assert "the text is in [LICENSE](LICENSE)" in write(settings)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("license: other\nlicense_name: llama3.1  # theirs", "llama3.1"),
        ("license: other\nlicense_name: 'ours: \\q'", "ours: \\q"),
        ('license: other\nlicense_name: "bad \\q"', '"bad \\q"'),
        ("license: other", None),
        ('license: "apache-2.0"', "apache-2.0"),
        ("license:\n- apache-2.0\n- mit", "apache-2.0"),
        ("license:\nlanguage: en", None),
    ],
)
def test_a_licence_as_cards_of_the_hub_name_it(tmp_path: Path, head: str, name: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    assert base_licence(tmp_path) == (name, None)


def test_the_card_is_no_part_of_the_digest(settings: TrainSettings) -> None:
    base = Path(settings.model)
    before = weights.digest(base)
    (base / "README.md").write_text(write(settings))
    assert weights.digest(base) == before
    weights.load(base)
