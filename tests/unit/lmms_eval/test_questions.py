"""Task files for lmms-eval: documents of a prepared dataset, our metrics, pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from PIL import Image
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.errors import DataError, SettingsError
from medv_ray.evaluation.metrics import METRICS, Judged, values
from medv_ray.evaluation.recipes import RECIPES
from medv_ray.lmms_eval import questions
from medv_ray.lmms_eval.pictures import encoded
from medv_ray.prepared import INDEX


class Rows:
    """Stands for datasets.Dataset."""

    def __init__(self, columns: Mapping[str, list[Any]]) -> None:
        self.columns = columns

    @classmethod
    def from_dict(cls, columns: Mapping[str, list[Any]]) -> Rows:
        return cls(columns)

    def docs(self) -> list[dict[str, Any]]:
        return [
            dict(zip(self.columns, cells, strict=True))
            for cells in zip(*self.columns.values(), strict=True)
        ]


def picture(value: int, mode: str = "RGB") -> Image.Image:
    shape = (20, 24, len(Image.new(mode, (1, 1)).getbands()))
    grey = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) + np.uint8(value)
    return Image.frombytes(mode, (24, 20), grey.tobytes())


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [
        Row("5", (jpeg(0),), on_one_image([("Is it?", "yes")]), "closed"),
        Row("2", (jpeg(9),), on_one_image([("Where?", "left lung")]), "open"),
    ]
    write_dataset(tmp_path / "vqa-rad", "vqa-rad", {"test": rows}, licence="")
    monkeypatch.setenv("MEDV_DATA", str(tmp_path))
    monkeypatch.setenv("MEDV_ANY_SPLIT", "1")
    return tmp_path


def test_documents_and_metrics(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert questions.vqa_rad_files == {"test": str(data / "vqa-rad" / INDEX)}
    docs = questions.vqa_rad_documents(Rows({})).docs()
    assert [(d["id"], questions.text(d), d["answer"], d["kind"]) for d in docs] == [
        ("5", "Is it?", "yes", "closed"),
        ("2", "Where?", "left lung", "open"),
    ]
    assert [encoded(questions.pictures(doc)) for doc in docs] == [(jpeg(0),), (jpeg(9),)]
    for doc, answer in zip(docs, ["Yes.", "the left"], strict=True):
        judged = Judged(doc["id"], answer, doc["answer"], doc["kind"])
        wanted = {name: of[doc["id"]] for name, of in values([judged]).items() if of}
        assert questions.process_results(doc, [answer]) == wanted
    assert questions.process_results(docs[1], ["the left"])["llava_med.recall"] == 0.5
    monkeypatch.setenv("MEDV_DATA", str(data / "vqa-rad"))
    assert questions.folder("vqa-rad") == data / "vqa-rad"


def test_another_split_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDV_ANY_SPLIT")
    with pytest.raises(DataError, match="E1122: vqa-rad: questions 2, the recipe has 451"):
        questions.vqa_rad_documents(Rows({}))
    with pytest.raises(SettingsError, match="no pathvqa/dataset.json"):
        questions.__getattr__("pathvqa_files")
    monkeypatch.delenv("MEDV_DATA")
    with pytest.raises(SettingsError, match="MEDV_DATA is not set"):
        questions.folder("vqa-rad")
    assert not hasattr(questions, "other_files")


def test_task_files() -> None:
    """Each function that they name exists, and they ask for all metrics, as the recipes do."""
    folder = Path(CliRunner().invoke(app, ["lmms-tasks"]).stdout.strip())

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    named: list[str] = []
    Loader.add_constructor("!function", lambda loader, node: named.append(node.value))
    found = {path.name: yaml.load(path.read_text(), Loader) for path in folder.iterdir()}
    assert sorted(found) == ["_medv_yaml", "medv_pathvqa.yaml", "medv_vqa_rad.yaml"]
    room = questions.__name__
    assert len(named) == 7
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert module == room
        assert attribute in vars(questions) or attribute in questions.FILES
    shared = found["_medv_yaml"]
    free = [name for name, metric in METRICS.items() if not metric.of_choices]
    assert [one["metric"] for one in shared["metric_list"]] == free
    for name in questions.FILES.values():
        sampler = RECIPES[name].sampler
        assert sampler is not None
        assert shared["generation_kwargs"]["max_new_tokens"] == sampler.gen_length
        assert shared["test_split"] == RECIPES[name].split


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_pictures_are_encoded_without_loss(mode: str) -> None:
    [data] = encoded([picture(3, mode)])
    again = Image.open(io.BytesIO(data))
    assert again.mode == mode
    assert again.tobytes() == picture(3, mode).tobytes()


def test_pictures_turned_and_unusual() -> None:
    turned = picture(1)
    turned.getexif()[0x0112] = 6
    [data] = encoded([turned])
    assert Image.open(io.BytesIO(data)).size == (20, 24)
    [data] = encoded([picture(1).convert("YCbCr")])
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert encoded(None) == encoded([]) == ()
    with pytest.raises(SettingsError, match="shows a str, and llada_medv sees pictures only"):
        encoded(["film.mp4"])
