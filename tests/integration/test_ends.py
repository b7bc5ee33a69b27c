"""How a job ends that is killed, terminated or interrupted; and that the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medv_ray.archive.rows import read_run
from tests.chaos.scoring_job import commits
from tests.integration import processes, stub

pytestmark = pytest.mark.chaos

ROWS = 480  # 60 chunks of 0.4 s, of which an end costs about six
START_S = 120.0
SOON_S = 20.0


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@contextmanager
def job(folder: Path, ray_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A job that has committed something; nothing of it may be left soon after its end."""
    before = commits(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.run_job", str(folder)],
        cwd=processes.ROOT, env=processes.environment(ray_folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: commits(folder) >= before + 2, START_S, "two commits")
        below = processes.descendants(process.pid)
        yield process
        wait_for(lambda: not any(map(processes.command, below)), SOON_S, "its processes' ends")
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, the last line of stdout, and stderr, of a process that ends soon."""
    out, err = process.communicate(timeout=SOON_S)
    return process.returncode, out.splitlines()[-1] if out else "", err


def server(process: subprocess.Popen[str], name: str) -> int:
    """Process id of a server of the job's Ray."""
    below = processes.descendants(process.pid)
    [pid] = [p for p in below if processes.command(p).split(" ")[0].endswith(f"/{name}")]
    return pid


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_every_end_is_told_in_a_line_and_costs_no_row(tmp_path: Path, ray_folder: Path) -> None:
    stub.write_archive(tmp_path / "in.parquet", ["sleep:0.05 what?"] * ROWS)

    for name in ("raylet", "gcs_server"):
        with job(tmp_path, ray_folder) as process:
            os.kill(server(process, name), signal.SIGKILL)
            code, _, err = ended(process)
            assert (code, err.count("\n")) == (1, 1), err
            assert "E1512: Ray's server on this machine was ended" in err

    with job(tmp_path, ray_folder) as process:
        process.terminate()
        assert ended(process)[::2] == (143, "terminated; what was committed is kept.\n")

    with job(tmp_path, ray_folder) as process:
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith("stopping once the running chunks are committed")
        said = json.loads(out)
        assert (said["summary"], said["committed"]) == ("stopped", 8 * commits(tmp_path))
        assert not list((tmp_path / "run").rglob("*.tmp")), "a running chunk was not committed"

    with job(tmp_path, ray_folder) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        assert ended(process)[::2] == (130, "interrupted; what was committed is kept.\n")

    before = commits(tmp_path)
    with job(tmp_path, ray_folder) as process:
        out, err = process.communicate(timeout=START_S)
        assert (process.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["new_rows"] == ROWS - 8 * before
    found = [row["id"] for table in read_run(str(tmp_path / "run")) for row in table.to_pylist()]
    assert len(found) == len(set(found)) == ROWS
