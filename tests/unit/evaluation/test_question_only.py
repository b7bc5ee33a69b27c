"""The baseline that reads questions only."""

from __future__ import annotations

import time

import pytest

from medv_ray.evaluation import question_only as module
from medv_ray.evaluation.question_only import question_only
from medv_ray.evaluation.recipes import Question


def question(key: str, text: str, answer: str = "", kind: str = "open") -> Question:
    return Question(key, (), text, answer, kind, {})


def test_the_rarest_shared_word_decides_within_a_kind() -> None:
    train = [
        *(question(f"c{i}", "is the chest shown", "yes", "closed") for i in range(6)),
        *(question(f"d{i}", "is the skull shown", "no", "closed") for i in range(3)),
        question("o1", "what is in the chest", "Heart "),
        question("o2", "what is in the skull", "brain"),
        question("o3", "what is this", "slide"),
    ]
    asked = [
        question("1", "Is a skull visible?", kind="closed"),
        question("2", "Is a chest visible?", kind="closed"),
        question("3", "what lies in the skull?"),
        question("4", "chest?"),
        question("5", "pancreas?"),
    ]
    found = question_only(train, asked)
    assert found == {"1": "no", "2": "yes", "3": "brain", "4": "heart", "5": ""}
    assert question_only(train[:2], asked[2:3]) == {"3": ""}, "no open ones to learn from"


def test_only_the_nearest_vote_and_equal_ones_by_the_alphabet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = [question("1", "liver cell", "b"), question("2", "liver cell", "a")]
    train += [question(str(i), "liver spot", "c") for i in range(3, 9)]
    train += [question(str(i), "other", "d") for i in range(9, 30)]
    asked = [question("x", "liver cell")]
    monkeypatch.setattr(module, "NEAREST", 2)
    assert question_only(train, asked) == {"x": "a"}
    monkeypatch.setattr(module, "NEAREST", 1)
    assert question_only(train, asked) == {"x": "b"}, "of equally near ones the first"
    monkeypatch.setattr(module, "NEAREST", 25)
    assert question_only(train, asked) == {"x": "c"}, "six votes of less weight"


def test_many_questions_take_no_minutes() -> None:
    train = [question(str(i), f"what is shown in w{i % 97} v{i % 89}", "a") for i in range(4000)]
    asked = [question(str(i), f"what is w{i % 97} of v{i % 83}?") for i in range(500)]
    began = time.monotonic()
    question_only(train, asked)
    assert time.monotonic() - began < 3
