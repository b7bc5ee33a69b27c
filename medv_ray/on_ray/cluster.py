"""Ray for the length of a job: connected to a cluster, or started on this machine."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from medv_ray.disk import is_full
from medv_ray.errors import RunError, SettingsError
from medv_ray.on_ray.findings import cores
from medv_ray.on_ray.preflight import Capacity, Node

SERVERS = ("raylet", "gcs_server")
STREAM = "medv-stream"
"""Name of the thread in which Ray Data runs. Ray ends the process of a thread that calls it once it
is shut down, and says nothing: with this thread alive, Ray is left as it is; see `leave`."""
HEAD_S = 5.0
HEAD = re.compile(r"[^/@\s]+:\d{1,5}")
OBJECT_STORE_BYTES = 256 * 2**20
"""Where only chunk descriptors and results pass through it."""
ROOM_BYTES = 32 * 2**20
"""Ray's logs and sockets of a short job take a megabyte. On a folder that is full from the start,
Ray comes up, or does not, or comes up and never starts a worker."""


class Lost(RunError):
    """A node is gone, and with it a part of Ray's that Ray itself does not start again."""


def cluster_address(address: str | None) -> str | None:
    """The cluster to connect to; None starts an own Ray. `ray job submit` sets RAY_ADDRESS, which
    Ray takes for `auto` too.

    Raises SettingsError E1001.
    """
    named = os.environ.get("RAY_ADDRESS") if address in (None, "auto") else None
    chosen = named or address
    if chosen not in (None, "auto", "local") and not HEAD.fullmatch(chosen):
        raise SettingsError(
            "E1001",
            f"{'RAY_ADDRESS' if named else '--address'} is host:port of a cluster's head "
            "(port 6379, say; not the dashboard's 8265), auto: the Ray that runs on this machine, "
            "or local: a Ray of the job's own.",
        )
    return None if chosen == "local" else chosen


class Cluster(NamedTuple):
    """A Ray that runs."""

    capacity: Capacity
    servers: tuple[int, ...] = ()
    """Process ids of Ray's servers, where this process started them."""
    head: str = ""
    """`host:port` of the head's server."""

    def check(self) -> None:
        """Raise RunError E1512 when one of our servers is gone; Ray itself waits a minute, then
        ends this process without a word."""
        if not all(_name(pid) in SERVERS for pid in self.servers):
            raise RunError("E1512", "Ray's server on this machine was ended.")

    def has_head(self) -> bool:
        """Whether the head's server takes connections. Ray itself would wait a minute for it, then
        end this process without a word."""
        return answers(self.head)


def answers(head: str) -> bool:
    """Whether anything takes connections at `host:port`."""
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), HEAD_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def streaming() -> bool:
    """Whether Ray Data is in the middle of something."""
    return any(thread.name == STREAM for thread in threading.enumerate())


