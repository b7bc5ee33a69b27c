"""Templates: what they say, and what is refused by name."""

from __future__ import annotations

import pytest

from medv_ray.data.canvas import Choice, Number, Template, Words, shown
from medv_ray.data.decimals import Decimals
from medv_ray.errors import DataError


def test_literals_and_blanks() -> None:
    text = r"A \{{x}} \\ {b: {{m:choice=CT|X-ray|a\|b\}}}. {{n : tokens = 3}}{{o:tokens=0..4}}{{"
    text = text.removesuffix("{{") + " {{i:int=-2 .. 1}}{{ j : int = 0.. 5000 }} end"
    assert Template.parse(text).parts == (
        "A {{x}} \\ {b: ",
        Choice("m", ("CT", "X-ray", "a|b}")),
        ". ",
        Words("n", 3, 3),
        Words("o", 0, 4),
        " ",
        Choice("i", ("-2", "-1", "0", "1"), (), (-2, -1, 0, 1)),
        Number("j", Decimals(0, 5000)),
        " end",
    )


def test_one_choice() -> None:
    assert Template.choosing([" yes ", "no"]).parts == (Choice("answer", ("yes", "no")),)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "has no blank"),
        ("only text", "has no blank"),
        ("{{a:tokens=0}}", "a: a blank of tokens needs 1"),
        ("{{a:tokens=0..0}}", "a: a blank of tokens needs 1"),
        ("{{a:tokens=5..2}}", "a: a blank of tokens needs 1"),
        ("{{a:tokens=-1}}", "a: tokens= is given no number"),
        ("{{a:tokens=}}", "a: tokens= is given no number"),
        ("{{a:tokens=99999}}", "a: 99999 tokens; the limit is 4096"),
        ("{{a:choice=}}", "a: two choices at least"),
        ("{{a:choice=yes}}", "a: two choices at least"),
        ("{{a:choice=yes|yes}}", "a: two choices are equal"),
        ("{{a:choice=yes| }}", "a: a choice has no text"),
        ("{{a:choice=" + "|".join(map(str, range(10**4))) + "}}", "a: 10000 choices; the limit is"),
        ("{{a:int=5..5}}", "a: its range is empty"),
        ("{{a:int=9..1}}", "a: its range is empty"),
        ("{{a:int=1..1000000000000000}}", "a: a bound has over 15 digits"),
        ("{{a:int=-1000000000000000 .. 1}}", "a: a bound has over 15 digits"),
        ("{{a:int=0..99999999999999999999999}}", "a: a bound has over 15 digits"),
        ("{{a:int=0..9 9}}", "a: int= is given no number or range"),
        ("{{a:int=1..1e3}}", "a: int= is given no number or range"),
        ("{{a:int=5}}", "a: int= is given no number or range"),
        ("{{a:words=5}}", "a: tokens=N, tokens=A..B, choice=a|b or int=A..B must"),
        ("{{a}}", "a: tokens=N"),
        ("{{:tokens=3}}", "blank number 1 needs a name"),
        ("{{1:tokens=3}}", "blank number 1 needs a name of ASCII letters, digits and _, no digit"),
        ("{{\u00e4:tokens=3}}", "needs a name of ASCII letters"),
        ("{{" + "a" * 65 + ":tokens=3}}", "no digit first, 64 at most; then a colon"),
        ("x {{a:tokens=3}} {{1b:tokens=3}}", "blank number 2 needs a name"),
        ("{{a:tokens=3}} {{a:tokens=3}}", "two blanks are named a"),
        ("{{a:tokens=3}}" + "x" * 2**20 + "y", "have over 1048576 characters"),
        ("x {{a:tokens=3", "number 1 does not end"),
        ("{{a:tokens=3}" + "}x\0", "NUL"),
        ("{{a:tokens=1}}" * 3000, "two blanks|parts; the limit is 2000"),
    ],
)
def test_what_cannot_be_filled_is_refused(text: str, rule: str) -> None:
    with pytest.raises(DataError) as error:
        Template.parse(text)
    assert error.value.code in ("E1309", "E1304")
    assert any(one in error.value.detail for one in rule.split("|") if len(one) > 8) or (
        rule in error.value.detail
    )


def test_choices_that_are_none() -> None:
    for texts in ([], ["yes"], ["yes", " yes"], ["", "no"]):
        with pytest.raises(DataError, match="E1309"):
            Template.choosing(texts)


def test_free_text_is_shown_trimmed_and_fit_for_json() -> None:
    assert shown(Words("a", 1, 3), "  a nodule\n") == "a nodule"
    assert shown(Words("a", 1, 3, True), ' a "b"\n') == ' a \\"b\\"\\n'
    assert shown(Words("a", 1, 3, True, 3), "abcdef") == "abc"
