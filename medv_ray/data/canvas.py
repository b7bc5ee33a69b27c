r"""Templates of answers: literal text, and blanks that the model fills.

    Modality: {{modality:choice=CT|MR|X-ray}}. Size: {{mm:int=0..200}} mm.
    Finding: {{finding:tokens=2..16}}

`tokens=N` is exactly N tokens, `tokens=A..B` may end early: the model's own end token fills the
blank's tail and is not shown. `choice=a|b` and `int=A..B` always take one of what they name. A
backslash takes the meaning from `{{`, `}}`, `|` and itself.

A template knows no tokenizer; `engine.layout` gives its parts positions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medv_ray.data.decimals import Decimals
from medv_ray.data.prompts import check_storable
from medv_ray.errors import DataError

MAX_CHOICES = 1000
MAX_PARTS = 2000
MAX_CHARACTERS = 2**20
"""Of all literals and choices of a template."""
MAX_TOKENS = 4096
"""Of a blank."""
MAX_DIGITS = 15
"""Of a bound: beyond, not every reader of JSON keeps a number as it is."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RANGE = re.compile(r"(-?[0-9]+)\s*\.\.\s*(-?[0-9]+)")


@dataclass(frozen=True)
class Words:
    """A blank of free text."""

    name: str
    least: int
    """Tokens that are said in any case."""
    most: int
    in_json: bool = False
    """Inside the quotes of a JSON string: no quote, backslash or control character."""
    max_characters: int | None = None
    """What is longer is cut."""


@dataclass(frozen=True)
class Choice:
    """A blank that takes one of some texts. Without a name it is part of the form alone: whether a
    list goes on, or a value is null."""

    name: str
    texts: tuple[str, ...]
    skips: tuple[int, ...] = ()
    """How many of the following parts each text leaves out; none where there are none."""
    values: tuple[Any, ...] = ()
    """What each text means, where that is not the text."""


@dataclass(frozen=True)
class Number:
    """A blank that takes a number, digit by digit."""

    name: str
    bounds: Decimals


Blank = Words | Choice | Number
Part = str | Blank


@dataclass(frozen=True)
class Filled:
    """What a blank has come to."""

    name: str
    value: Any
    """Text, a number, or what a choice means; None where the answer was cancelled before."""
    confidence: float
    """Mean probability of its tokens when they were committed; of a choice, of the whole."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Of a choice: of every text, in their order."""


@dataclass(frozen=True)
class Template:
    """Literal texts and blanks, in their order.

    Raises DataError E1309 for a blank that cannot be filled, or two of one name.
    """

    parts: tuple[Part, ...]
    is_json: bool = False

    def __post_init__(self) -> None:
        blanks = [part for part in self.parts if not isinstance(part, str)]
        if not blanks:
            raise _refused("it has no blank")
        if len(self.parts) > MAX_PARTS:
            raise _refused(f"it has {len(self.parts)} parts; the limit is {MAX_PARTS}")
        if sum(map(characters, self.parts)) > MAX_CHARACTERS:
            raise _refused(f"its texts and choices have over {MAX_CHARACTERS} characters")
        names = [blank.name for blank in blanks if blank.name]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise _refused(f"two blanks are named {twice}")
        for blank in blanks:
            _check(blank)
        for part in self.parts:
            if isinstance(part, str):
                check_storable(part)

    @property
    def names(self) -> list[str]:
        """Of the blanks that have one."""
        return [part.name for part in self.parts if not isinstance(part, str) and part.name]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises DataError E1309 that tells the blank and what is wrong with it."""
        return cls(tuple(part for part in _parse(text) if part != ""))

    @classmethod
    def choosing(cls, texts: Sequence[str]) -> Template:
        """One choice and nothing else. Raises DataError E1309."""
        return cls((Choice("answer", tuple(text.strip() for text in texts)),))


def characters(part: Part) -> int:
    """Of a literal, or of a choice's texts."""
    texts = part.texts if isinstance(part, Choice) else [part] if isinstance(part, str) else []
    return sum(map(len, texts))


def _refused(rule: str) -> DataError:
    return DataError("E1309", f"{rule}.")


