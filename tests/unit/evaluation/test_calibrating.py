"""`medv calibrate --run`, the rows it judges, and agreement of samples."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from medv_ray.archive.plan import plan
from medv_ray.archive.rows import write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.cli import app
from medv_ray.evaluation.consistency import separation
from medv_ray.evaluation.judged_rows import JudgedRows, judged, judged_rows
from medv_ray.evaluation.recipes import Question
from medv_ray.evaluation.stored_calibration import read_calibration
from medv_ray.model import weights
from medv_ray.on_ray.abstaining import with_stored
from medv_ray.on_ray.calibrate import agreement, says_the_same, table_of
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.question_table import write_once
from medv_ray.settings import TOY, ModelSettings


def write_run(out: Path, records: list[dict[str, Any]], model: Path = TOY) -> str:
    """A finished run of the embedded toy's settings with these answers."""
    count = len(records)
    table = {"id": [r["id"] for r in records], "question": ["q?"] * count, "image": ["x"] * count}
    archive = out.with_suffix(".parquet")
    pq.write_table(pa.table(table), archive)
    settings = ArchiveSettings(archive=str(archive), chunk_rows=4096)
    planned = plan(open_archive(settings), "settings")
    score = ScoreSettings(
        out=str(out), archive=settings, model=ModelSettings(path=str(model)), abstain_below=None
    )
    with Run.open(str(out), planned, score.identity(weights.digest(model))) as run:
        for chunk in run.todo():
            rows = [{"row": i, "status": "answered", **records[i]} for i in chunk.rows]
            run.commit(write_part(run.store, chunk, rows))
        run.finish()
    return str(out)


def answers(n: int, power: float = 2.0) -> list[dict[str, Any]]:
    """The surer, the more often right; four rows a picture."""
    random = np.random.default_rng(0)
    sure = random.random(n)
    return [
        {
            "id": f"r{i}", "confidence": c, "answer": "yes" if random.random() < c**power else "no",
            "reference": "yes", "image_sha256": f"{i // 4}",
        }
        for i, c in enumerate(sure.tolist())
    ]  # fmt: skip


def called(*flags: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, flags)])


def test_from_a_run_to_the_threshold_that_scoring_takes(tmp_path: Path) -> None:
    model = Path(shutil.copytree(TOY, tmp_path / "toy"))
    run = write_run(tmp_path / "run", answers(1200), model)
    out = tmp_path / "out"
    result = called("--run", run, "--model", model, "--target-risk", 0.3, "--out", out, "--store")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["answers"] == 1200
    assert said["ece"]["after"] < 0.06 < said["ece"]["before"]
    assert said["abstention"]["bound"] <= 0.3
    assert 0.6 < said["abstain_below"] < 0.9
    assert read_calibration(model) == read_calibration(out)
    assert (out / "calibration.svg").read_text().startswith("<?xml")
    settings = ScoreSettings(
        out=str(tmp_path / "new"),
        archive=ArchiveSettings(archive="a"),
        model=ModelSettings(path=str(model)),
    )
    assert with_stored(settings)[0].abstain_below == said["abstain_below"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answers(60))
    unknown = write_run(tmp_path / "other", [{**one, "reference": None} for one in answers(60)])
    other = Path(shutil.copytree(TOY, tmp_path / "toy"))
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    for flags, words in (
        (("--run", run), "--out is missing"),
        (("--run", run, "--data", "d"), "one of them"),
        (("--run", run, "--out", "o", "--target-risk", 1), "between 0 and 1"),
        (("--run", run, "--out", "o", "--method", "x"), "auto, temperature, logistic, isotonic"),
        (("--run", run, "--out", "o", "--limit", 9, "--split", "test"), "--split, --limit: only"),
        (("--run", run, "--store"), "--store writes beside it"),
        (("--run", run, "--store", "--model", other), "not the model that answered"),
        (("--run", unknown, "--out", tmp_path / "o"), "0 answers with a known reference"),
        (("--run", unknown, "--out", tmp_path / "o"), "60 unknown"),
        (("--run", tmp_path, "--out", tmp_path / "o"), "E1507"),
    ):
        result = called(*flags)
        assert result.exit_code != 0
        assert words in result.output, result.output
    assert not (tmp_path / "o").exists()


