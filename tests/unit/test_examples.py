"""The examples are run as they stand."""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.data import synthetic
from tests.unit.client.scripted import toy_endpoint

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ASKED = "How many large cells are there?"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with toy_endpoint() as url:
        yield url


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openai_client.py", ["answer: {}\n", "confidence ", "turbo: {} (", "stream: {} (1 tok"]),
        ("http_stream.py", ["step   0  ", "·", "answer: {} (confidence "]),
    ],
)
def test_a_client(
    name: str, words: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(r for r in synthetic.rows(60) if r.question == ASKED)
    picture = tmp_path / "tile"
    picture.write_bytes(row.image)
    command = [sys.executable, str(EXAMPLES / name), str(picture), ASKED, "--url", url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    for word in words:
        assert word.format(row.answer) in said.stdout


def test_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "notebook.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("known:") == 3
    assert said.count(" sure\n") == 3
    assert "step 1  ···" in said


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_says_what_to_paste(path: Path) -> None:
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]
    assert os.access(path, os.R_OK)
