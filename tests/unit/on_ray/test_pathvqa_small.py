"""The recipe of the small model, a few steps with the plain engine: data, tokenizer, folder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medv_ray.data.conversations import on_one_image
from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.prompts import SYSTEM_SENTENCES, load_tokenizer
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.on_ray import pathvqa_small as recipe
from medv_ray.on_ray.train import Trained
from medv_ray.settings import AnswerSettings, ModelSettings
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.export import export
from medv_ray.training.job import MODEL, TrainSettings
from medv_ray.training.stages import ShardSettings

pytestmark = pytest.mark.integration

PAIRS = [
    ("what is present?", "liver"),
    ("is the liver present?", "yes"),
    ("what is shown?", "a large cell"),
]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "data"
    rows = (
        Row(f"{n}-{i}", (picture(n),), on_one_image([pair]), "closed" if i == 1 else "open")
        for n in range(8)
        for i, pair in enumerate(PAIRS)
    )
    write_dataset(folder, "pathvqa-hf", {"train": rows})
    return folder


def test_captions_are_a_pictures_open_answers(data: Path, tmp_path: Path) -> None:
    made = Dataset.open(recipe.captions(Dataset.open(data), tmp_path / "captions"))
    assert len(made) == 8
    assert {example.conversations[1]["value"] for example in made} == {"a large cell, liver"}
    assert {len(example.images) for example in made} == {1}


def test_a_few_steps_make_a_folder_that_answers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def train(settings: TrainSettings, **_: object) -> Trained:
        calls.append(settings.stage.name)
        alone = {"shard": ShardSettings(engine="plain", dtype="float32"), "watch": ()}
        settings = settings.model_copy(update=alone)
        identity = check(settings)
        run.begin(settings, identity)
        *_, last = run.train_worker(settings, identity)
        export(settings, Path(settings.out) / MODEL)
        return Trained(last.step, last.step, last.loss, 1.0)

    monkeypatch.setattr(recipe, "train", train)
    monkeypatch.setattr(recipe, "running_ray", lambda address: contextlib.nullcontext())
    sizes = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4}
    stages = tuple(stage.model_copy(update=sizes) for stage in recipe.STAGES)
    made = recipe.make(data, tmp_path / "out", stages, num_workers=1)
    assert calls == ["captions", "chat"]
    assert made.model is not None
    tokenizer = load_tokenizer(made.model)
    for sentence in SYSTEM_SENTENCES.values():
        assert len(tokenizer.encode(sentence or "", add_special_tokens=False)) <= 1
    settings = AnswerSettings(sampler=recipe.SAMPLER)
    with Predictor.load(ModelSettings(path=str(made.model)), settings) as predictor:
        (answer,) = predictor.answer([Request("what is present?", (picture(1),))])
    assert isinstance(answer, Answer)
    assert answer.forward_passes > 0


def test_the_chat_stage_validates_where_there_is_a_split(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe.validation(data).every is None
    assert "no split validation" in capsys.readouterr().err
    rows = {"train": [(0, "yes")], "validation": [(1, "no")]}
    splits = {
        split: (Row(str(n), (picture(n),), on_one_image([("is it?", a)])) for n, a in pairs)
        for split, pairs in rows.items()
    }
    write_dataset(tmp_path / "data", "pathvqa-hf", splits)
    chosen = recipe.validation(tmp_path / "data")
    chat = recipe.STAGES[-1]
    assert chosen.every is not None
    assert 5 <= (chat.max_steps or 0) / chosen.every <= 7
    assert capsys.readouterr().err == ""
