"""Ray nodes on this machine that a harness starts, counts, kills and ends, and no other Ray's.

`FakeCluster` is a head whose autoscaler starts worker nodes, as processes here, by Ray's fake
multi-node provider: `AutoscalingCluster` of the same provider looks for a file that Ray's wheel
does not have, and ends by `ray stop --force`, which ends every Ray of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration import processes

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD = "ray.head.default"  # the provider knows the head by this name alone
STORE_BYTES = 100_000_000
START_S = 240.0
LOOK_S = 0.5
"""Between two counts of nodes."""
BIN = Path(sys.executable).parent
LISTS = (
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands",
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands",
)  # fmt: skip
"""Keys that a cluster's YAML gets from Ray, and this one does without."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def end_all(process: subprocess.Popen[Any]) -> None:
    """A process and all below it. `ray stop` would end every other Ray of this machine, too."""
    if process.poll() is None:  # the number of one that ended may be another's by now
        _kill([process.pid, *processes.descendants(process.pid)])
        process.wait()


def end_below() -> None:
    """Everything that this process has started and not ended."""
    _kill(processes.descendants(os.getpid()))


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(environment: dict[str, str], *how: str, cpus: int = 1) -> subprocess.Popen[bytes]:
    """A node by `ray start`, whose processes stay below this one."""
    command = [str(BIN / "ray"), "start", "--block", "--num-cpus", str(cpus)]
    command += ["--object-store-memory", str(STORE_BYTES), "--disable-usage-stats", *how]
    return subprocess.Popen(
        command, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def join(
    environment: dict[str, str], address: str, number: int, *how: str, cpus: int = 1
) -> subprocess.Popen[bytes]:
    """A node that is in the cluster, which then has `number` of them. Ray gives a node 30 s to
    start, which a busy machine may need more than; then it is started again."""
    node = start(environment, *how, cpus=cpus)
    deadline = time.monotonic() + START_S
    while nodes_alive(address) < number:
        if time.monotonic() > deadline:
            end_all(node)
            raise SystemExit(f"no {number} nodes in {START_S:.0f} s")
        if node.poll() is not None:
            node = start(environment, *how, cpus=cpus)
        time.sleep(0.2)
    return node


def nodes_alive(address: str) -> int:
    """Nodes that the head's server calls alive; 0 where it does not answer. Asked without a driver:
    that would be one more job of the cluster, and hang on one of its nodes."""
    from ray._raylet import GcsClient

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()  # Ray itself would wait for it
        nodes = GcsClient(address=address).get_all_node_info(timeout=5).values()
    except Exception:  # of many kinds, while it comes up or is gone
        return 0
    return sum(node.state == 0 for node in nodes)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
    """Raises SystemExit when it takes longer."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


@dataclass
class FakeCluster:
    """A head, and an autoscaler that starts worker nodes as processes of this machine."""

    workers: int = 4
    """At most."""
    worker_cpus: int = 2
    head_cpus: int = 1
    idle_s: float = 12.0
    """A worker node that has been idle for so long is given back."""
    dashboard: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    """More of it, for every node."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ma", dir="/tmp")))
    port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    head: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def for_drivers(self) -> dict[str, str]:
        """The environment of who connects to it."""
        return {**processes.environment(self.folder), "RAY_ADDRESS": self.address}

    def start(self) -> None:
        """The head, on the same port every time."""
        config = self.folder / "cluster.json"
        config.write_text(json.dumps(self.config()))
        environment = {
            **processes.environment(self.folder),
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", **self.environment,
        }  # fmt: skip
        ports = {"port": self.port, "ray-client-server-port": free_port()}
        ports |= {"dashboard-port": self.dashboard_port, "dashboard-agent-listen-port": free_port()}
        ports |= {"min-worker-port": 0, "max-worker-port": 0}
        given = [word for name, one in ports.items() for word in (f"--{name}", str(one))]
        how = ["--head", "--node-ip-address", "127.0.0.1", "--temp-dir", str(self.folder)]
        how += ["--include-dashboard", str(self.dashboard).lower()]
        how += ["--autoscaling-config", str(config)]
        self.head = join(environment, self.address, 1, *how, *given, cpus=self.head_cpus)

    def config(self) -> dict[str, Any]:
        """What `ray start --autoscaling-config` reads."""
        worker = {"CPU": self.worker_cpus, "object_store_memory": STORE_BYTES}
        return {
            "cluster_name": "fake", "max_workers": self.workers, "upscaling_speed": 10.0,
            "idle_timeout_minutes": self.idle_s / 60,
            "provider": {
                "type": "external", "module": PROVIDER, "use_node_id_as_ip": True,
                "disable_node_updaters": True, "disable_launch_config_check": True,
                "launch_multiple": True, "gcs_address": self.address,
            },
            "head_node_type": HEAD,
            "available_node_types": {
                HEAD: {"resources": {"CPU": self.head_cpus}, "node_config": {}, "max_workers": 0},
                "worker": {
                    "resources": worker, "node_config": {}, "min_workers": 0,
                    "max_workers": self.workers,
                },
            },
            "auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
            **{name: [] for name in LISTS},
        }  # fmt: skip

    def raylets(self) -> list[int]:
        """Process ids of the worker nodes' raylets, which the autoscaler's monitor has started."""
        below = processes.descendants(self.head.pid) if self.head else []
        monitors = [pid for pid in below if "monitor.py" in processes.command(pid)]
        under = [pid for monitor in monitors for pid in processes.descendants(monitor)]
        names = {pid: processes.command(pid).split(" ")[0] for pid in under}
        return [pid for pid, name in names.items() if name.endswith("/raylet")]

    def kill_head(self) -> None:
        """SIGKILL of the head's processes, and of the nodes that its autoscaler started."""
        if self.head is not None:
            end_all(self.head)
            self.head = None

    def end(self) -> None:
        self.kill_head()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def fake_cluster(**how: Any) -> Iterator[FakeCluster]:
    """One that runs, and is ended. `how`: fields of FakeCluster."""
    cluster = FakeCluster(**how)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


class Counted:
    """How many nodes are alive, every `LOOK_S`. Use as a context manager."""

    def __init__(self, address: str, more: Callable[[], int] | None = None) -> None:
        """`more`: something else to count beside."""
        self.samples: list[tuple[float, int, int]] = []
        """Seconds since the begin, nodes, and what `more` counted."""
        self._address, self._more = address, more or (lambda: 0)
        self._begun_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Counted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def now_s(self) -> float:
        return round(time.monotonic() - self._begun_s, 1)

    @property
    def most(self) -> int:
        """Nodes alive at once."""
        return max((nodes for _, nodes, _ in self.samples), default=0)

    @property
    def last(self) -> int:
        return self.samples[-1][1] if self.samples else 0

    def changes(self) -> list[tuple[float, int, int]]:
        """The samples at which a number is another one than before."""
        before = [(-1, -1), *[one[1:] for one in self.samples]]
        return [one for one, old in zip(self.samples, before, strict=False) if one[1:] != old]

    def _count(self) -> None:
        while not self._over.wait(LOOK_S):
            self.samples.append((self.now_s, nodes_alive(self._address), self._more()))
