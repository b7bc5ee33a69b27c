import unicodedata
from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_ray.archive.ids import IdCensus, fallback_id
from medv_ray.errors import DataError
from medv_ray.tables.ids import id_text, normal, repeated_id


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("study-1", "study-1"),
        ("Müller 7", "Müller 7"),
        ("train/1.png", "train/1.png"),
        ("a\\b", "a\\b"),
        ("a..b", "a..b"),
        (17, "17"),
        (17.0, "17"),  # beside an empty cell, pandas makes floats of whole numbers
        (1e15, "1000000000000000"),
        (1.5, "1.5"),
        (Decimal("3.00"), "3"),
        (date(2024, 1, 31), "2024-01-31"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (bytes(15) + b"\7", "00000000-0000-0000-0000-000000000007"),
        (b"case-7", "case-7"),
        (b"\xff\1", "ff01"),
        (None, None),
        (float("nan"), None),
        ("", None),
        (" \t ", None),
    ],
)
def test_which_cells_are_names(value, text):
    assert id_text(value) == text


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("a\0b", "E1104"),
        ("a\nb", "E1104"),
        ("a\u2028b", "E1104"),
        ("a\ud800", "E1104"),
        ("x" * 513, "E1104"),
        ("é" * 257, "E1104"),
        (True, "E1109"),
        ({"id": 1}, "E1109"),
        (["a"], "E1109"),
        (float("inf"), None),
    ],
)
def test_which_are_none(value, code):
    if code is None:
        assert id_text(value) == "inf"
        return
    with pytest.raises(DataError) as caught:
        id_text(value)
    assert caught.value.code == code


def test_a_refusal_does_not_repeat_the_id():
    with pytest.raises(DataError) as caught:
        id_text("SECRET\0")
    assert "SECRET" not in str(caught.value)


def census(*files: tuple[str, list]) -> IdCensus:
    counted = IdCensus(stem for stem, _ in files)
    for stem, ids in files:
        counted.start_file(stem)
        counted.add(ids)
    return counted


def test_the_first_of_equal_ids_keeps_it_across_files():
    assert census(("a", ["x", "y", "x"]), ("b", ["z", "y"])).duplicates().tolist() == [2, 4]


def test_normal_form_and_spaces_do_not_make_ids_different():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    counted = census(("a", [composed, decomposed, " caf\u00e9 ", 7, "7"]))
    assert counted.duplicates().tolist() == [1, 2, 4]


@pytest.mark.parametrize("odd", [None, 7, "", " ", "x" * 600, "a\0b", "caf\u00e9", "c:1", b"\xff"])
def test_one_odd_id_among_many_changes_nothing_for_the_others(odd):
    plain = [f"id-{number}" for number in range(20)]
    assert census(("a", [*plain, odd, " id-3 ", "id-19"])).duplicates().tolist() == [21, 22]
    assert census(("a", [*plain, " id-3 ", "id-19"])).duplicates().tolist() == [20, 21]


def test_an_id_that_looks_like_a_made_one_gives_way():
    # row 0 of `a` has no id and is written as a:0
    assert census(("a", [None, "b", "a:0"])).duplicates().tolist() == [2]
    assert census(("a", ["a:1", None])).duplicates().tolist() == [0]
    # so may a row of a file that has no ids at all, or a later row of the same name
    assert census(("a", ["b:7"]), ("b", [])).duplicates().tolist() == [0]
    assert census(("a", ["x#a:2", "x", "x"])).duplicates().tolist() == [0, 2]
    # its own row's, as an exported run has it; and what only looks alike
    assert census(("a", ["a:0", "a:1", "c:0", "a:x", "10:30"])).duplicates().tolist() == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.sampled_from(["x", "y", "s:0", "s:1", "s:2", "x#s:1", "x#s:2", "x#s:1#s:3", "t:0"]),
        ),
        max_size=8,
    ),
    st.integers(0, 8),
)
def test_written_ids_are_always_distinct(ids, cut):
    files = [("s", ids[:cut]), ("t", ids[cut:])]
    repeats = set(census(*files).duplicates().tolist())
    written, ordinal = [], 0
    for stem, values in files:
        for row, value in enumerate(values):
            made = fallback_id(stem, row)
            own = made if value is None else value
            written.append(repeated_id(own, made) if ordinal in repeats else own)
            ordinal += 1
    assert len({normal(i) for i in written}) == len(ids)
    assert unicodedata.is_normalized("NFC", "".join(written))


def test_a_file_that_was_dropped_leaves_nothing():
    counted = census(("a", ["x"]), ("b", ["x", None, "a:7"]))
    counted.drop_file()
    assert counted.duplicates().tolist() == []
    counted.start_file("c")
    counted.add(["y", "x"])  # the ordinals of the dropped rows are not given again
    assert counted.duplicates().tolist() == [5]
