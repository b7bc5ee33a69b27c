"""`medv attention` on the embedded toy, and what the three commands refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.data import synthetic
from medv_ray.engine.attending import GROUPS
from medv_ray.evaluation import plots
from medv_ray.on_ray.attention import MOMENTS

runner = CliRunner()


def test_the_toy_looks_at_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "chart", lambda title, panels: f"<svg>{len(panels)}</svg>")
    rows = list(synthetic.rows(2))
    table = {
        "id": ["a", "b", "c"],
        "image": [rows[0].image, rows[1].image, b"<html>"],
        "question": [rows[0].question, rows[1].question, "what?"],
    }
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    line = ["attention", "--model", "toy", "--data", str(tmp_path / "in.parquet")]
    result = runner.invoke(app, [*line, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "2 rows, sample seed 0; quarantined: E1202 1" in result.output
    found = json.loads((tmp_path / "out" / "attention.json").read_bytes())
    assert found["quarantined"] == {"E1202": 1}
    assert len(found["share"]) == len(MOMENTS)
    for moment, even in zip(found["share"], found["even"], strict=True):
        assert sum(even) == pytest.approx(1)
        for layer in moment:
            assert sum(layer) == pytest.approx(1, abs=1e-4)
    tokens = [even[GROUPS.index("tokens")] for even in found["even"]]
    assert tokens == sorted(tokens)
    assert tokens[0] == 0.0 < tokens[-1]
    assert (tmp_path / "out" / "attention.svg").read_text() == "<svg>6</svg>"
    assert "| even |" in (tmp_path / "out" / "attention.md").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["sweep", "--data", "x", "--out", "o"], "--model is missing"),
        (["sweep", "--model", "toy", "--out", "o"], "--data is missing"),
        (["sweep", "--model", "=x", "--data", "x", "--out", "o"], "LABEL=FOLDER"),
        (["attention", "--model", "toy", "--out", "o"], "--data is missing"),
        (["tune", "--model", "toy", "--archive", "x", "--out", "s3://b/o"], "a local folder"),
        (["tune", "--model", "toy", "--archive", "x", "--out", "o", "--agree", "1.5"], "agree"),
        (["tune", "--model", "toy", "--archive", "x"], "--out is missing"),
        (["tune", "--model", "toy", "--archive", "x", "--out", "o", "--limit", "0"], "limit"),
    ],
)
def test_what_is_missing_or_wrong_is_named(line: list[str], said: str) -> None:
    result = runner.invoke(app, line)
    assert result.exit_code == 2
    assert "E1001" in result.output
    assert said in result.output


def test_several_models_are_for_scaling(tmp_path: Path) -> None:
    line = ["sweep", "--model", "toy", "--model", "b=toy", "--data", "x", "--grid", "steps"]
    result = runner.invoke(app, [*line, "--out", str(tmp_path / "o")])
    assert "E1001: several models: only with --grid scaling" in result.output
    assert not (tmp_path / "o").exists()
