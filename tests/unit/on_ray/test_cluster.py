"""What is left of an own Ray."""

import errno
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from medv_ray.errors import RunError
from medv_ray.on_ray.cluster import Cluster, _start_local, end_workers, quiet
from medv_ray.on_ray.preflight import Capacity

NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
print(flush=True)
sys.stdin.read()
"""


def started(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", NAMED, name]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_worker_that_does_not_end_is_ended_and_nobody_else() -> None:
    worker, other, gone = started("ray::TrainController"), started("raylet"), started("ray::IDLE")
    gone.kill()
    gone.wait()
    try:
        end_workers([worker.pid, other.pid, gone.pid])
        assert worker.wait(10) == -9
        assert other.poll() is None
    finally:
        other.kill()


def test_a_clone_in_the_working_directory_hides_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray's workers look there before they ask the finder of an editable install."""
    home = str(Path(__file__).parents[3])
    started: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **_: started.append(os.environ["PYTHONPATH"]))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", home)])
    _start_local()
    assert started == [f"{home}{os.pathsep}before"]
    monkeypatch.setenv("PYTHONPATH", "before")
    sys.path.append(home)
    _start_local()
    assert started[1] == "before"


def test_a_ray_that_does_not_start_is_told_without_its_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed_out(**_: object) -> None:
        raise Exception("The current node timed out during startup; see /tmp/ray/session_1/logs")

    monkeypatch.setattr(ray, "init", timed_out)
    with pytest.raises(RunError, match=r"E1512: Ray did not start .*\(Exception\)") as caught:
        _start_local()
    assert "/tmp" not in str(caught.value)


def test_a_full_disk_under_rays_own_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/session_1")

    monkeypatch.setattr(ray, "init", full)
    with pytest.raises(RunError, match=r"E1503: .*RAY_TMPDIR") as caught:
        _start_local()
    assert caught.value.exit_code == 5
    assert "/tmp" not in str(caught.value)


def test_a_log_of_rays_that_finds_no_room_prints_no_stack(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger, handler = logging.getLogger("ray"), logging.FileHandler("/dev/full")
    with quiet():
        logger.addHandler(handler)  # here, as Ray Data sets its handlers up
        logger.error("x")
        logger.removeHandler(handler)
    assert logging.raiseExceptions
    assert "Traceback" not in capfd.readouterr().err


def test_a_head_that_takes_no_connection_is_gone() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert Cluster(Capacity((), True), head=f"127.0.0.1:{port}").has_head()
    assert not Cluster(Capacity((), True), head=f"127.0.0.1:{port}").has_head()
    assert not Cluster(Capacity((), True)).has_head()
