"""A dataset that a stage cannot be trained on is refused before the first step."""

from pathlib import Path

import pytest

from medv_ray.data.conversations import IGNORE
from medv_ray.data.dataset import Dataset, Example, image_path
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.prompts import IMAGE_SLOT
from medv_ray.errors import DataError
from medv_ray.training.survey import survey


def write(folder: Path, *answers: str) -> Dataset:
    rows = [
        Row(str(n), (b"a",), [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}])
        for n, answer in enumerate(answers)
    ]
    write_dataset(folder, "toy", {"train": rows})
    return Dataset.open(folder)


def encode(example: Example) -> tuple[list[int], list[int]]:
    """An image, and a token per letter of the answer; `!` cannot be encoded, `-` is no target."""
    answer = example.conversations[1]["value"]
    if answer == "!":
        raise DataError("E1304", "the text holds a NUL character.")
    labels = [IGNORE if letter == "-" else ord(letter) for letter in answer]
    return [IMAGE_SLOT, *map(ord, answer)], [IGNORE, *labels]


def test_lengths_count_image_tokens_once_a_digest(tmp_path: Path) -> None:
    asked = []

    def image_tokens(sha256: str) -> int:
        asked.append(sha256)
        return 10

    found = survey(write(tmp_path / "d", "abc", "ab-d"), encode, image_tokens, 14)
    assert found == (2, 27, 14, 6, 1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        (["a", "bcde", "abcdef"], "E1118", "2 rows of train are over 13 tokens, the longest 16: 1"),
        (["a", "--"], "E1119", "1 rows of train are without a target: 1"),
        (["a", "!"], "E1304", "row 1 of train: the text holds"),
    ],
)
def test_refusals(tmp_path: Path, answers: list[str], code: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        survey(write(tmp_path / "d", *answers), encode, lambda _: 10, 13)
    assert caught.value.code == code
    assert caught.value.reason
    assert caught.value.detail.startswith(words)


def test_missing_images(tmp_path: Path) -> None:
    data = write(tmp_path / "d", "a")
    image_path(tmp_path / "d", data[0].images[0]).unlink()
    with pytest.raises(DataError, match="1 images of train are missing"):
        survey(data, encode, lambda _: 10, 99)
