"""README and docs name programs, options, settings and files that there are."""

import re
from pathlib import Path

import pytest

from tests import doc_commands
from tests.doc_commands import ROOT, Command, commands_of, fault, programs, span_fault, spans

PAGES = doc_commands.pages()
FILES = re.compile(r"(?<![\w/.])(?:docs|jobs|cluster|examples|benchmarks|tests)/[\w./-]+\.\w+")


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_what_is_typed_can_be(page: Path) -> None:
    commands = list(commands_of(page.name, page.read_text()))
    wrong = {command.where: fault(command) for command in commands}
    assert {where: said for where, said in wrong.items() if said} == {}


def test_what_sentences_name_is_there(page: Path) -> None:
    wrong = {(line, span): span_fault(span) for line, span in spans(page.read_text())}
    assert {place: said for place, said in wrong.items() if said} == {}


def test_files_are_there(page: Path) -> None:
    named = {name for name in FILES.findall(page.read_text()) if "results/" not in name}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("medv scre", "there is no medv scre"),
        ("medv bench srve", "there is no medv bench srve"),
        ("medv score --archve x", "No such option"),
        ("medv score --limit few", "BadParameter"),
        ("medv report", "Missing"),
        ("medv score ... --set sampler.step=3", "there is no setting step"),
        ("medv score ... --set sampler.steps=none", "integer"),
        ("medv serve --set sampler.threshold=2", "less than or equal to 1"),
        ("python jobs/score_archiv.py --plan", "there is no jobs/score_archiv.py"),
        ("python jobs/prepare_vqa.py --kind a --source b --out c --nope", "No such option"),
        ("python jobs/train_tiny.py --nope", "has no --nope"),
        ("python jobs/finetune_pathvqa.py --set stage.lr=fast", "number"),
        ("ray job submit -- python jobs/score_archive.py --nope", "No such option"),
        ("serve deploy cluster/nope.yaml", "there is no cluster/nope.yaml"),
        ("make nope", "there is no make nope"),
        ("pip install 'medv-ray[nope]'", "there is no extra nope"),
        ("frobnicate --all", "frobnicate is no known program"),
    ],
)
def test_mistakes_are_found(line: str, said: str) -> None:
    [words] = programs(line)
    assert said in (fault(Command("page", 1, words)) or "")


@pytest.mark.parametrize("span", ["--archve", "--set pool.actors=3", "medv rows --csw x"])
def test_mistakes_in_sentences_are_found(span: str) -> None:
    assert span_fault(span)


def test_lines_are_found_as_a_shell_reads_them() -> None:
    page = """Text:

    medv score --archive a \\
        --out 'b c'   # why
    X=1 medv doctor > /dev/null && medv explain E1203 | head -n 1

- no block
    of lines

```text
medv nothing
```
```bash
medv demo
```
"""
    assert [(one.line, *one.words) for one in commands_of("page", page)] == [
        (3, "medv", "score", "--archive", "a", "--out", "b c"),
        (5, "medv", "doctor"),
        (5, "medv", "explain", "E1203"),
        (5, "head", "-n", "1"),
        (14, "medv", "demo"),
    ]
