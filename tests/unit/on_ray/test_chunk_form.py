"""Rows whose answers have a form, through the scorer of chunks to the run's columns and back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.plan import plan
from medv_ray.archive.results import Choice, batches
from medv_ray.archive.rows import read_part
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.cli import read_canvas
from medv_ray.data import synthetic
from medv_ray.data.canvas import Template
from medv_ray.data.json_schema import template_of_text
from medv_ray.engine import Predictor
from medv_ray.errors import SettingsError
from medv_ray.on_ray.blanks import fields
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.score import check_form
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings, build
from tests.integration import stub

ANSWER = AnswerSettings(sampler=SamplerSettings(gen_length=8, block_length=8, steps=8))
FORM = (
    "{{vessel:choice=yes|no}}, {{cells:int=0..9}} cells, {{size:int=0..5000}} um: "
    "{{note:tokens=0..4}}"
)


def test_blanks_are_columns(tmp_path: Path) -> None:
    made = list(synthetic.rows(2, 3))
    table = {
        "image": [row.image for row in made] + [b"none"],
        "question": [row.question for row in made] + ["?"],
    }
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "in.parquet")
    settings = stub.settings(folder)
    planned = plan(open_archive(settings.archive), "digest")
    store = Store(str(tmp_path / "run"))
    scorer = ChunkScorer(
        planned.archive,
        store,
        ANSWER,
        lambda: Predictor.load(ModelSettings(path=str(TOY)), ANSWER),
        template=Template.parse(FORM),
    )
    [chunk] = planned.chunks
    part = scorer.write(chunk, scorer.answer(scorer.read(chunk)))
    scorer.close()
    found = read_part(store, part.hidden, part.sha256)
    types = {name: found.schema.field(f"blank_{name}").type for name in ("vessel", "cells", "size")}
    assert types == {"vessel": pa.string(), "cells": pa.int64(), "size": pa.int64()}
    *answered, bad = found.to_pylist()
    for row in answered:
        assert row["answer"] == (
            f"{row['blank_vessel']}, {row['blank_cells']} cells, {row['blank_size']} um: "
            f"{row['blank_note']}"
        )
        assert sum(row["probabilities_vessel"]) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities_vessel"]) == row["confidence_vessel"]
        assert 0 < row["confidence_note"] <= 1
    assert bad["status"] == "quarantined"
    assert bad["blank_vessel"] is bad["confidence_vessel"] is None
    assert read_part(store, part.hidden, part.sha256, ["id"]).column_names == ["id"]
    [whole] = batches(iter([Choice(limit=2).mask(found)]))
    assert "blank_note" in whole.column_names


def test_columns_of_a_schema() -> None:
    text = (
        '{"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}, '
        '"c": {"type": "number"}, "d": {"enum": ["x", 1]}, "e": {"enum": ["x", "y"]}}}'
    )
    kinds = {f.name: str(f.type) for f in fields(template_of_text(text)) if "blank" in f.name}
    assert kinds == {
        "blank_a": "int64", "blank_b": "bool", "blank_c": "double", "blank_d": "string",
        "blank_e": "string",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "it has no blank."),
        ("{{a:tokens=1}}{{a:tokens=1}}", "two blanks are named a."),
        ('{"type": "string", "pattern": "x"}', "the schema at #/pattern: is not understood"),
    ],
)
def test_a_file_of_no_form_is_named(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "form.txt").write_text(text)
    with pytest.raises(SettingsError) as refused:
        read_canvas(tmp_path / "form.txt")
    assert refused.value.code == "E1309"
    assert refused.value.detail.startswith(f"--canvas form.txt: {rule}")


def test_a_form_that_no_answer_can_have_is_refused_before_the_start(tmp_path: Path) -> None:
    settings = stub.settings(tmp_path)
    values = settings.model_dump(exclude={"canvas"}) | {"model": {"path": str(TOY)}}
    for canvas, rule in (
        ("no blank", "has no blank"),
        ("{{a:tokens=4000}}", "it takes 4001 tokens"),
        ('{"type": "string", "pattern": "x"}', "#/pattern"),
        ("[1]", "has no blank"),
    ):
        with pytest.raises((SettingsError, ValueError), match=rule):
            check_form(ScoreSettings(**values, canvas=canvas))
    for canvas, rule in (("no blank", "it has no blank (given: "), ("\0{{a:int=0..5}}", "NUL")):
        with pytest.raises(SettingsError) as refused:
            build(ScoreSettings, {**values, "canvas": canvas})
        assert refused.value.code == ("E1304" if rule == "NUL" else "E1309")
        assert rule in refused.value.detail
        assert "Value error" not in refused.value.detail
    check_form(ScoreSettings(**values, canvas=FORM))
    identity = ScoreSettings(**values, canvas=FORM).identity("x")
    assert identity["canvas"] == FORM
    assert "canvas" not in ScoreSettings(**values).identity("x"), "as before"
