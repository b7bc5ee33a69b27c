"""Flipped bits and cuts of what jobs write, some of each kind; `tests.chaos.bit_flips` has more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos import bit_flips
from tests.chaos.bit_flips import Kind, damage

pytestmark = pytest.mark.integration

MADE = {make.__name__: make for make in bit_flips.MAKERS}


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_no_flipped_bit_is_silent(tmp_path: Path, name: str) -> None:
    found = damage(tmp_path, 30, 10, seed=1, makers=[MADE[name]])
    assert found["problems"] == []
    for kind in found["kinds"].values():
        assert kind["noticed"] + kind["harmless"] + kind["scored_again"] == kind["flips"] == 30
        assert kind["noticed"] > 5


def test_a_silent_flip_would_be_found(tmp_path: Path) -> None:
    def careless(folder: Path) -> Iterator[Kind]:
        folder.mkdir()
        (folder / "a.txt").write_text("what was written")
        load: Callable[[Path], str] = lambda work: (  # noqa: E731
            "harmless" if (work / "a.txt").read_text("latin-1") == "what was written" else "silent"
        )
        yield Kind("careless", folder, ["a.txt"], load)

    found = damage(tmp_path, 4, 0, seed=1, makers=[careless])
    assert found["kinds"]["careless"]["silent"] == 4
    assert len(found["problems"]) == 4
