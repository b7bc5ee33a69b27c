"""What is wrong with rows of the validation split is told before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.errors import DataError, MedvError
from medv_ray.settings import SamplerSettings
from medv_ray.training.check import check
from medv_ray.training.validation_rows import check_validation
from tests.unit.training import tiny
from tests.unit.training.test_validation import job, spec_of


def rows_with(answers: list[str]) -> Iterator[Row]:
    for number, answer in enumerate(answers):
        talk = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": answer}]
        yield Row(str(number), (), talk)


@pytest.mark.parametrize(
    ("stage", "chosen", "said"),
    [
        ({}, {"split": "test"}, "E1113: validation: the dataset has no split 'test'; it has train"),
        ({}, {"split": "test"}, "--set validation.split=NAME"),
        ({}, {"split": "train"}, "E1001: .*is the split that is trained on"),
        ({}, {"split": "empty"}, "E1117: 2 rows of empty are with an empty answer: 1, 2"),
        ({}, {"split": "asked"}, "E1109: row 0 of asked"),
        ({"template": "pairs"}, {"best": "accuracy"}, "E1001: .*asks no questions"),
        ({}, {"sampler": SamplerSettings(gen_length=256, block_length=256, steps=256)}, "E1118: 5"),
    ],
)
def test_what_cannot_be_validated_on_is_told_first(
    home: Path, tmp_path: Path, stage: dict[str, Any], chosen: dict[str, Any], said: str
) -> None:
    data = tmp_path / "data"
    asked = [Row("0", (), [{"from": "human", "value": "Is it?"}])]
    splits = {
        "train": tiny.rows(),
        "validation": tiny.rows(8),
        "empty": rows_with(["yes", "", " "]),
        "asked": iter(asked),
    }
    write_dataset(data, "tiny", splits)
    settings = job(home, tmp_path / "out", stage, **chosen).model_copy(update={"data": str(data)})
    with pytest.raises(MedvError, match=said) as caught:
        check(settings, spec_of(settings))
    assert caught.value.exit_code == 2
    assert str(tmp_path) not in str(caught.value)


def test_no_survey_without_validation(home: Path, tmp_path: Path) -> None:
    settings = job(home, tmp_path, every=None, split="missing")
    assert check_validation(settings, None, None) is None  # type: ignore[arg-type]
    with pytest.raises(DataError):
        check(job(home, tmp_path, split="missing"))
