"""What is left of an own Ray."""

import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from medv_ray.errors import RunError, SettingsError, explain
from medv_ray.on_ray import cluster
from medv_ray.on_ray.cluster import (
    ROOM_BYTES,
    STREAM,
    Cluster,
    _start_local,
    cluster_address,
    end_workers,
    quiet,
    running_ray,
    unless_streaming,
)
from medv_ray.on_ray.preflight import Capacity, Node

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
    for word in ("did not start", "core", "RAY_TMPDIR"):
        assert word in explain("E1512")


def test_a_folder_whose_name_is_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(**_: object) -> None:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /a/home/ray/session_1")

    monkeypatch.setattr(ray, "init", too_long)
    with pytest.raises(RunError, match=r"E1512: RAY_TMPDIR.* too long .* \d\d bytes") as caught:
        _start_local()
    assert "home" not in str(caught.value)


@pytest.mark.parametrize(("usable", "given"), [(2, 2), (1, 1), (8, None)])
def test_ray_gets_the_cores_of_the_container(
    monkeypatch: pytest.MonkeyPatch, usable: int, given: int | None
) -> None:
    """Ray itself takes none where a container has half of one."""
    seen: list[object] = []
    monkeypatch.setattr(ray, "init", lambda **given: seen.append(given["num_cpus"]))
    monkeypatch.setattr(cluster, "cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    _start_local()
    assert seen == [given]


def test_a_full_disk_under_rays_own_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/session_1")

    monkeypatch.setattr(ray, "init", full)
    with pytest.raises(RunError, match=r"E1503: .*RAY_TMPDIR") as caught:
        _start_local()
    assert caught.value.exit_code == 5
    assert "/tmp" not in str(caught.value)


def test_without_room_for_its_folder_ray_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[str] = []
    room = {str(tmp_path / "small"): ROOM_BYTES - 1, str(tmp_path / "large"): ROOM_BYTES}
    monkeypatch.setattr(ray, "init", lambda **_: started.append(os.environ["RAY_TMPDIR"]))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda at: usage._replace(free=room[str(at)]))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "small"))
    with pytest.raises(RunError, match=r"E1503: .*RAY_TMPDIR.* 32 MiB") as caught:
        _start_local()
    assert not started
    assert str(tmp_path) not in str(caught.value)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "large"))
    _start_local()
    monkeypatch.undo()
    monkeypatch.setattr(ray, "init", lambda **_: started.append("none yet"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    _start_local()
    assert started == [str(tmp_path / "large"), "none yet"]


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


def test_each_of_its_servers_is_looked_at() -> None:
    alive, gone = started("raylet"), started("gcs_server")
    both = Cluster(Capacity((), True), (alive.pid, gone.pid))
    try:
        both.check()
        gone.kill()
        os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # which nobody has asked after yet
        with pytest.raises(RunError, match=r"E1512: Ray's server on this machine was ended"):
            both.check()
        Cluster(Capacity((), True), (alive.pid,)).check()
    finally:
        gone.wait()
        alive.kill()


def test_which_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [cluster_address(one) for one in (None, "local", "a:1")] == [None, None, "a:1"]
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert [cluster_address(one) for one in (None, "local", "a:1")] == ["b:2", None, "a:1"]
    assert cluster_address("auto") == "b:2"  # as Ray has it
    monkeypatch.setenv("RAY_ADDRESS", "ray://b:2")
    with pytest.raises(SettingsError, match="E1001: RAY_ADDRESS is host:port"):
        cluster_address("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address("auto") == "auto"


@pytest.mark.parametrize(
    "address", ["", "nonsense", "ray://127.0.0.1:1", "http://a:8265", "a:b", "a b:1", "a:123456"]
)
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(SettingsError, match=r"E1001: --address is host:port .* auto.* local"):
        cluster_address(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    if address:
        with pytest.raises(SettingsError, match=r"E1001: RAY_ADDRESS is host:port "):
            cluster_address(None)
    else:  # set to nothing is not set
        assert cluster_address(None) is None


def test_an_address_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait there for minutes, without a word."""
    monkeypatch.setattr(os, "environ", {**os.environ, "MEDV_DEBUG": "1"})
    asked: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        for one in (address, "127.0.0.1:99999"):
            with (
                pytest.raises(RunError, match="E1512: nothing answers at --address") as caught,
                running_ray(one),
            ):
                pass
            assert "127." not in str(caught.value)
    assert asked == []


def test_an_address_where_no_ray_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance at 127.0.0.1:1")

    monkeypatch.setattr(os, "environ", {**os.environ, "MEDV_DEBUG": "1"})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", none)
    with (
        pytest.raises(RunError, match=r"E1512: no Ray .* --address.*\(ConnectionError\)") as caught,
        running_ray("auto"),
    ):
        pass
    assert "127." not in str(caught.value)


def test_ray_is_left_alone_while_ray_data_runs() -> None:
    tidied: list[int] = []
    ended = threading.Event()
    running = threading.Thread(target=ended.wait, name=STREAM, daemon=True)
    running.start()
    with unless_streaming(lambda: tidied.append(1)):
        pass
    assert tidied == []
    ended.set()
    running.join()
    with unless_streaming(lambda: tidied.append(2)):
        pass
    assert tidied == [2]


def test_room_is_that_of_nodes_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "MEDV_DEBUG": "1"})
    nodes = [{"Resources": {"CPU": cpus, "GPU": 1.0}, "Alive": cpus == 4.0} for cpus in (4.0, 8.0)]
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    for address, elastic in (("127.0.0.1:1", True), ("local", False)):
        with running_ray(address) as cluster:
            assert cluster.capacity == Capacity((Node(4.0, 1.0),), elastic=elastic)
            assert (cluster.servers, cluster.head) == ((), "127.0.0.1:1")


def test_a_head_whose_address_is_of_version_6() -> None:
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        server.listen()
        head = f"[::1]:{server.getsockname()[1]}"
        assert Cluster(Capacity((), True), head=head).has_head()


def test_a_head_that_takes_no_connection_is_gone() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert Cluster(Capacity((), True), head=f"127.0.0.1:{port}").has_head()
    assert not Cluster(Capacity((), True), head=f"127.0.0.1:{port}").has_head()
    assert not Cluster(Capacity((), True)).has_head()
