"""A job on Ray over rows full of canaries, some of which raise and some of which kill their worker:
none is in the logs of Ray's session, in its tables and metrics, or in what its dashboard shows."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray._private import services, state, worker

from medv_ray.archive.rows import read_run
from medv_ray.cli import summary_of
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.score import Resume, score
from tests.canary import planting, search
from tests.canary.planting import QUESTION
from tests.canary.reader import READER
from tests.integration import stub

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]
WAIT_S = 120.0


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
    assert search.in_value([state.actors(), ray.nodes(), state.jobs(), ray.timeline()]) == []
    port = ray.nodes()[0]["MetricsExportPort"]
    metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert search.in_text(metrics) == []
    with dashboard() as client:
        submit(client, tmp_path, settings)
        pages = shown(client)
        assert {"/api/jobs/", "/api/v0/tasks", "/api/v0/actors", "/logical/actors"} <= set(pages)
        assert any("worker-" in page for page in pages), "logs are shown, too"
        assert "failed with exit code 3" in pages["/api/jobs/"], "the job's error text"
        assert "E1502" in pages["/api/jobs/"]
        for page, text in pages.items():
            assert search.in_text(text) == [], page
        # the search looks where it matters: what a worker logs is found, and what a task raises
        ray.get(ray.remote(_leak).remote())
        with pytest.raises(ValueError, match=planting.WORD):
            ray.get(ray.remote(_raise).remote())
        with search.planted():
            assert search.in_folder(logs)
        for wanted in ("/api/v0/tasks", "worker-"):
            with search.planted():
                until_found(client, wanted)
    for file in logs.rglob("*"):
        if file.is_file() and planting.WORD.encode() in (data := file.read_bytes()):
            file.write_bytes(data.replace(planting.WORD.encode(), b"?" * 9))
    assert search.in_folder(logs) == []


def _leak() -> None:
    import sys

    sys.stderr.write(f"{planting.WORD}\n")
    sys.stderr.flush()


def _raise() -> None:
    raise ValueError(planting.WORD)


@contextmanager
def dashboard() -> Iterator[httpx2.Client]:
    """The dashboard of this process's Ray, which has been started without one."""
    node = worker._global_node
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = f"{node.get_logs_dir_path()}/dashboard-of-test"
    _, started = services.start_api_server(
        True, True, "127.0.0.1", node.gcs_address, node.cluster_id.hex(), node.node_ip_address,
        node.get_temp_dir_path(), node.get_logs_dir_path(), node.get_session_dir_path(), port,
        stdout_filepath=f"{log}.out", stderr_filepath=f"{log}.err",
    )  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + WAIT_S
    try:
        with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
            while True:
                try:
                    if client.get("/api/version").status_code == 200:
                        break
                except httpx2.TransportError:
                    pass
                assert started.process.poll() is None, "the dashboard ended"
                assert time.monotonic() < deadline, "the dashboard does not start"
                time.sleep(0.2)
            yield client
    finally:
        started.process.terminate()
        started.process.wait()


def submit(client: httpx2.Client, folder: Path, settings: ScoreSettings) -> None:
    """A job by the dashboard's own way, which refuses to go on: its error text is kept there."""
    changed = settings.model_copy(update={"seed": settings.seed + 1})
    config = folder / "job.yaml"
    config.write_text(json.dumps(changed.model_dump(mode="json", exclude_defaults=True)))
    call = "from medv_ray.cli import main; main()"
    body = {
        "entrypoint": f"{sys.executable} -c '{call}' score --config {config}",
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    }
    deadline = time.monotonic() + WAIT_S
    while (answer := client.post("/api/jobs/", json=body)).status_code != 200:
        assert time.monotonic() < deadline, answer.text  # the node's agent comes up last
        time.sleep(1)
    name = answer.json()["submission_id"]
    while client.get(f"/api/jobs/{name}").json()["status"] not in ("FAILED", "SUCCEEDED"):
        assert time.monotonic() < deadline, "the submitted job does not end"
        time.sleep(0.3)


def shown(client: httpx2.Client) -> dict[str, str]:
    """What the dashboard shows, by address: its tables, and every log that it lists."""
    job, node = ray.get_runtime_context().get_job_id(), ray.nodes()[0]["NodeID"]
    tables = [
        "/api/cluster_status", "/api/component_activities", "/api/jobs/", "/events",
        "/logical/actors", "/nodes?view=summary", "/nodes?view=details", f"/nodes/{node}",
        f"/api/data/datasets/{job}", "/api/v0/tasks/timeline", "/api/v0/tasks/summarize",
        "/api/v0/actors/summarize", "/api/v0/objects/summarize", "/api/train/v2/runs/v1",
        *(f"/api/v0/{name}?detail=1&limit=10000" for name in (
            "actors", "jobs", "nodes", "objects", "placement_groups", "runtime_envs", "tasks",
            "workers", "cluster_events")),
    ]  # fmt: skip
    listed = client.get(f"/api/v0/logs?node_id={node}&glob=*").json()["data"]["result"]
    names = sorted({name for group in listed.values() for name in group})
    assert names
    tables += [f"/api/v0/logs/file?node_id={node}&filename={name}&lines=-1" for name in names]
    found = {}
    for address in tables:
        answer = client.get(address)
        if answer.status_code == 200:
            found[address.partition("?")[0] if "/file?" not in address else address] = answer.text
    for job in json.loads(found["/api/jobs/"]):
        if job["submission_id"]:
            found["of the job"] = client.get(f"/api/jobs/{job['submission_id']}/logs").text
    return found


def until_found(client: httpx2.Client, wanted: str) -> None:
    """Tables of tasks and files of logs follow after some seconds."""
    deadline = time.monotonic() + WAIT_S
    while not search.in_text(*(t for page, t in shown(client).items() if wanted in page)):
        assert time.monotonic() < deadline, wanted
        time.sleep(0.5)
