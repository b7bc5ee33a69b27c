"""A dataset that a stage cannot be trained on is refused before the first step."""

import io
import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image

from medv_ray.data.dataset import Dataset, Example, image_path
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.images import prepare
from medv_ray.errors import DataError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.model.config import LanguageConfig, ModelConfig, VisionConfig
from medv_ray.model.medv import Medv
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.lengths import ImageTokens, tile_settings
from medv_ray.training.stages import StageSettings
from medv_ray.training.survey import has_empty_answer, survey
from tests.unit.training import tiny

pytestmark = pytest.mark.integration


def write(folder: Path, *answers: str) -> Dataset:
    rows = [
        Row(str(n), (b"a",), [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}])
        for n, answer in enumerate(answers)
    ]
    write_dataset(folder, "toy", {"train": rows})
    return Dataset.open(folder)


def encode(example: Example, number: int) -> tuple[list[int], list[int]]:
    """An image, and a token per letter of the answer; `!` cannot be encoded, `-` is no target."""
    answer = example.conversations[1]["value"]
    if answer == "!":
        raise DataError("E1304", "the text holds a NUL character.")
    labels = [IGNORE if letter == "-" else ord(letter) for letter in answer]
    return [IMAGE_SLOT, *map(ord, answer)], [IGNORE, *labels]


def test_lengths_count_image_tokens_once_a_digest(tmp_path: Path) -> None:
    asked = []

    def image_tokens(sha256: str, several: bool) -> int:
        asked.append((sha256, several))
        return 10

    found = survey(write(tmp_path / "d", "abc", "ab-d"), encode, image_tokens, 14)
    assert found == (2, 27, 14, 6, 1)
    assert [several for _, several in asked] == [False]


