"""A job on Ray over rows full of canaries, some of which raise and some of which kill their worker:
none is in the logs of Ray's session, in its tables or in its metrics."""

import json
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray._private import state, worker

from medv_ray.archive.rows import read_run
from medv_ray.cli import summary_of
from medv_ray.on_ray.score import Resume, score
from tests.canary import planting, search
from tests.canary.planting import QUESTION
from tests.canary.reader import READER
from tests.integration import stub

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]


def test_a_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = planting.write_folder(tmp_path)
    rows = planting.records()
    words = ("raise", "memory", "bad", "abort")
    rows += [
        {**rows[0], "id": f"{planting.WORD}-{w}", "question": f"{w} {QUESTION}"} for w in words
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"note": planting.everything()})
    pq.write_table(table, archive / "cases.parquet")
    settings = stub.settings(tmp_path, pool={"max_actors": 1})
    given = settings.archive.model_copy(update={"archive": str(archive)})
    settings = settings.model_copy(update={"archive": given})
    outcome = score(settings, factory=READER)
    outcome = score(settings, Resume(), factory=READER)  # and once more, with nothing to do
    assert outcome.summary is not None
    assert outcome.summary.reasons["worker_crash"] == 1
    assert outcome.summary.reasons["internal_error"] == 1
    assert outcome.summary.answered
    assert sum(part.num_rows for part in read_run(settings.out)) == len(rows)
    said = capfd.readouterr()
    assert search.in_text(said.out, said.err, json.dumps(summary_of(outcome, settings))) == []
    held = ("rows", "quarantine", "run.json", "inputs", "metrics.json")
    assert search.in_folder(Path(settings.out), lambda name: name.startswith(held)) == []

    logs = Path(worker._global_node.get_session_dir_path()) / "logs"
    assert any(file.stat().st_size for file in logs.glob("worker-*"))
    assert search.in_folder(logs) == []
    assert search.in_value([state.actors(), ray.nodes(), state.jobs()]) == []
    port = ray.nodes()[0]["MetricsExportPort"]
    metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert search.in_text(metrics) == []
    # the search looks where it matters: what a worker logs is found
    ray.get(ray.remote(_leak).remote())
    assert search.in_folder(logs)
    for file in logs.glob("worker-*"):
        file.write_bytes(file.read_bytes().replace(planting.WORD.encode(), b"?" * 9))
    assert search.in_folder(logs) == []


def _leak() -> None:
    import sys

    sys.stderr.write(f"{planting.WORD}\n")
    sys.stderr.flush()
