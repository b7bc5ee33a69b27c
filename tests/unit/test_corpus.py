"""The bad-input corpus: all kinds are there, and some of each group come out as the table says.

All of them, with their time and memory: `make corpus`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.corpus.run as run_module
from tests.corpus.bench import Bench
from tests.corpus.groups import GROUPS
from tests.corpus.kinds import Outcome, fits
from tests.corpus.measures import MOST_BYTES, leaks
from tests.corpus.run import run
from tests.corpus.table import rows, start

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"
QUICK = (1, 14, 28, 42, 46, 59, 66, 73, 75, 81, 94, 103, 107, 124)
"""Of each group some kinds that take little time."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("corpus")) as made:
        yield made


def test_no_kind_is_left_out() -> None:
    kinds = [kind for group in GROUPS for kind in group.kinds]
    assert {kind.number for kind in kinds} == set(range(1, max(k.number for k in kinds) + 1))
    assert len({(kind.number, kind.name) for kind in kinds}) == len(kinds)
    table = TABLE.read_text()
    for kind in kinds:
        assert start(kind) in table


@pytest.mark.integration
@pytest.mark.slow  # a part of what `.ci/run` compares whole
def test_kinds_of_each_group_end_as_the_table_says(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what other tests left in this process is not the corpus's
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    monkeypatch.setattr(run_module, "MOST_BYTES", held + MOST_BYTES)
    results = run(bench, GROUPS, QUICK)
    assert not results.faults
    lines = set(TABLE.read_text().splitlines())
    for group in GROUPS:
        assert [line for line in rows(group, results) if line not in lines] == []


@pytest.mark.parametrize(
    ("text", "want", "right"),
    [
        ("E1203", "E1203 E1207", True),
        ("400 E1203", "E1203", True),
        ("E1203; answered", "E1203", False),
        ("E1203; E1111", "E1203", False),
        ("answered", "E1203", False),
        ("answered cmyk", "ok cmyk", True),
        ("answered", "ok cmyk", False),
        ("answered cmyk", "ok", False),
        ("answered cmyk", "ok *", True),
        ("taken", "ok cmyk", True),
        ("E1203", "ok *", False),
        ("E1203", "E1203 | ok suspect_flat_tail", True),
        ("left out: hidden", "left", True),
        ("refused E1509", "E1203", False),
    ],
)
def test_what_is_right(text: str, want: str, right: bool) -> None:
    assert fits(Outcome(text), want) is right


def test_what_no_message_may_hold(tmp_path: Path) -> None:
    for message in (
        "cannot identify image file <_io.BytesIO object at 0x7f4259ef0b30>",
        f"{tmp_path}/a.png is damaged",
        "no such file: /home/someone/a.png",
        "Traceback (most recent call last):",
        "the question of Zacharias is empty",
    ):
        assert leaks(message, tmp_path), message
    assert not leaks("E1203: the JPEG of 7 bytes ends early; /openapi.json lists all", tmp_path)
