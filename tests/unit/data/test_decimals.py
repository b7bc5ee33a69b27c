"""The marks that may follow lead to all numbers within the bounds, and to no other text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medv_ray.data.decimals import Decimals


def written(bounds: Decimals) -> list[str]:
    """Every text that the marks lead to."""
    found, begun = [], [""]
    while begun:
        text = begun.pop()
        for mark in bounds.next(text):
            if mark:
                begun.append(text + mark)
            else:
                found.append(text)
    return found


@given(st.integers(-1200, 1200), st.integers(0, 300), st.integers(0, 3))
def test_all_numbers_and_no_other(low: int, more: int, places: int) -> None:
    bounds = Decimals(low, low + more, places)
    wanted = [f"{units / 10**places:.{places}f}" for units in range(low, low + more + 1)]
    assert sorted(written(bounds)) == sorted(wanted)
    assert bounds.width == max(map(len, written(bounds)))


def test_large_ones_are_not_listed() -> None:
    bounds = Decimals(-(10**14), 10**14 - 1)
    assert bounds.next("") == ["-", *"0123456789"]
    assert bounds.next("0") == [""]
    assert bounds.next("-1") == ["", *"0123456789"]
    assert bounds.next("9" * 14) == [""]
