"""What the page's sources repeat of the package's tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medv_ray.formats import FORMATS

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web" / "src"


def table(file: str, name: str) -> dict[str, str]:
    """An object literal of the page: words to text."""
    (body,) = re.findall(
        rf"const {name}: Record<string, string> = {{(.*?)}};", (WEB / file).read_text(), re.DOTALL
    )
    return dict(re.findall(r'(\w+): "([^"]*)"', body))


def test_types_of_files_are_those_of_the_formats() -> None:
    ours = {ending[1:]: one.media_type for one in FORMATS for ending in one.endings}
    assert table("picture.ts", "TYPES") == ours


@pytest.mark.parametrize(
    "word",
    [
        *("palette", "palette8", "palette16_scaled", "colour16_scaled", "grey16_scaled"),
        *("alpha_composited", "alpha_opaque", "alpha_ignored", "scans_missing", "trailing_bytes"),
        *("image_mark", "image_name_case", "id_missing", "images_moved"),
    ],
)
def test_warnings_have_a_sentence(word: str) -> None:
    assert word in table("warnings.ts", "SENTENCES")
