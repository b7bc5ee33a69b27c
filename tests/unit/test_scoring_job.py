"""tests/chaos/scoring_job.py, on which what the harnesses promise of rows rests."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.chaos import scoring_job
from tests.chaos.scoring_job import Rows, ScoringJob, commits, stubbed
from tests.integration import stub


def a_job(folder: Path, code: str) -> ScoringJob:
    return ScoringJob(folder, [sys.executable, "-S", "-c", code], {})


def test_rows_that_are_missing_or_come_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Any] = []

    def have(*rows: tuple[str, str, str | None]) -> Rows:
        names = ("id", "status", "reason")
        parts[:] = [pa.Table.from_pylist([dict(zip(names, row, strict=True))]) for row in rows]
        return stubbed(tmp_path, ["what?"] * 3, 2).rows()

    monkeypatch.setattr(scoring_job, "read_run", lambda folder: parts)
    a, b, c = ((name, "answered", None) for name in "abc")
    assert have(a, b, c).all_answered
    assert have(a, b, c).said() == {"rows": 3, "missing": 0, "duplicate": 0}
    lost, twice = have(a, b), have(a, b, c, c)
    assert (lost.missing, lost.duplicate, lost.all_answered) == (1, 0, False)
    assert (twice.missing, twice.duplicate, twice.all_answered) == (0, 1, False)
    assert not have(a, a, b).all_answered
    bad = have(a, b, ("c", "quarantined", "worker_crash"))
    assert bad.ends == Counter(answered=2, worker_crash=1)
    assert not bad.all_answered


def test_what_a_job_says_at_its_end(tmp_path: Path) -> None:
    job = a_job(tmp_path, "import sys; print(1); print('{\"a\": 2}'); sys.exit(' wrong')")
    assert job.end(job.start()) == (1, {"a": 2}, " wrong\n")
    silent = a_job(tmp_path, "")
    assert silent.end(silent.start()) == (0, {}, "")


def test_a_job_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_job, "PATIENCE_S", 0.2)
    job = a_job(tmp_path, "import time; time.sleep(60)")
    process = job.start()
    with pytest.raises(SystemExit, match="hangs"):
        job.end(process)
    assert process.poll() is not None


def test_commits_are_waited_for_and_an_early_end_is_told(tmp_path: Path) -> None:
    assert commits(tmp_path) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text('{"kind": "commit"}\n{"kind": "commit"}\n{"k')
    assert commits(tmp_path) == 2
    job = a_job(tmp_path, "print('no room')")
    process = job.start()
    job.wait_for_commits(process, 2)
    with pytest.raises(SystemExit, match="ended before 3 commits.*no room"):
        job.wait_for_commits(process, 3)


def test_a_stubbed_job_has_the_archive_and_the_settings(tmp_path: Path) -> None:
    job = stubbed(tmp_path, ["one?", "two?"], 5)
    assert (tmp_path / "in.parquet").is_file()
    settings = stub.settings(tmp_path, **json.loads(job.environment["MEDV_TEST_SETTINGS"]))
    assert (settings.pool.max_actors, settings.archive.chunk_rows) == (5, scoring_job.CHUNK_ROWS)