def test_which_rows_are_judged_and_how() -> None:
    row = {"id": "a", "status": "answered", "confidence": 0.5, "image_sha256": None}
    rows = judged(
        [
            {**row, "answer": "No, normal.", "reference": "no", "answer_type": None},
            {**row, "answer": "It is the lung", "reference": "lung", "answer_type": "closed"},
            {**row, "answer": "It is the lung", "reference": "lung", "answer_type": "open"},
            {**row, "answer": "", "reference": "no", "answer_type": None},
            {**row, "answer": "x", "reference": "N/A", "answer_type": None},
            {**row, "status": "abstained", "answer": "x", "reference": "y", "answer_type": None},
            {**row, "status": "quarantined", "answer": None, "reference": "y", "answer_type": None},
        ]
    )
    assert rows.right == [True, True, False, False]
    assert rows.kind == ["closed", "closed", "open", "open"]
    assert rows.picture == ["a"] * 4
    assert rows.left_out == {"quarantined": 1, "empty": 1, "unknown": 1}


def test_samples_that_say_the_same(tmp_path: Path) -> None:
    assert says_the_same("Yes", "yes, there is")
    assert not says_the_same("Yes", "no")
    assert says_the_same("the Lung.", "lung")
    assert not says_the_same("lung", "left lung")
    texts = {"a#0": "yes", "a#1": "no", "a#2": "Yes.", "a#3": None, "b#1#0": "lung", "x#0": "yes"}
    run = write_run(tmp_path / "s", [{"id": k, "answer": v} for k, v in texts.items()])
    rows = JudgedRows(id=["a", "b#1", "c"], answer=["yes", "Lung", "liver"])
    assert agreement(rows, run) == [0.5, 1.0, 0.0]


def test_copies_of_questions_about_one_picture_lie_together() -> None:
    asked = [
        Question(key, (image,), "q?", "a", "open", {})
        for key, image in (("1", "b" * 64), ("2", "a" * 64), ("3", "b" * 64))
    ]
    assert table_of(asked, 2).column("id").to_pylist() == ["2#0", "2#1", "1#0", "1#1", "3#0", "3#1"]
    plain = table_of(asked, None)
    assert plain.column("id").to_pylist() == ["2", "1", "3"]
    assert plain.column("image").to_pylist() == [
        [f"images/aa/{'a' * 64}"],
        [f"images/bb/{'b' * 64}"],
        [f"images/bb/{'b' * 64}"],
    ]


def test_half_a_file_is_written_anew_and_a_whole_one_stays(tmp_path: Path) -> None:
    made, path = pa.table({"id": ["a"] * 100}), tmp_path / "questions.parquet"
    write_once(path, made)
    whole, written = path.read_bytes(), path.stat().st_mtime_ns
    write_once(path, made)
    assert path.stat().st_mtime_ns == written
    for text in (whole[: len(whole) // 2], b"", whole[:-4] + b"xxxx"):
        path.write_bytes(text)
        write_once(path, made)
        assert path.read_bytes() == whole
    write_once(path, made.slice(1))
    assert pq.read_table(path).num_rows == 99
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_which_score_separates_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medv_ray.evaluation.consistency.RESAMPLES", 60)
    random = np.random.default_rng(0)
    right = (np.arange(200) % 2 == 0).tolist()
    rows = JudgedRows(
        id=[str(i) for i in range(200)], confidence=random.random(200).tolist(), right=right,
        kind=["open"] * 120 + ["closed"] * 80,
    )  # fmt: skip
    found = separation(rows, [0.8 if hit else 0.2 for hit in right])
    assert found["all"]["agreement"] == {"auroc": 1.0, "low": 1.0, "high": 1.0}
    assert found["all"]["confidence"]["low"] < 0.5 < found["all"]["confidence"]["high"]
    assert found["all"]["difference"]["low"] > 0.3
    assert (found["open"]["n"], found["closed"]["n"]) == (120, 80)
    rows.right = [True] * 200
    assert separation(rows, [1.0] * 200)["all"]["agreement"] is None


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    assert len(judged_rows(write_run(tmp_path / "run", answers(60)))) == 60


def test_without_matplotlib_nothing_is_scored_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "medv_ray.evaluation.plots", raising=False)
    words = ["--model", "toy", "--data", "no-such-data", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["calibrate", *words])
    assert done.exit_code == 2
    assert "E1003" in done.output
    assert not (tmp_path / "out").exists()
