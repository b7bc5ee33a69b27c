"""`medv serve`: Ray, Serve and the endpoint on this machine, until it is asked to end."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from medv_ray import errors
from medv_ray.errors import MedvError, RunError, SettingsError, is_out_of_memory
from medv_ray.on_ray.cluster import Cluster, cluster_address, running_ray
from medv_ray.on_ray.front import BATCH, CALLBACK, LIMITS
from medv_ray.on_ray.options import PoolSettings
from medv_ray.on_ray.preflight import Capacity
from medv_ray.serving.auth import KEYS_FILE, Keys
from medv_ray.serving.options import ScalingSettings, ServeSettings
from medv_ray.serving.traces import check_tracing

APPLICATION = "medv"
SOONER = {
    "RAY_worker_niceness": "0",  # Ray's 15 is for work that can wait
    # one event loop instead of three on a request's way, and gRPC instead of an actor's call
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # a proxy that is gone is replaced after three looks: 6 s, where Serve's own 10 s make 30
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
}
"""Environment of Ray: a request passes Serve in 2 ms instead of 4.5, and lost proxies come back."""
OURS = re.compile(r"^medv_ray\.errors\.(\w+): \w+ (E\d{4}): (.*?)(?: `medv explain.*)?$", re.M)
KINDS = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception))\b", re.M)
"""Errors at the end of a stack."""
LOOK_SECONDS = 2.0
"""Between two looks at Ray's servers."""


def run_endpoint(
    settings: ServeSettings, host: str, port: int, address: str | None, say: Callable[[str], None]
) -> int:
    """Deploy, say where, and wait for Ctrl-C or SIGTERM; then let requests end and leave.

    Raises SettingsError E1702 for a host that others can reach, without keys, E1001 for a port that
    is taken, CheckpointError E14xx, and RunError E1505 for replicas that do not fit, E1512 when Ray
    ends, E1708 when no replica starts.
    """
    check_host(host, settings)
    check_port(host, port)
    # Serve's proxies take their environment from Ray's, and Ray its own from here
    os.environ[CALLBACK] = "medv_ray.on_ray.front:middlewares"
    os.environ[LIMITS] = settings.limits.model_dump_json()
    os.environ[BATCH] = settings.batch.model_dump_json()
    if settings.keys_file:
        os.environ[KEYS_FILE] = os.path.abspath(settings.keys_file)
    for name, value in SOONER.items():
        os.environ.setdefault(name, value)
    if cluster_address(address) is None:  # its ports listen beyond this machine, whatever `host` is
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    started_s = time.monotonic()
    with ThreadPoolExecutor(1) as beside:
        checked = beside.submit(_check_model, settings)  # while Ray starts
        with running_ray(address) as cluster:
            checked.result()
            check_room(settings.scaling, cluster.capacity)
            _deploy(settings, host, port)
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            shown = f"[{shown}]" if ":" in shown else shown
            seconds = time.monotonic() - started_s
            say(f"http://{shown}:{port}/ answers as {settings.served_name!r} ({seconds:.1f} s)")
            _wait(cluster)
            say("ending: requests that were taken are answered first")
            _end()
    return 0


def _check_model(settings: ServeSettings) -> None:
    """What is wrong with a checkpoint's headers, its tokenizer or an adapter is said here, and not
    by a replica's log."""
    from medv_ray.data.prompts import load_tokenizer
    from medv_ray.model import lora, weights

    check_tracing(settings.tracing)
    weights.check(settings.model.path)
    load_tokenizer(settings.model.path)
    if settings.adapters:
        digest = weights.digest(settings.model.path)
        for folder in settings.adapters.values():
            lora.check_base(folder, digest)
            lora.adapter_digest(folder)


def _deploy(settings: ServeSettings, host: str, port: int) -> None:
    from ray import serve

    from medv_ray.on_ray.serve import build

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        serve.run(build(settings.model_dump(mode="json")), name=APPLICATION, route_prefix="/")
    except MedvError:
        raise
    except RuntimeError:
        found = serve.status().applications[APPLICATION].deployments.values()
        raise start_error("\n".join(one.message for one in found)) from None


def start_error(stack: str) -> MedvError:
    """Why no replica started, given what Serve keeps of it: a stack, of which a user sees only our
    own error, or the kind of another one."""
    said = OURS.findall(stack)
    if said and said[-1][1] in errors.CATALOGUE:
        kind, code, detail = said[-1]
        made: MedvError = getattr(errors, kind, RunError)(code, detail)
        return made
    kinds = [name.rpartition(".")[2] for name in KINDS.findall(stack)]
    kind = kinds[-1] if kinds else "its process ended"
    if kind in ("MemoryError", "OutOfMemoryError") or is_out_of_memory(RuntimeError(stack)):
        rule = f"a replica ran out of memory ({kind}) while it loaded the model."
        return RunError("E1508", rule)
    rule = f"no replica could start ({kind}); `medv ask` with the same --model says more."
    return RunError("E1708", rule)


def _wait(cluster: Cluster) -> None:
    """Until Ctrl-C or SIGTERM. Raises RunError E1512."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(LOOK_SECONDS):
        cluster.check()
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends it at once
        signal.signal(number, signal.default_int_handler)


def _end() -> None:
    from ray import serve

    serve.delete(APPLICATION)
    serve.shutdown()  # type: ignore[no-untyped-call]


def check_host(host: str, settings: ServeSettings) -> None:
    """Raises SettingsError E1702 for keys that cannot be used, or where others could ask without
    one."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not Keys.load(settings.keys_file) and not loopback:
        raise SettingsError(
            "E1702",
            f"--host {host}: other machines can reach it, so it needs --keys-file; or 127.0.0.1.",
        )


def check_room(scaling: ScalingSettings, capacity: Capacity) -> None:
    """Raises RunError E1505 where the first replicas would wait for ever."""
    pool = PoolSettings(num_gpus=scaling.num_gpus, cpus_per_actor=scaling.cpus_per_replica)
    room, wanted = sum(node.room(pool) for node in capacity.nodes), max(1, scaling.min_replicas)
    if room < wanted and not capacity.elastic:
        wish = f"{wanted} replicas of {scaling.cpus_per_replica:g} CPUs and {scaling.num_gpus:g} "
        raise RunError("E1505", f"{wish}GPUs do not fit this machine, which has room for {room}.")


def check_port(host: str, port: int) -> None:
    """Raises SettingsError E1001 for a port that something else listens at."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            kind = os.strerror(error.errno or 0)
            raise SettingsError("E1001", f"--port {port} on {host}: {kind}.") from None
