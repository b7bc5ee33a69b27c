"""The page of training rows: what it shows, that nothing of a row becomes markup, its seed."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.data.conversations import encode_conversation
from medv_ray.data.dataset import Dataset, image_path
from medv_ray.data.dataset_writer import Row, write_dataset
from medv_ray.data.prompts import load_tokenizer
from medv_ray.data.thumbnail import without_padding
from medv_ray.markers import IMAGE_SLOT
from medv_ray.settings import TOY, PromptSettings
from medv_ray.training.preview import preview, spread

PROMPT = PromptSettings(token_after_image="training")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TOY)


def jpeg(size: tuple[int, int] = (64, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, *questions: str, answer: str = "yes") -> Dataset:
    rows = [
        Row(
            f"r{number}",
            (jpeg(),),
            [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
            "closed",
        )
        for number, question in enumerate(questions)
    ]
    write_dataset(folder, "toy", {"train": rows})
    return Dataset.open(folder)


def strips(page: str) -> list[list[tuple[str, str]]]:
    """(class, text) of the tokens of each strip: labels, noised, labels, ..."""
    return [
        re.findall(r'<span class="(\w+)"[^>]*>(.*?)</span>', strip, re.S)
        for strip in re.findall(r'<div class="tokens">(.*?)</div>', page, re.S)
    ]


def test_tokens_targets_and_masks(tmp_path: Path, tokenizer: Any) -> None:
    data = write(tmp_path / "d", "<image>\nis it red?")
    labels, noised = strips(preview(data, tokenizer, prompt=PROMPT))
    ids, wanted = encode_conversation(tokenizer, data[0].conversations, PROMPT, 1)
    kinds = [
        "image" if token == IMAGE_SLOT else "target" if label == token else "given"
        for token, label in zip(ids, wanted, strict=True)
    ]
    assert [kind for kind, _ in labels] == kinds
    masked = [place for place, (kind, _) in enumerate(noised) if kind == "mask"]
    assert all(kinds[place] == "target" for place in masked)
    others = [token for place, token in enumerate(noised) if place not in masked]
    assert others == [token for place, token in enumerate(labels) if place not in masked]


def test_the_page_repeats_and_follows_its_seed(tmp_path: Path, tokenizer: Any) -> None:
    data = write(tmp_path / "d", *["<image>\nis it red?"] * 4)
    first = preview(data, tokenizer, prompt=PROMPT)
    assert preview(data, tokenizer, prompt=PROMPT) == first
    assert strips(preview(data, tokenizer, prompt=PROMPT, seed=1)) != strips(first)
    # a row's noise does not depend on how many others are shown
    assert strips(preview(data, tokenizer, prompt=PROMPT, num_rows=1)) == strips(first)[:2]


def test_the_alignment_template(tmp_path: Path, tokenizer: Any) -> None:
    data = write(tmp_path / "d", "<image>\ndropped words")
    labels, _ = strips(preview(data, tokenizer, template="plain"))
    assert labels[0] == ("image", "image")
    assert {kind for kind, _ in labels[1:]} == {"target"}


def test_nothing_of_a_row_becomes_markup(tmp_path: Path, tokenizer: Any) -> None:
    data = write(tmp_path / "d", '<script>alert("x")</script>', answer='"><img src=x onerror=y>')
    page = preview(data, tokenizer)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_a_row_that_cannot_be_shown_says_why(tmp_path: Path, tokenizer: Any) -> None:
    data = write(tmp_path / "d", "<image><image> two places, one image", "<image>\nfine?")
    sha = data[0].images[0]
    image_path(tmp_path / "d", sha).write_bytes(b"changed")
    page = preview(data, tokenizer)
    assert "marks 2 images, not 1" in page
    assert page.count("are not those that were prepared") == 2
    assert len(strips(page)) == 2


@pytest.mark.parametrize(
    ("total", "count", "want"), [(3, 20, [0, 1, 2]), (10, 2, [0, 5]), (7, 7, list(range(7)))]
)
def test_rows_are_spread_evenly(total: int, count: int, want: list[int]) -> None:
    assert spread(total, count) == want


@pytest.mark.parametrize("size_wh", [(64, 32), (32, 64), (50, 50), (999, 3)])
def test_thumbnails_have_no_padding(size_wh: tuple[int, int]) -> None:
    tile = np.zeros((320, 320, 3), np.uint8)
    height, width, _ = without_padding(tile, size_wh).shape
    assert max(height, width) == 320
    assert width / height == pytest.approx(size_wh[0] / size_wh[1], rel=0.05)


def test_command(tmp_path: Path) -> None:
    write(tmp_path / "d", *["<image>\nis it red?"] * 3)
    out = tmp_path / "page.html"
    run = ["data", "preview", "--data", str(tmp_path / "d"), "--rows", "2", "--out", str(out)]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert "2 of 3 rows" in result.output
    assert out.read_text().count("data:image/jpeg;base64,") == 2


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--split", "test"], "E1113"),
        (["--template", "x"], "--template"),
        (["--system", "x"], "system"),
        (["--model", "nowhere"], "E1401"),
        (["--out", "/nowhere/page.html"], "E1511"),
    ],
)
def test_command_refuses(tmp_path: Path, more: list[str], word: str) -> None:
    write(tmp_path / "d", "<image>\nis it red?")
    run = ["data", "preview", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "p.html")]
    result = CliRunner().invoke(app, [*run, *more])
    assert result.exit_code in (1, 2)
    assert word in result.output
    assert str(tmp_path) not in result.output
