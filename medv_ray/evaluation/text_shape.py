"""Length and repetition of answers: what too few steps and too long responses spoil first."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean, median
from typing import Any

from medv_ray.archive.strict import WORD

NGRAM = 3


def repeated(items: Sequence[Hashable], n: int = 1) -> float | None:
    """Share of n-grams that stand earlier in the same sequence, from 0 to 1; None where there is
    none of that length."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def shape(texts: Iterable[str]) -> dict[str, Any]:
    """Of answers: words by white space (mean, median, most), the share without any, and the
    mean share of words, and of n-grams of NGRAM words, that the answer has said before, without
    punctuation and case. Answers too short to have one do not count in a mean; None: all are."""
    given = list(texts)
    said = [WORD.findall(text.casefold()) for text in given]
    counts = [len(text.split()) for text in given] or [0]
    return {
        "words": fmean(counts),
        "words_median": median(counts),
        "words_most": max(counts),
        "empty": fmean(not text.split() for text in given) if given else 0.0,
        "repeated_words": _mean(repeated(words) for words in said),
        f"repeated_{NGRAM}grams": _mean(repeated(words, NGRAM) for words in said),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
