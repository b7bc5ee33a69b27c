"""What the page's sources repeat of the package's tables; the built page is theirs."""

from __future__ import annotations

import hashlib
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


def test_the_page_was_built_from_these_sources() -> None:
    """As web/vite.config.ts does it. Where it fails: `npm ci && npm run build` in web/."""
    digest = hashlib.sha256()
    paths = {file.relative_to(WEB.parent).as_posix(): file for file in WEB.rglob("*.*")}
    for name in sorted(name for name in paths if not name.endswith(".test.ts")):
        digest.update(f"{name}\0".encode() + paths[name].read_bytes())
    built = (ROOT / "medv_ray" / "serving" / "page" / "index.html").read_text()
    assert f'<meta name="sources" content="{digest.hexdigest()}">' in built
