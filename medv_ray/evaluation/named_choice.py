"""Which option a free answer to a multiple-choice question names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase as LETTERS

from medv_ray.archive.strict import ARTICLES


def choice(answer: str, reference: str, choices: Sequence[str]) -> bool:
    """Whether an answer names the right choice and no other, by its letter or by all its words."""
    right = [number for number, one in enumerate(choices) if one == reference]
    return named(answer, choices) == set(right[:1])


def named(answer: str, choices: Sequence[str]) -> set[int]:
    """Numbers of the choices that an answer names.

    A letter as the whole answer, and a choice as the whole answer, name that choice alone. Else a
    choice is named by its words, one after the other, unless they stand inside the words of a
    longer one; and by its letter, a capital that stands alone outside of these. A choice that is a
    letter itself is named by its own letter only.
    """
    letters = LETTERS[: len(choices)]
    bare = answer.strip(" \t\r\n.,:;()[]*\"'").upper()
    if bare in letters and len(bare) == 1:
        return {letters.index(bare)}
    whole = {
        n for n, one in enumerate(choices) if one.strip().casefold() == answer.strip().casefold()
    }
    if len(whole) == 1:
        return whole
    spans = [
        (start, end, number)
        for number, one in enumerate(choices)
        if not (len(one.strip()) == 1 and one.strip().isalpha())
        for start, end in _spans(one, answer)
    ]
    outer = [
        span
        for span in spans
        if not any(
            other[0] <= span[0] and span[1] <= other[1] and other[:2] != span[:2] for other in spans
        )
    ]
    found = {number for _, _, number in outer}
    for letter in _LETTER.finditer(answer):
        inside = any(start <= letter.start() < end for start, end, _ in outer)
        if not inside and letter[0] in letters and not _is_word(answer, letter):
            found.add(letters.index(letter[0]))
    return found


_LETTER = re.compile(r"(?<![\w'])[A-Z](?![\w'])")
_NO_NOUN = re.compile(r"\s+(?:and|or|nor|is|are|because)\b", re.IGNORECASE)
"""What follows neither an article nor, in an answer, `I`: so it was an option's letter."""
_ANNOUNCED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\W*\Z", re.IGNORECASE)


def _is_word(answer: str, letter: re.Match[str]) -> bool:
    """Whether a capital A or I is an article or a pronoun: a word follows that may stand behind
    one, and nothing says that it is an option."""
    rest = answer[letter.end() :]
    if letter[0] not in "AI" or not re.match(r"\s+\w", rest) or _NO_NOUN.match(rest):
        return False
    return not _ANNOUNCED.search(answer[: letter.start()])


_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\w+|[<>\u2264\u2265\u00b1]=?")
"""A number, a word, or a sign that sets two choices apart."""


def _spans(choice: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the words of a choice stand in an answer one after the other. Articles do not count,
    but one that ends the choice (vitamin A), and one that opens it belongs to it."""
    every = list(_TOKEN.finditer(answer))
    said, listed = [one[0].casefold() for one in every], _TOKEN.findall(choice.casefold())
    wanted = [one for one in listed[:-1] if one not in ARTICLES] + listed[-1:]
    for first in range(len(said)):
        last = _end(said, first, wanted)
        if last is not None:
            with_article = first > 0 and listed[0] in ARTICLES and said[first - 1] == listed[0]
            yield every[first - with_article].start(), every[last].end()


def _end(said: Sequence[str], first: int, wanted: Sequence[str]) -> int | None:
    """Where the wanted words end that begin at `first`; None where they do not stand there."""
    at = first - 1
    for number, word in enumerate(wanted):
        at += 1
        while number and at < len(said) and said[at] in ARTICLES and said[at] != word:
            at += 1
        if at >= len(said) or said[at] != word:
            return None
    return at if wanted else None
