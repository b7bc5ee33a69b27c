"""Batches on disk, without an endpoint."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from medv_ray.serving.batch.batches import Batch, Batches, BatchRequest
from medv_ray.serving.batch.journal import Journal, Progress
from medv_ray.serving.batch.shelf import Shelf, StoredFile
from medv_ray.serving.options import BatchSettings

ASKED = BatchRequest(
    input_file_id=f"file-{'a' * 32}", endpoint="/v1/responses", completion_window="24h"
)


def two(folder: Path) -> tuple[Batches, list[Batch]]:
    batches = Batches(Shelf(BatchSettings(folder=str(folder))))
    Path(batches.shelf.incoming(ASKED.input_file_id)).write_bytes(b"{}\n")
    now = int(time.time())
    about = StoredFile(ASKED.input_file_id, "", "in.jsonl", "batch", 3, now, now + 9999)
    batches.shelf.put(about)
    return batches, [batches.create("", ASKED, (name, 1)) for name in ("one", "two")]


def test_a_damaged_journal_ends_its_batch_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches, [one, other] = two(tmp_path)
    path = Path(batches.paths(one).journal)
    journal = Journal(str(path))
    journal.append(Progress(began=1.0, time=2.0, total=3))
    journal.close()
    assert len(batches.unfinished()) == 2
    path.write_bytes(path.read_bytes()[:-3] + b"x}\n")
    assert batches.unfinished() == [other]
    shown = batches.shown(one)
    assert shown["status"] == "failed"
    assert shown["failed_at"] == int(path.stat().st_mtime)
    assert shown["errors"]["data"][0]["code"] == "E1506"
    assert batches.shown(other)["status"] == "validating"
    with caplog.at_level(logging.ERROR):
        batches.sweep()
    assert "E1506" in caplog.text
    assert len(batches.all("")) == 2
