"""A scoring job that a harness starts, watches, and starts again: a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medv_ray.archive.rows import read_run
from tests.chaos.ray_nodes import end_all, wait_for
from tests.integration import processes, stub

CHUNK_ROWS = 8
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Rows:
    """What became of an archive's rows."""

    rows: int
    missing: int
    duplicate: int
    ends: Counter[str]
    """By status, quarantined ones by reason."""

    @property
    def all_answered(self) -> bool:
        """Each of them, once."""
        return not self.missing and not self.duplicate and self.ends == {"answered": self.rows}

    def said(self) -> dict[str, Any]:
        """For a harness's line."""
        return {"rows": self.rows, "missing": self.missing, "duplicate": self.duplicate}


@dataclass
class ScoringJob:
    """Of `in.parquet` of a folder into its `run`."""

    folder: Path
    command: list[str]
    environment: dict[str, str]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=processes.ROOT, env=self.environment, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def commits(self) -> int:
        return commits(self.folder)

    def wait_for_commits(self, process: subprocess.Popen[str], at_least: int) -> None:
        """Raises SystemExit where the job ends first."""
        self.wait_for(process, lambda: self.commits() >= at_least, f"{at_least} commits")
        if self.commits() < at_least:
            raise SystemExit(f"the job ended before {at_least} commits: {process.communicate()}")

    def wait_for(
        self, process: subprocess.Popen[str], ready: Callable[[], bool], what: str
    ) -> None:
        """Until it is ready, or the job has ended."""
        wait_for(lambda: ready() or process.poll() is not None, what, PATIENCE_S)

    def end(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
        """Exit code, the last line of stdout as JSON, and stderr."""
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            end_all(process)
            raise SystemExit("the job hangs") from None
        lines = out.splitlines()
        said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return process.returncode, said, err

    def rows(self) -> Rows:
        """Of the archive, as the run has them."""
        rows = pq.read_metadata(self.folder / "in.parquet").num_rows
        table = [row for part in read_run(str(self.folder / "run")) for row in part.to_pylist()]
        ids = {row["id"] for row in table}
        ends = Counter(row["reason"] or row["status"] for row in table)
        return Rows(rows, rows - len(ids), len(table) - len(ids), ends)


def stubbed(folder: Path, questions: list[str], max_actors: int) -> ScoringJob:
    """One whose predictor does what its questions say."""
    stub.write_archive(folder / "in.parquet", questions)
    more = {"chunk_rows": CHUNK_ROWS, "pool": {"max_actors": max_actors}}
    return ScoringJob(
        folder,
        [sys.executable, "-m", "tests.integration.run_job", str(folder)],
        {**processes.environment(folder), "MEDV_TEST_SETTINGS": json.dumps(more)},
    )


def commits(folder: Path) -> int:
    """Commits in the ledger of a folder's run; a torn last line is none."""
    ledger = folder / "run" / "ledger.jsonl"
    return ledger.read_bytes().count(b'"commit"') if ledger.exists() else 0
