"""Tables by group on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from medv_ray.cli.evaluating import tables_by_group
from medv_ray.evaluation.recipes import Question
from medv_ray.evaluation.results import by_group, narrow, shown


def test_the_most_frequent_value_first_with_intervals() -> None:
    questions = [
        Question(
            str(i), (), "q", "a", "closed" if i % 4 else "open",
            {"organ": "[bold]liver" if i % 3 else "lung"},
        )
        for i in range(60)
    ]  # fmt: skip
    found = {
        "open.m": {q.id: 0.5 for q in questions if q.kind == "open"},
        "closed.m": {q.id: float(int(q.id) % 2) for q in questions if q.kind == "closed"},
    }
    groups = by_group(questions, found)
    assert groups["organ"]["lung"]["closed.m"]["n"] == 15
    headline = {kind: {"metric": f"{kind}.m"} for kind in ("open", "closed")}
    [table] = tables_by_group({"recipes": {"slake": {"groups": groups, "headline": headline}}})
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert lines[0] == ["slake,", "by", "organ"]
    assert lines[2][:4] == ["[bold]liver", "10", "50.00", "50.00"]
    assert lines[3][:3] == ["lung", "5", "50.00"]
    assert lines[3][6:8] == ["15", "66.67"]


def test_right_or_wrong_ones_have_wilsons_interval() -> None:
    assert narrow([1.0] * 3)["low"] == pytest.approx(0.4385, abs=1e-3)
    assert narrow([0.5, 0.5])["low"] == 0.5


def test_a_headline_that_is_right_throughout_has_a_width_too() -> None:
    all_right, all_wrong = ({str(i): value for i in range(20)} for value in (1.0, 0.0))
    assert shown(all_right)["low"] == pytest.approx(1 - shown(all_wrong)["high"])
    assert 0.8 < shown(all_right)["low"] < 0.85
    assert shown(all_right)["high"] == 1.0
