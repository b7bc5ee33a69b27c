"""What the words of a question alone predict, without a picture and without a model.

The answer is voted for by the NEAREST training questions of the same kind (open, closed). Near are
those that share words, each weighing log((1 + N) / (1 + n)) where n of the N training questions of
the kind have it; similarity is the cosine of the two sets of weights, and a vote weighs as much.

Shapes: N training questions of a kind, P of them that have a word.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medv_ray.archive.strict import words
from medv_ray.evaluation.recipes import Question

NEAREST = 25
"""Of 1, 5, 10, 25 and 50 the one that does best on PathVQA's closed validation questions."""


class QuestionOnly:
    """Training questions of one kind, looked up by their words."""

    def __init__(self, train: Sequence[Question]) -> None:
        self._answers = [one.answer.strip().lower() for one in train]
        sets = [set(words(one.question)) for one in train]
        holders: dict[str, list[int]] = defaultdict(list)
        for number, mine in enumerate(sets):
            for word in mine:
                holders[word].append(number)
        self._weight = {w: math.log((1 + len(sets)) / (1 + len(p))) for w, p in holders.items()}
        self._holders = {word: np.array(p) for word, p in holders.items()}  # int[P]
        self._length = np.array([self._norm(mine) for mine in sets])  # float[N]
        self._known: dict[frozenset[str], str] = {}

    def answer(self, question: str) -> str:
        """The answer that weighs most; of equal ones the first in the alphabet. Empty where no
        training question shares a word that tells anything."""
        asked = frozenset(words(question))
        if asked not in self._known:
            self._known[asked] = self._vote(self._similarity(asked))
        return self._known[asked]

    def _norm(self, mine: Iterable[str]) -> float:
        return math.sqrt(math.fsum(self._weight[word] ** 2 for word in mine)) or 1.0

    def _similarity(self, asked: frozenset[str]) -> NDArray[np.float64]:
        """float64[N], up to a factor that all have in common."""
        found: NDArray[np.float64] = np.zeros(len(self._answers))
        for word in sorted(asked):  # in one order, as sums of floats hang on it
            if word in self._holders:
                found[self._holders[word]] += self._weight[word] ** 2
        found /= self._length
        return found

    def _vote(self, similarity: NDArray[np.float64]) -> str:
        # of equally near ones the earlier
        nearest = np.argsort(-similarity, kind="stable")[:NEAREST]
        votes: dict[str, float] = defaultdict(float)
        for number in nearest[similarity[nearest] > 0]:
            votes[self._answers[number]] += float(similarity[number])
        return min(votes, key=lambda answer: (-votes[answer], answer), default="")


def question_only(train: Iterable[Question], questions: Iterable[Question]) -> dict[str, str]:
    """By id, the answer that the words of each question predict; empty without training questions
    of its kind."""
    kinds: dict[str, list[Question]] = defaultdict(list)
    for one in train:
        kinds[one.kind].append(one)
    known = {kind: QuestionOnly(of) for kind, of in kinds.items()}
    return {
        one.id: known[one.kind].answer(one.question) if one.kind in known else ""
        for one in questions
    }
