import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_ray.archive.ids import IdCensus, fallback_id, id_problem, normal


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("study-1", None),
        ("1.2.840.113619", None),
        ("Müller 7", None),
        (17, None),
        (None, "E1102"),
        ("", "E1102"),
        (" \t ", "E1102"),
        ("a/../b", "E1104"),
        ("a\\b", "E1104"),
        ("a..b", "E1104"),
        ("a\0b", "E1104"),
        ("a\nb", "E1104"),
        ("a\u2028b", "E1104"),
        ("a\ud800", "E1104"),
        ("x" * 513, "E1104"),
        ("é" * 257, "E1104"),
        (1.5, "E1109"),
        (True, "E1109"),
        ({"id": 1}, "E1109"),
        (b"\xff", "E1109"),
    ],
)
def test_which_ids_are_refused(value, code):
    problem = id_problem(value)
    assert (problem.code if problem else None) == code


def test_a_refusal_does_not_repeat_the_id():
    assert "SECRET" not in str(id_problem("SECRET/7"))


def census(*files: tuple[str, list]) -> IdCensus:
    counted = IdCensus()
    for stem, ids in files:
        counted.start_file(stem)
        counted.add(ids)
    return counted


def test_the_first_of_equal_ids_keeps_it_across_files():
    assert census(("a", ["x", "y", "x"]), ("b", ["z", "y"])).duplicates() == [2, 4]


def test_normal_form_and_spaces_do_not_make_ids_different():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert census(("a", [composed, decomposed, " caf\u00e9 ", 7, "7"])).duplicates() == [1, 2, 4]


def test_an_id_that_stands_in_for_a_refused_row_is_taken():
    # row 0 of `a` has no id and is written as a:0, so the row that calls itself a:0 must give way
    assert census(("a", [None, "b", "a:0"])).duplicates() == [2]
    assert census(("a", ["a:1", None])).duplicates() == [0]
    # a duplicate's own stand-in may meet a third row's id, wherever that row lies
    assert census(("a", ["a:2", "x", "x"])).duplicates() == [0, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from(["x", "y", "s:0", "s:1", "s:2", "s:3", "s:4"])),
        max_size=8,
    )
)
def test_written_ids_are_always_distinct(ids):
    counted = census(("s", ids))
    duplicates = set(counted.duplicates())
    bad = {i for i, value in enumerate(ids) if id_problem(value)} | duplicates
    written = [fallback_id("s", i) if i in bad else ids[i] for i in range(len(ids))]
    assert len({normal(i) for i in written}) == len(ids)
    assert unicodedata.is_normalized("NFC", "".join(written))


def test_a_million_ids_take_little_time_and_memory():
    before = pa.total_allocated_bytes()
    counted = census(("s", range(200_000)))
    counted.add([199_999])
    assert counted.duplicates() == [200_000]
    assert len(counted.hashes) == 16 * 200_001
    assert pa.total_allocated_bytes() - before < 2**20
