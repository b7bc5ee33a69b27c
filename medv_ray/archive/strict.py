"""Closed and open accuracy by whole words: no "no" in "normal"."""

from __future__ import annotations

import re
import unicodedata

WORD = re.compile(r"\w+")
WORD_OR_SIGN = re.compile(r"\w+|[+<>\u2264\u2265]")
"""HER2+ is not HER2-, nor is < 5 mm what > 5 mm is. A minus is not told from a hyphen."""
ARTICLES = frozenset({"a", "an", "the"})
YES_NO = frozenset({"yes", "no"})


def words(text: str) -> list[str]:
    """Words and signs of a text in lower case, without articles; what ends it is none (hepatitis
    A). A letter is the same in one character or with its accent in a second one."""
    every = WORD_OR_SIGN.findall(unicodedata.normalize("NFC", text).casefold())
    return [word for word in every[:-1] if word not in ARTICLES] + every[-1:]


def closed(answer: str, reference: str) -> bool:
    """Whether an answer to a closed question is right.

    For yes and no, the first of the two words in it must be the reference. For another reference,
    the words of it must stand in the answer, one after the other.
    """
    said, wanted = words(answer), words(reference)
    if len(wanted) == 1 and wanted[0] in YES_NO:
        return next((word for word in said if word in YES_NO), None) == wanted[0]
    return bool(wanted) and any(
        said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)
    )


def same(answer: str, reference: str) -> bool:
    """Whether two texts are the same words in the same order."""
    return words(answer) == words(reference)


def kind_of(reference: str, answer_type: str | None = None) -> str:
    """open or closed, as the archive says; where it does not, closed is what is answered by yes or
    no."""
    if answer_type is not None:
        return answer_type
    return "closed" if words(reference) in (["yes"], ["no"]) else "open"


def is_right(answer: str, reference: str, kind: str) -> bool:
    """By the rule of the kind of question."""
    return closed(answer, reference) if kind == "closed" else same(answer, reference)
