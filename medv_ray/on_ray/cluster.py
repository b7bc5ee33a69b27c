"""Ray for the length of a job: connected to a cluster, or started on this machine."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from medv_ray.errors import RunError
from medv_ray.on_ray.preflight import Capacity, Node

SERVERS = ("raylet", "gcs_server")
OBJECT_STORE_BYTES = 256 * 2**20  # only chunk descriptors and results pass through it


def cluster_address(address: str | None) -> str | None:
    """The cluster to connect to; None starts an own Ray. `ray job submit` sets RAY_ADDRESS."""
    chosen = address or os.environ.get("RAY_ADDRESS") or None
    return None if chosen == "local" else chosen


class Cluster(NamedTuple):
    """A Ray that runs."""

    capacity: Capacity
    own: tuple[int, ...] = ()
    """Process ids of Ray's own servers, where this process started them."""

    def check(self) -> None:
        """Raise RunError E1512 when one of our servers is gone; Ray itself waits a minute, then
        ends this process without a word."""
        if not all(_lives(pid) for pid in self.own):
            raise RunError("E1512", "Ray's server on this machine was ended.")


@contextmanager
def running_ray(address: str | None = None) -> Iterator[Cluster]:
    """A running Ray, silent. `address` or RAY_ADDRESS connects; without, one is started and ended.

    A Ray that runs in this process already is used and left alone.
    """
    # before ray is imported: a local Ray would write a token file to the home folder otherwise
    connect = cluster_address(address)
    if not connect:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # the state API's record of tasks: 16 kB a chunk in the GCS, and nobody there to ask for it
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a thread that calls Ray while this process ends would start another Ray
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if not os.environ.get("MEDV_DEBUG"):
        # the raylet's messages are printed to stdout by a thread, whatever the log level
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    with ExitStack() as stack:
        if not os.environ.get("MEDV_DEBUG"):
            stack.enter_context(quiet())
        import ray

        own: tuple[int, ...] = ()
        if not ray.is_initialized():
            stack.enter_context(unless_leaving(ray.shutdown))
            if connect:
                ray.init(address=connect, log_to_driver=False, logging_level=logging.ERROR)
            else:
                own = _start_local()
        nodes = [
            Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        yield Cluster(Capacity(tuple(nodes), elastic=bool(connect)), own)


def _start_local() -> tuple[int, ...]:
    """Start Ray here; the process ids of its servers."""
    import ray

    cores = len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=cores if cores < (os.cpu_count() or 1) else None,  # None: Ray reads the cgroup
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    return tuple(pid for pid, name in names.items() if name in SERVERS)


def _lives(pid: int) -> bool:
    """Whether it runs, zombies left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's chatter from the terminal: its Python log, its warnings, and its C++ core.

    The core writes to file descriptor 2 whatever the log level is, an error line at each job start
    among it (ray issue 53727). Our own stderr goes on, over a descriptor of its own.
    """
    with warnings.catch_warnings(), native_stderr_closed():
        warnings.filterwarnings("ignore", module=r"ray\b")
        import ray.data  # noqa: F401  sets its handlers up

        loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
        handlers = [h for logger in loggers for h in logger.handlers if not _to_file(h)]
        levels = [handler.level for handler in handlers]
        for handler in handlers:
            handler.setLevel(logging.CRITICAL + 1)

        def restore() -> None:
            for handler, level in zip(handlers, levels, strict=True):
                handler.setLevel(level)

        with unless_leaving(restore):
            yield


@contextmanager
def unless_leaving(tidy: Callable[[], None]) -> Iterator[None]:
    """Call `tidy` at the end, unless the process is on its way out: Ray Data's threads are then in
    the middle of something, and Ray's servers end with the process."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        tidy()
        raise
    tidy()


def _to_file(handler: logging.Handler) -> bool:
    return "File" in type(handler).__name__


@contextmanager
def native_stderr_closed() -> Iterator[None]:
    """Send file descriptor 2 nowhere, and sys.stderr where descriptor 2 went."""
    try:
        shared = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        shared = False
    sys.stderr.flush()
    kept, before = os.dup(2), sys.stderr
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    if shared:
        sys.stderr = open(kept, "w", buffering=1, closefd=False)  # noqa: SIM115  until the end

    def restore() -> None:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(kept, 2)
        os.close(kept)

    with unless_leaving(restore):
        yield