def _check(blank: Blank) -> None:
    name = blank.name or "a choice"
    if isinstance(blank, Words):
        if not 0 <= blank.least <= blank.most or blank.most == 0:
            raise _refused(f"{name}: a blank of tokens needs 1 at least, and A..B with A <= B")
        if blank.most > MAX_TOKENS:
            raise _refused(f"{name}: {blank.most} tokens; the limit is {MAX_TOKENS}")
    elif isinstance(blank, Choice):
        _check_choice(blank, name)
    elif blank.bounds.low >= blank.bounds.high:
        raise _refused(f"{name}: its range is empty, or one number")
    elif max(abs(blank.bounds.low), abs(blank.bounds.high)) >= 10**MAX_DIGITS:
        raise _refused(f"{name}: a bound has over {MAX_DIGITS} digits")


def _check_choice(blank: Choice, name: str) -> None:
    if len(blank.texts) > MAX_CHOICES:
        raise _refused(f"{name}: {len(blank.texts)} choices; the limit is {MAX_CHOICES}")
    if len(blank.texts) < 2:
        raise _refused(f"{name}: two choices at least are needed")
    if len({*blank.texts}) < len(blank.texts):
        raise _refused(f"{name}: two choices are equal")
    if blank.name and not all(text.strip() for text in blank.texts):
        raise _refused(f"{name}: a choice has no text")
    for text in blank.texts:
        check_storable(text)


def whole_number(name: str, low: int, high: int) -> Choice | Number:
    """A blank of an integer: a choice where the range is short, so that every number has its
    probability."""
    if low < high and high - low < MAX_CHOICES:
        values = range(low, high + 1)
        return Choice(name, tuple(map(str, values)), (), tuple(values))
    return Number(name, Decimals(low, high))


def _parse(text: str) -> list[Part]:
    parts: list[Part] = [""]
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("\\", "{", "}"):
            parts[-1] += text[at + 1]  # type: ignore[operator]
            at += 2
            continue
        if not text.startswith("{{", at):
            parts[-1] += text[at]  # type: ignore[operator]
            at += 1
            continue
        found = re.compile(r"((?:\\.|(?!\}\})[^\\])*)\}\}", re.DOTALL).match(text, at + 2)
        if found is None:
            raise _refused(f"the blank number {len(parts) // 2 + 1} does not end with }}}}")
        parts += [_blank(found[1], len(parts) // 2 + 1), ""]
        at = found.end()
    return parts


def _blank(text: str, number: int) -> Blank:
    """What stands between the braces."""
    name, colon, rule = text.partition(":")
    name = name.strip()
    if not _NAME.fullmatch(name):
        rule = (
            "needs a name of ASCII letters, digits and _, no digit first, 64 at most; then a colon"
        )
        raise _refused(f"blank number {number} {rule}")
    kind, equals, value = rule.partition("=")
    kind = kind.strip()
    if kind not in ("tokens", "choice", "int") or not equals:
        raise _refused(
            f"{name}: tokens=N, tokens=A..B, choice=a|b or int=A..B must stand behind the colon"
        )
    if kind == "choice":
        texts = [""]
        for mark in re.findall(r"\\.|.", value, re.DOTALL):
            if mark == "|":
                texts.append("")
            else:
                texts[-1] += mark[-1]
        return Choice(name, tuple(text.strip() for text in texts))
    found = _RANGE.fullmatch(value.strip())
    if kind == "tokens" and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return Words(name, int(value), int(value))
    if found is None:
        raise _refused(f"{name}: {kind}= is given no number or range that can be read (A..B)")
    if max(len(bound.lstrip("-")) for bound in found.groups()) > MAX_DIGITS:
        raise _refused(f"{name}: a bound has over {MAX_DIGITS} digits")
    low, high = map(int, found.groups())
    return Words(name, low, high) if kind == "tokens" else whole_number(name, low, high)


def shown(blank: Words, text: str) -> str:
    """Free text as it stands in the answer: trimmed, cut, and fit for JSON where it has to be."""
    if not blank.in_json:
        text = text.strip()
    text = text[: blank.max_characters]
    return json.dumps(text, ensure_ascii=False)[1:-1] if blank.in_json else text
