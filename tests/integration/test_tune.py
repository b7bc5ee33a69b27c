"""`medv tune` on the toy, and its pick in a scoring job."""

from __future__ import annotations

from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run
from medv_ray.cli import score_settings
from medv_ray.data import synthetic
from medv_ray.on_ray.score import score
from medv_ray.on_ray.tune import TuneSettings, tune

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.slow
def test_a_scoring_job_takes_the_pick(tmp_path: Path) -> None:
    synthetic.write_archive(tmp_path / "in.parquet", 12, 0)
    flags = {
        "archive": {"archive": str(tmp_path / "in.parquet")},
        "model": {"path": "toy"},
        "pool": {"max_actors": 1},
    }
    out = {"out": str(tmp_path / "tuned")}
    # so low a share that a handful of rows can show it
    found = tune(score_settings(None, flags | out, []), TuneSettings(agree=0.3, rows=6, verify=2))
    assert found["pick"] != "exact"
    assert found["verified"]["agreement"]["n"] == 2
    settings = score_settings(
        tmp_path / "tuned" / "tune.json", flags | {"out": str(tmp_path / "run")}, []
    )
    outcome = score(settings)
    assert outcome.summary is not None
    assert outcome.summary.answered == 12
    passes = [
        row["forward_passes"]
        for table in read_run(settings.out, ["forward_passes"])
        for row in table.to_pylist()
    ]
    assert max(passes) < settings.sampler.steps