def leave(code: int) -> None:
    """End this process, and a Ray that it started, if Ray Data is in the middle of something."""
    if not streaming():
        return
    # not with the raylet: without the GCS, its agents look for one for a minute
    for server in _servers():
        for pid in _children(server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def running_ray(
    address: str | None = None, object_store_bytes: int | None = OBJECT_STORE_BYTES
) -> Iterator[Cluster]:
    """A running Ray, silent. `address` or RAY_ADDRESS connects; without, one is started and ended,
    with room for so many bytes in its object store; None: 30 % of the memory, Ray's own rule.

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

        servers: tuple[int, ...] = ()
        if not ray.is_initialized():
            stack.enter_context(unless_streaming(_shutdown))
            if connect:
                _connect(connect)
            else:
                _start_local(object_store_bytes)
                servers = _servers()
        nodes = [
            Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]
        head = ray.get_runtime_context().gcs_address
        yield Cluster(Capacity(tuple(nodes), elastic=bool(connect)), servers, head)


def _connect(address: str) -> None:
    """Raises RunError E1512 where no cluster answers; Ray itself would wait for one for minutes."""
    import ray

    if address != "auto" and not answers(address):
        text = "nothing answers at --address (or RAY_ADDRESS): host and port of a cluster's head."
        raise RunError("E1512", text)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # no kind of its own: its text holds addresses
        kind = type(error).__name__
        text = (
            f"no Ray that takes this job at --address (or RAY_ADDRESS) ({kind}); look at its token "
            "(RAY_AUTH_MODE), its version, and `ray status`."
        )
        raise RunError("E1512", text) from error


def _start_local(object_store_bytes: int | None = OBJECT_STORE_BYTES) -> None:
    """Raises RunError E1512 where Ray's servers do not come up in time, E1503 on a full disk."""
    import ray

    _check_room()
    # Ray's processes look into the working directory first: a clone of this repository that lies
    # there would hide a package that was installed as editable
    home = str(Path(__file__).parents[2])
    if home not in sys.path:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = home + (os.pathsep + before if before else "")
    usable = cores()
    try:
        ray.init(
            address="local",
            # Ray makes no core of a container that has half of one
            num_cpus=usable if usable < (os.cpu_count() or 1) else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=object_store_bytes,
        )
    except Exception as error:  # no kind of its own: its text holds paths
        if is_full(error):
            raise no_room() from error
        if "AF_UNIX" in str(error):
            text = "RAY_TMPDIR, or the system's temporary folder, has too long a name for Ray's"
            raise RunError("E1512", f"{text} sockets: {longest_folder()} bytes will do.") from error
        kind = type(error).__name__
        text = f"Ray did not start on this machine ({kind}), as when other work holds its cores."
        raise RunError("E1512", text) from error


def _check_room() -> None:
    """Raises RunError E1503. What is no folder yet is Ray's to say."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with suppress(OSError):
        if shutil.disk_usage(folder).free < ROOM_BYTES:
            raise no_room()


def longest_folder() -> int:
    """Bytes that the name of RAY_TMPDIR may have: of 107, Ray takes some for its sockets."""
    socket = "/ray/session_2026-01-01_00-00-00_000000_/sockets/plasma_store"
    return 107 - len(socket) - len(str(os.getpid()))


def no_room() -> RunError:
    """E1503, about the folder in which Ray keeps its logs and sockets."""
    text = (
        "RAY_TMPDIR, or the system's temporary folder, has no room for what Ray writes; "
        f"{ROOM_BYTES >> 20} MiB will do."
    )
    return RunError("E1503", text)


def _shutdown() -> None:
    """Leave Ray, and end what was started for it here: the exit of a Ray process can block for ever
    in its destructors."""
    import ray

    workers = [pid for server in _servers() for pid in _children(server)]
    ray.shutdown()
    end_workers(workers)


def end_workers(pids: Sequence[int]) -> None:
    """Kill those that are still Ray's workers."""
    for pid in pids:
        if _name(pid).startswith("ray::"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _servers() -> tuple[int, ...]:
    """Ray's servers that this process has started."""
    return tuple(pid for pid in _children(os.getpid()) if _name(pid) in SERVERS)


def _children(pid: int) -> list[int]:
    """Processes that any thread of a process has started."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def _name(pid: int) -> str:
    """The name of a process that runs; empty for one that ended."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return ""
    return "" if rest.split()[0] == "Z" else name


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's chatter from the terminal: its Python log, its warnings, and its C++ core.

    The core writes to file descriptor 2 whatever the log level is, an error line at each job start
    among it (ray issue 53727). Our own stderr goes on, over a descriptor of its own.
    """
    with warnings.catch_warnings(), native_stderr_closed():
        warnings.filterwarnings("ignore", module=r"ray\b")
        import ray.data  # noqa: F401  sets its handlers up

        # a log that finds no room on the disk is to print no stack
        shown, logging.raiseExceptions = logging.raiseExceptions, False
        loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
        handlers = [h for logger in loggers for h in logger.handlers if not _to_file(h)]
        levels = [handler.level for handler in handlers]
        for handler in handlers:
            handler.setLevel(logging.CRITICAL + 1)

        def restore() -> None:
            logging.raiseExceptions = shown
            for handler, level in zip(handlers, levels, strict=True):
                handler.setLevel(level)

        with unless_streaming(restore):
            yield


@contextmanager
def unless_streaming(tidy: Callable[[], None]) -> Iterator[None]:
    """Call `tidy` at the end, unless Ray Data is in the middle of something."""
    try:
        yield
    finally:
        if not streaming():
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

    with unless_streaming(restore):
        yield
