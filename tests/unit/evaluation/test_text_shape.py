"""Length and repetition of answers."""

from __future__ import annotations

import pytest

from medv_ray.evaluation.text_shape import repeated, shape


@pytest.mark.parametrize(
    ("words", "n", "share"),
    [
        ("a b c d", 1, 0.0),
        ("a a a a", 1, 0.75),
        ("the cell the cell", 2, 1 / 3),
        ("x y z x y z", 3, 0.25),
        ("a b", 3, None),
        ("", 1, None),
    ],
)
def test_repeated(words: str, n: int, share: float | None) -> None:
    assert repeated(words.split(), n) == (None if share is None else pytest.approx(share))


def test_shape() -> None:
    found = shape(["Yes, yes.", "", "no sign of it"])
    assert found == {
        "words": 2.0,
        "words_median": 2,
        "words_most": 4,
        "empty": pytest.approx(1 / 3),
        "repeated_words": 0.25,
        "repeated_3grams": 0.0,
    }
    assert shape([])["words"] == 0.0
    assert shape(["one"])["repeated_3grams"] is None
