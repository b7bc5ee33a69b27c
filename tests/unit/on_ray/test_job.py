"""What the driver does with results, and what it compares before it goes on. No Ray here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medv_ray.archive.plan import plan
from medv_ray.archive.rows import Part
from medv_ray.archive.run import Run
from medv_ray.archive.sources import open_archive
from medv_ray.errors import RunError
from medv_ray.on_ray import options
from medv_ray.on_ray.score import Session, _take
from tests.integration import stub


def result(rows: int, **reasons: int) -> dict[str, Any]:
    bad = sum(reasons.values())
    part = Part("k", "p", "h", "n", "s", 1, rows, rows - bad, 0, bad)
    return {"part": part.to_json(), "reasons": reasons, "processor": "CPU AVX2"}


@pytest.mark.parametrize(
    ("reason", "code"), [("internal_error", "E1509"), ("out_of_memory", "E1508")]
)
def test_a_job_whose_rows_mostly_fail_the_same_way_gives_up(reason: str, code: str) -> None:
    run: Any = SimpleNamespace(commit=lambda part: True, note_processor=lambda name: None)
    progress: Any = SimpleNamespace(add=lambda counts: None)
    chunk: Any = None
    session = Session()
    _take(run, session, progress, chunk, result(900, **{reason: 400}))
    _take(run, session, progress, chunk, result(100, **{reason: 100}))
    with pytest.raises(RunError, match=f"{code}: 600 of 1100 rows ended as {reason}"):
        _take(run, session, progress, chunk, result(100, **{reason: 100}))


def test_a_resume_with_another_torch_or_device_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    with Run.open(settings.out, planned, settings.identity("model")):
        pass
    monkeypatch.setattr(options, "version", lambda name: "99.0")
    with pytest.raises(RunError, match=r'code\.torch: "[^"]+" -> "99\.0"') as caught:
        Run.open(settings.out, planned, settings.identity("model"))
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    on_gpu = stub.settings(tmp_path, pool={"num_gpus": 0.5})
    with pytest.raises(RunError, match=r'model\.device: "cpu" -> "cuda"'):
        Run.open(settings.out, planned, on_gpu.identity("model"))
    named = settings.model.model_copy(update={"device": "cpu"})
    same = settings.model_copy(update={"model": named})
    Run.open(settings.out, planned, same.identity("model")).close()


def test_the_processors_that_answered_stand_in_the_manifest(tmp_path: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["a"])
    settings = stub.settings(tmp_path)
    planned = plan(open_archive(settings.archive), "digest")
    for name in ("CPU AVX2", "CPU AVX2", "NVIDIA H100"):
        with Run.open(settings.out, planned, settings.identity("model")) as run:
            run.note_processor(name)
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["processors"] == ["CPU AVX2", "NVIDIA H100"]
