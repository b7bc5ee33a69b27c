"""What the page's sources repeat of the package's tables; the built page is theirs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from medv_ray.formats import FORMATS

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web" / "src"
PACKAGE = ROOT / "medv_ray"


def table(file: str, name: str) -> dict[str, str]:
    """An object literal of the page: words to text."""
    (body,) = re.findall(
        rf"const {name}: Record<string, string> = {{(.*?)}};", (WEB / file).read_text(), re.DOTALL
    )
    return dict(re.findall(r'"?([\w/]+)"?: "([^"]*)"', body))


def test_types_of_files_are_those_of_the_formats() -> None:
    ours = {one.media_type: " ".join(ending[1:] for ending in one.endings) for one in FORMATS}
    assert table("picture.ts", "TYPES") == ours


def words_of_the_package() -> set[str]:
    """What stands in quotes, with a _, on lines about `words` and `warnings`: of the code that the
    endpoint reads pictures and dialogues with."""
    files = (PACKAGE / "data").glob("*.py")
    about = re.compile(r"\b(words?|warnings|said|MOVED|_PLAIN_WORDS|return)\b")
    word = re.compile(r'(?<!\w)(?<!\w\[)f?"([a-z]+\d*(?:_[a-z0-9]+)+)(?::[^"]*)?"(?! *:)')
    lines = [
        line
        for file in [*files, PACKAGE / "serving" / "dialogue.py"]
        for line in file.read_text().splitlines()
        if about.search(line)
    ]
    return {found for line in lines for found in word.findall(line)}


def words_of_the_docs() -> set[str]:
    """What docs/images.md has in its columns of words."""
    found, is_word = set(), False
    for line in (ROOT / "docs" / "images.md").read_text().splitlines():
        last = line.rstrip(" |").rpartition("|")[2].strip()
        if not line.startswith("|"):
            is_word = False
        elif last.startswith("word"):
            is_word = True
        elif is_word:
            found |= set(re.findall(r"`([a-z]+\d*(?:_[a-z0-9]+)*)(?::[^`]*)?`", last))
    return found


def test_each_warning_has_a_sentence() -> None:
    code, docs = words_of_the_package(), words_of_the_docs()
    # proof of the search: words of the docs that no quotes hold are put together, or have no _
    assert {word for word in docs - code if not word.endswith("_scaled")} == {
        *("bilevel", "palette", "cmyk", "ycbcr", "palette8", "palette16", "frame"),
    }
    assert code | docs == set(table("warnings.ts", "SENTENCES"))


def test_the_page_was_built_from_these_sources() -> None:
    """As web/vite.config.ts does it. Where it fails: `npm ci && npm run build` in web/."""
    digest = hashlib.sha256()
    paths = {file.relative_to(WEB.parent).as_posix(): file for file in WEB.rglob("*.*")}
    for name in sorted(name for name in paths if not name.endswith(".test.ts")):
        digest.update(f"{name}\0".encode() + paths[name].read_bytes())
    built = (ROOT / "medv_ray" / "serving" / "page" / "index.html").read_text()
    assert f'<meta name="sources" content="{digest.hexdigest()}">' in built


def test_the_page_is_small() -> None:
    """So that it is there at once behind a slow line."""
    built = (ROOT / "medv_ray" / "serving" / "page").rglob("*.*")
    assert sum(file.stat().st_size for file in built) <= 150_000