def test_rows_are_encoded_by_their_number(tmp_path: Path) -> None:
    numbers = []

    def note(example: Example, number: int) -> tuple[list[int], list[int]]:
        numbers.append((example.id, number))
        return encode(example, number)

    data = write(tmp_path / "d", *"abc")
    survey(data, note, lambda *_: 1, 99)
    assert numbers == [(example.id, number) for number, example in enumerate(data)]


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        (
            *(["a", "bcde", "abcdef"], "E1118"),
            "2 rows of train are over 13 tokens (stage.max_length), the longest 16: 1, 2. Leave",
        ),
        (["a", "--"], "E1119", "1 rows of train are without a target: 1. Leave"),
        (["", "a", " "], "E1117", "2 rows of train are with an empty answer: 0, 2. Leave"),
        (["a", "!"], "E1304", "row 1 of train: the text holds"),
    ],
)
def test_refusals(tmp_path: Path, answers: list[str], code: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        survey(write(tmp_path / "d", *answers), encode, lambda *_: 10, 13)
    assert caught.value.code == code
    assert caught.value.reason
    assert caught.value.detail.startswith(words)


def test_a_first_message_of_the_assistant_may_be_empty() -> None:
    """It is dropped, as the reference does."""
    talk = [("gpt", " "), ("human", "q"), ("gpt", "a")]
    said = [{"from": who, "value": value} for who, value in talk]
    assert not has_empty_answer(Example("1", said, ()))
    assert has_empty_answer(Example("1", [*said[:2], said[0]], ()))


def test_missing_images(tmp_path: Path) -> None:
    data = write(tmp_path / "d", "a", "b")
    image_path(tmp_path / "d", data[0].images[0]).unlink()
    with pytest.raises(
        DataError, match="2 rows of train are without an image that they name: 0, 1[.]"
    ):
        survey(data, encode, lambda *_: 10, 99)


SIZES = [(32, 32), (64, 33), (33, 64), (200, 17), (97, 95), (31, 190), (160, 160)]


@pytest.mark.parametrize("max_tiles", ["anyres", "anyres_max_2", "square", "pad"])
@pytest.mark.parametrize("merge", ["flat", "spatial_unpad"])
def test_image_tokens_are_those_that_the_model_makes(
    tmp_path: Path, max_tiles: str, merge: str
) -> None:
    language = LanguageConfig(40, 32, 64, 1, 2, 2)
    config = ModelConfig(
        language, VisionConfig(16, 32, 1, 2, 32, 16), max_tiles, mm_patch_merge_type=merge
    )
    model, stage = Medv(config), StageSettings(name="x", lr=1.0, batch_size=1)
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    pictures = [picture(*size) for size in SIZES] + [picture(90, 30, orientation=6)]
    rows = [Row(str(n), (data,), talk) for n, data in enumerate(pictures)]
    write_dataset(tmp_path / "d", "toy", {"train": [*rows, Row("two", tuple(pictures[:2]), talk)]})
    dataset = Dataset.open(tmp_path / "d")
    with closing(ImageTokens(dataset, stage, config)) as image_tokens:
        for example in dataset:
            several = len(example.images) > 1
            cut = tile_settings(config, stage, several)
            for sha256 in example.images:
                ready = prepare(dataset.image(sha256), stage.image, cut)
                with torch.no_grad():
                    made = model.encode_image(torch.from_numpy(ready.tiles), ready.size_wh)
                assert image_tokens(sha256, several) == len(made), ready.size_wh


def picture(width: int, height: int, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    shade = Image.new("RGB", (width, height), (width % 256, height, 90))
    shade.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("aspect", ["checkpoint", "square", "pad"])
def test_a_damaged_header_is_found(tmp_path: Path, aspect: str) -> None:
    config = ModelConfig(LanguageConfig(40, 32, 64, 1, 2, 2), VisionConfig(16, 32, 1, 2, 32, 16))
    data = write(tmp_path / "d", "a", "b")
    stage = StageSettings.model_validate({"name": "x", "lr": 1, "batch_size": 1, "aspect": aspect})
    said = "E1202: 2 rows of train have a picture that is refused: 0, 1[.] Row 0: 1 bytes are none"
    with (
        closing(ImageTokens(data, stage, config)) as image_tokens,
        pytest.raises(DataError, match=said),
    ):
        survey(data, encode, image_tokens, 99)


def test_pictures_over_a_limit_are_told_before_the_first_step(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, image={"max_pixels": 16})
    said = r"E1204: 18 rows of train have .*: 0, 1, 2, 3, 4, [.]{3}[.] Row 0: .*allowed are 16[.]"
    with pytest.raises(DataError, match=said) as caught:
        check(settings)
    assert caught.value.exit_code == 2


def test_each_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.settings(tmp_path)
    dataset, asked = Dataset.open(settings.data), []
    image = Dataset.image
    monkeypatch.setattr(Dataset, "image", lambda d, key: asked.append(key) or image(d, key))
    config = ModelConfig(LanguageConfig(40, 32, 64, 1, 2, 2), VisionConfig(16, 32, 1, 2, 32, 16))
    with closing(ImageTokens(dataset, settings.stage, config)) as image_tokens:
        for several in (False, True):
            for example in dataset:
                [image_tokens(sha256, several) for sha256 in example.images]
    assert sorted(asked) == sorted({sha256 for row in dataset for sha256 in row.images})


def test_a_stage_is_surveyed_before_it_begins(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    identity = check(settings)
    found = json.loads((run.begin(settings, identity) / "run.json").read_text())["identity"]
    assert found["survey"]["rows"] == 19
    assert found["survey"]["images"] > 2
    assert found["survey"]["longest"] * 19 - found["survey"]["tokens"] > 0
    assert not (tmp_path / "out" / "checkpoints").exists()
    stage = settings.stage.model_copy(update={"max_length": found["survey"]["longest"] - 1})
    with pytest.raises(DataError, match=r"E1118: .*\(stage.max_length\)") as caught:
        check(settings.model_copy(update={"stage": stage}))
    assert caught.value.exit_code == 2


def test_the_models_own_limit_of_a_row_counts(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path)
    config = tmp_path / "base" / "config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"tokenizer_model_max_length": 20}))
    with pytest.raises(DataError, match=r"E1118: .*over 20 tokens \(the model's own limit\)"):
        check(settings)
