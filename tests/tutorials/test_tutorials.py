"""Each tutorial is typed into a shell as it stands and keeps its promises; the site builds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.doc_commands import ROOT, blocks

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]
ADDRESS = re.compile(rb'(?:src|href)="(?:https?:)?//[^"]*"|url\((?:https?:)?//|@import')


class Step(NamedTuple):
    """A block of lines to type, and the lines that are to come."""

    line: int
    typed: tuple[str, ...]
    expected: tuple[str, ...]


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    for block in blocks(text):
        if block.kind == "indented":
            joined = "\n".join(block.lines).replace("\\\n", " ")
            typed = tuple(line for line in joined.splitlines() if line.strip())
            found.append(Step(block.line, typed, ()))
        elif block.kind == "text":
            found[-1] = found[-1]._replace(expected=block.lines)
    return found


def script(found: list[Step]) -> str:
    """Every line followed by its exit code; one shell, as a reader has."""
    lines = []
    for number, step in enumerate(found):
        lines.append(f"echo '@step {number}'")
        for line in step.typed:
            lines += [line, 'echo "@code $?"']
    return "\n".join(lines)


def faults(found: list[Step], output: str) -> list[str]:
    """Steps that did not end or did not say what the page says."""
    said = re.split(r"^@step \d+\n", output, flags=re.M)[1:]
    wrong = [f"{len(said)} of {len(found)} steps"] if len(said) < len(found) else []
    for step, text in zip(found, said, strict=False):
        codes = re.findall(r"^@code (\d+)$", text, re.M)
        refused = any("Error E" in line for line in step.expected)
        if not refused and set(codes) != {"0"}:
            wrong.append(f"line {step.line}: exit codes {codes}\n{text[-2000:]}")
        for line in step.expected:
            pattern = ".*".join(map(re.escape, line.strip().split("...")))
            if not re.search(pattern, text):
                wrong.append(f"line {step.line}: no {line!r} in\n{text[-2000:]}")
    return wrong


@pytest.mark.parametrize("name", ["platform", "reviewer", "researcher"])
def test_a_tutorial_is_followed_to_its_end(name: str, tmp_path: Path) -> None:
    for part in ("jobs", "examples", "cluster"):
        (tmp_path / part).symlink_to(ROOT / part)
    found = steps((ROOT / "docs" / "tutorials" / f"{name}.md").read_text())
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    path = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        ["bash", "-c", script(found)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "PATH": programs, "PYTHONPATH": path},
        timeout=1700, check=False,
    )  # fmt: skip
    assert faults(found, done.stdout) == []


def test_a_page_that_promises_too_much_is_found() -> None:
    right = "    echo 3 rows\n\n```text\n3 rows\n```\n\nThen:\n\n"
    found = steps(right + "    false\n\n```text\nmore ... here\n```\n")
    done = subprocess.run(
        ["bash", "-c", script(found)], text=True, stdout=subprocess.PIPE, check=True
    )
    first, second = faults(found, done.stdout)
    assert "exit codes ['1']" in first
    assert "no 'more ... here'" in second


def test_the_site_builds_and_asks_nobody(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".css")]
    assert len(pages) > 20
    loaded = {
        match
        for path in pages
        for match in re.findall(rb"<(?:script|link|img)[^>]*>|url\([^)]*\)", path.read_bytes())
        if ADDRESS.search(match) and b'rel="canonical"' not in match
    }
    assert loaded == set()
