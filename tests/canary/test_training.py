"""What preparing a table and training on it write about rows full of canaries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.data.dataset import Dataset
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.vqa.prepare import prepare
from medv_ray.data.vqa.settings import PrepareSettings
from medv_ray.errors import MedvError
from medv_ray.training import run
from medv_ray.training.check import check
from tests.canary import planting, search
from tests.canary.planting import ANSWER, QUESTION, WORD
from tests.unit.training import tiny


def rows() -> Iterator[Row]:
    for number, (name, data) in enumerate(planting.pictures().items()):
        if data and name.count("-") == 1:
            talk = [{"from": "human", "value": f"<image>\n{QUESTION}"}]
            talk.append({"from": "gpt", "value": ANSWER})
            yield Row(f"{WORD}-{number}", (data,), talk)


def test_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_dataset(tmp_path / "data", "tiny", {"train": rows(), "validation": rows()})
    settings = tiny.settings(tmp_path, max_steps=2)
    identity = check(settings)
    run.begin(settings, identity)
    assert [progress.step for progress in run.train_worker(settings, identity)][-1] == 2
    assert search.in_folder(tmp_path / "out") == []
    said = capfd.readouterr()
    assert search.in_text(said.out, said.err, caplog.text) == []


def test_a_row_that_cannot_be_trained_on(tmp_path: Path) -> None:
    bad = [
        Row(f"{WORD}-{way}", (data,), [
            {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER},
        ])
        for way, data in enumerate(planting.bad(planting.png()))
        if data
    ]  # fmt: skip
    write_dataset(tmp_path / "data", "tiny", {"train": bad, "validation": rows()})
    settings = tiny.settings(tmp_path, max_steps=2)

    def train() -> None:
        identity = check(settings)
        run.begin(settings, identity)
        list(run.train_worker(settings, identity))

    with pytest.raises(MedvError) as caught:
        train()
    assert search.in_text(str(caught.value), repr(caught.value)) == []
    assert not (tmp_path / "out").exists() or search.in_folder(tmp_path / "out") == []


def test_preparing_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = planting.write_table(tmp_path, "jsonl")
    given = {"kind": "table", "source": str(archive / "cases.jsonl"), "out": str(tmp_path / "data")}
    summary = prepare(PrepareSettings.model_validate({**given, "splits": ("train",)}))
    assert len(Dataset.open(tmp_path / "data", "train")) >= 4
    said = capfd.readouterr()
    assert search.in_text(said.out, said.err) == []
    assert search.in_value(summary) == []
