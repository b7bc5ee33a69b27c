"""`medv doctor` against whole dashboards of Ray: without a token, and as shipped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medv_ray.on_ray.doctor_cluster import check_cluster

HEAD = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=True, dashboard_host="127.0.0.1",
         dashboard_port=int(sys.argv[1]), logging_level="error", log_to_driver=False,
         object_store_memory=100 * 2**20, _temp_dir=sys.argv[2])
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "state"), [("disabled", "fault"), ("token", "ok")])
def test_a_dashboard(mode: str, state: str, ray_folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    words = [sys.executable, "-c", HEAD, str(port), str(ray_folder)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as head:
        assert head.stdout is not None
        assert head.stdout.readline() == "up\n"
        found = [one for one in check_cluster(f"http://127.0.0.1:{port}") if str(port) in one.name]
        head.communicate()
    assert [one.state for one in found] == [state]
