"""Which option a free answer to a multiple-choice question names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_uppercase as LETTERS

from medv_ray.archive.strict import ARTICLES, WORD, words


def choice(answer: str, reference: str, choices: Sequence[str]) -> bool:
    """Whether an answer names the right choice and no other, by its letter or by all its words."""
    right = [number for number, one in enumerate(choices) if one == reference]
    return named(answer, choices) == set(right[:1])


def named(answer: str, choices: Sequence[str]) -> set[int]:
    """Numbers of the choices that an answer names.

    A choice is named by its words, one after the other, unless they stand inside the words of a
    longer one; and by its letter, a capital that stands alone outside of these, or the whole
    answer. A choice that is a letter itself is named by its own letter only.
    """
    letters = LETTERS[: len(choices)]
    bare = answer.strip(" \t\r\n.,:;()[]*\"'").upper()
    if bare in letters and len(bare) == 1:
        return {letters.index(bare)}
    spans = [
        (start, end, number)
        for number, one in enumerate(choices)
        if len(one.strip()) > 1
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
_ANNOUNCED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\W*\Z", re.IGNORECASE)


def _is_word(answer: str, letter: re.Match[str]) -> bool:
    """Whether a capital A or I is an article or a pronoun: a word follows, and nothing says that it
    is an option."""
    if letter[0] not in "AI" or not re.match(r"\s+\w", answer[letter.end() :]):
        return False
    return not _ANNOUNCED.search(answer[: letter.start()])


def _spans(choice: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where the words of a choice stand in an answer one after the other, articles not counted. An
    article that the choice begins with belongs to it."""
    wanted, every = words(choice), list(WORD.finditer(answer))
    said = [n for n, one in enumerate(every) if one[0].casefold() not in ARTICLES]
    plain = [every[n][0].casefold() for n in said]
    opening = WORD.findall(choice.casefold())[:1]
    for i in range(len(plain) - len(wanted) + 1 if wanted else 0):
        if plain[i : i + len(wanted)] == wanted:
            first, last = said[i], said[i + len(wanted) - 1]
            before = [one[0].casefold() for one in every[max(first - 1, 0) : first]]
            first -= before == opening and before[0] in ARTICLES
            yield every[first].start(), every[last].end()
