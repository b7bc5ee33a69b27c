"""Jobs as processes of their own, each with a Ray of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run
from medv_ray.on_ray.demo import write_demo
from medv_ray.settings import TOY
from tests.integration import processes, stub
from tests.integration.processes import ROOT, environment

CANARIES = ("canaryquestion", "canaryid", "canaryfolder", "canaryimage", "canaryanswer")


def leaks(folder: Path) -> list[str]:
    """Names of files below `folder` that hold a canary."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path.name}: {c}" for c in CANARIES if c.encode() in data]
    return found


@pytest.mark.slow
def test_no_row_content_reaches_output_or_logs(tmp_path: Path, ray_folder: Path) -> None:
    """A raising row, a crashing row, a broken row and good ones, all with names of patients."""
    folder = tmp_path / "canaryfolder"
    words = ["raise", "abort", "bad", *["what"] * 13]
    stub.write_archive(
        folder / "in.parquet", [f"{word} canaryquestion" for word in words], name="canary"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.run_job", str(folder)],
        cwd=ROOT, env=environment(ray_folder), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["reasons"] == {"internal_error": 1, "prompt_too_long": 1, "worker_crash": 1}
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("no row after")] == []  # a slow machine
    assert not [c for c in CANARIES if c in done.stdout + done.stderr]
    assert list(ray_folder.rglob("raylet.out")), "Ray's logs are not where this test looks"
    assert leaks(ray_folder) == []


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def head(ray_folder: Path) -> Iterator[str]:
    """A local head with a dashboard; ended by its own process ids."""
    gcs, dashboard, client, agent = free_ports(4)
    ray = str(Path(sys.executable).with_name("ray"))
    process = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}"),
            f"--ray-client-server-port={client}",
            *(f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1"),
            *("--include-dashboard=true", f"--temp-dir={ray_folder}", "--disable-usage-stats"),
            f"--object-store-memory={200 * 2**20}",
        ],
        env=environment(ray_folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_port(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        below = processes.descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
        for pid in below:
            if "ray" in processes.command(pid):
                os.kill(pid, signal.SIGKILL)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the dashboard did not answer")


@pytest.mark.slow
def test_ray_job_submit(tmp_path: Path, head: str) -> None:
    """The README's line, from the repository root, with the embedded toy."""
    write_demo(tmp_path, 30)
    ray = str(Path(sys.executable).with_name("ray"))
    line = [
        *(ray, "job", "submit", "--address", head, "--runtime-env", "cluster/runtime_env.yaml"),
        *("--", "python", "jobs/score_archive.py", "--archive", str(tmp_path / "archive")),
        *("--model", "toy", "--out", str(tmp_path / "run")),
    ]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**environment(tmp_path), "RAY_ADDRESS": "", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(table.num_rows for table in read_run(str(tmp_path / "run"))) == 30
    assert '"answered": 30' in done.stdout
    assert "Traceback" not in done.stdout


def test_toy_is_shipped() -> None:
    assert (TOY / "config.json").exists()
