"""What a kind of bad input is, and what must come of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CODE = re.compile(r"\bE1\d{3}\b")
PATHS = ("score", "ask", "train", "import", "endpoint")
GOOD = ("answered", "taken", "imported", "read", "cancelled")
"""What the outcome of an input that was used begins with."""


@dataclass(frozen=True)
class Outcome:
    """What a path did with an input."""

    text: str
    """`answered cmyk`, `E1203`, `400 E1203`: what a cell of the table shows."""
    messages: tuple[str, ...] = ()
    """All that was said to a user or a log."""

    @property
    def parts(self) -> list[str]:
        """Of several rows or files."""
        return self.text.split("; ")

    @property
    def words(self) -> set[str]:
        """Words of the column `warnings`, without their values."""
        return {word for part in self.parts for word in part.split()[1:]}


NONE = Outcome("-")
"""The input has no way into the path."""


@dataclass(frozen=True)
class Kind:
    """A kind of input, in one form or several."""

    number: int
    name: str
    want: str
    """What must come of it, on every path that has no entry in `wants`: words that must be among
    the warnings behind `ok`; else codes, of which it must be one. `|` between what are both right:
    `E1203 E1207 | ok suspect_flat_tail`. A lone `ok` allows no warning, `ok *` any;
    `left`: it is left out, and told."""
    cases: Mapping[str, Callable[[Path], Any]]
    """Inputs by name: functions of an empty folder that make what the group's ways take."""
    wants: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    """Why the outcome is another one than facts or readers may expect."""


Way = Callable[[Any, Any], Outcome]
"""From a bench and an input to its outcome."""


@dataclass(frozen=True)
class Group:
    """Kinds that go the same ways."""

    name: str
    text: str
    """How an input gets into each path."""
    paths: Mapping[str, Way]
    kinds: tuple[Kind, ...]


def fits(outcome: Outcome, want: str) -> bool:
    """Whether an outcome, each part of it, is one of those that are right."""
    ways = [way.split() for way in want.split("|")]
    return all(any(_fits(part, way, outcome) for way in ways) for part in outcome.parts)


def _fits(part: str, way: list[str], outcome: Outcome) -> bool:
    if way == ["left"]:
        return part.startswith("left out")
    good = part.startswith(GOOD)
    if way[0] != "ok":
        return not good and set(CODE.findall(part) or [""]) <= set(way)
    if way == ["ok"]:
        return good and not part.split()[1:]
    # the other paths tell no words
    told = part.startswith("answered") and way != ["ok", "*"]
    return good and (not told or set(way[1:]) <= outcome.words)
