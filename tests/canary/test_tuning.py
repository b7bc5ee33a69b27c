"""What `medv tune`, `sweep`, `attention`, `plan`, `doctor` and `data preview` say about rows that
are full of canaries. trials.jsonl and preview.html hold rows by design; figures and tables none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.on_ray import trial_run
from tests.canary import planting, search
from tests.canary.conftest import Medv
from tests.canary.planting import FILE, QUESTION, WORD
from tests.canary.reader import Reader
from tests.integration import stub

pytestmark = pytest.mark.integration


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Arguments of a command that tries settings on an archive."""
    monkeypatch.setattr(trial_run, "load_predictor", lambda settings: Reader())
    archive = planting.write_table(tmp_path, "parquet") / "cases.parquet"
    model = stub.write_model(tmp_path / "model")
    sampler = ["--set", "sampler.gen_length=8", "--set", "sampler.block_length=8"]

    def make(command: str, flag: str, out: str, *more: object) -> list[Any]:
        given = [command, flag, archive, "--model", model, "--out", tmp_path / out, *sampler]
        return [*given, "--set", "sampler.steps=8", *more]

    return make


def beside(folder: Path) -> list[search.Hit]:
    return search.in_folder(folder, lambda name: name == trial_run.JOURNAL)


def test_tuning(tmp_path: Path, words: Callable[..., list[Any]], medv: Medv) -> None:
    for more in ([], ["--json"]):  # the second goes on
        said = medv(
            *words("tune", "--archive", "tuned", "--rows", "24", "--agree", "0.3", *more),
            "--verify", "8",
        )  # fmt: skip
    assert json.loads(said.splitlines()[-1])["quarantined"], "damaged rows were asked, too"
    assert beside(tmp_path / "tuned") == []
    with search.planted():
        search.in_folder(tmp_path / "tuned")
    journal = tmp_path / "tuned" / trial_run.JOURNAL
    journal.write_text(f'["{WORD}", "{QUESTION}"]\n')
    medv(*words("tune", "--archive", "tuned", "--rows", "24"), fails=True)
    medv(*words("tune", "--archive", "other", "--question-column", "no"), fails=True)


@pytest.mark.slow
def test_a_sweep(tmp_path: Path, words: Callable[..., list[Any]], medv: Medv) -> None:
    for more in ([], ["--json"]):
        medv(*words("sweep", "--data", "swept", "--grid", "steps", "--rows", "12", *more))
    assert list((tmp_path / "swept").glob("*.svg"))
    assert beside(tmp_path / "swept") == []


def test_every_row_is_bad(tmp_path: Path, words: Callable[..., list[Any]], medv: Medv) -> None:
    given = words("tune", "--archive", "none", "--rows", "24")
    rows = [row for row in planting.records() if row["image"].startswith(("..", "/", "http"))]
    pq.write_table(pa.Table.from_pylist(rows), given[2])
    medv(*given, fails=True)
    given[0:2] = ["sweep", "--data"]
    medv(*given[:-2], "--grid", "steps", fails=True)


@pytest.mark.slow
def test_attention(tmp_path: Path, medv: Medv) -> None:
    """By the toy itself: nothing stands in for a look inside."""
    data = planting.write_prepared(tmp_path / "data", 4)
    for more in ([], ["--json"]):
        out = tmp_path / f"looked{len(more)}"
        medv("attention", "--model", "toy", "--data", data, "--out", out, "--rows", "2", *more)
        assert search.in_folder(out) == []


def test_the_machine_and_the_plan(
    tmp_path: Path, medv: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / FILE
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("RAY_TMPDIR", str(here))
    monkeypatch.setattr(
        "medv_ray.on_ray.doctor.check_model", lambda model: iter(())
    )  # a second of a model
    medv("doctor", fails=True)  # the folder's name is too long for Ray
    monkeypatch.setenv("RAY_TMPDIR", str(here / "no"))
    medv("doctor", fails=True)
    data = planting.write_prepared(tmp_path / "data")
    planned = ["plan", "train", "--stage", "sd_sft_pathvqa", "--gpus", "4"]
    for more in ([], ["--json"]):
        medv(*planned, "--data", data, *more)
    for fold in range(3):
        whole = (data / "train.parquet").read_bytes()
        cut = random.Random(fold).randrange(len(whole))
        (data / "train.parquet").write_bytes(whole[:cut] + planting.everything().encode())
        medv(*planned, "--data", data, fails=True)
        (data / "train.parquet").write_bytes(whole)
    medv("data", "preview", "--data", data, "--rows", "3", "--out", tmp_path / "page.html")
    with search.planted():
        search.hits((tmp_path / "page.html").read_bytes())
    medv("data", "preview", "--data", data, "--split", "validation", fails=True)
