"""`medv serve`: Ray, Serve and the endpoint on this machine, until it is told to end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from medv_ray.errors import SettingsError
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.front import CALLBACK, LIMITS
from medv_ray.serving.auth import KEYS_FILE, Keys
from medv_ray.serving.options import ServeSettings

APPLICATION = "medv"


def run_endpoint(
    settings: ServeSettings, host: str, port: int, address: str | None, say: Callable[[str], None]
) -> int:
    """Deploy, say where, and wait for Ctrl-C or SIGTERM; then let requests end and leave.

    Raises SettingsError E1702 for a host that others can reach, without keys.
    """
    check_host(host, settings)
    # Serve's proxies take their environment from Ray's, and Ray its own from here
    os.environ[CALLBACK] = "medv_ray.on_ray.front:middlewares"
    os.environ[LIMITS] = settings.limits.model_dump_json()
    if settings.keys_file:
        os.environ[KEYS_FILE] = os.path.abspath(settings.keys_file)
    started_s = time.monotonic()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with running_ray(address):
        from ray import serve

        from medv_ray.on_ray.serve import build

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(build(settings.model_dump(mode="json")), name=APPLICATION, route_prefix="/")
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        seconds = time.monotonic() - started_s
        say(f"http://{shown}:{port}/ answers as {settings.served_name!r} (after {seconds:.1f} s)")
        ended.wait()
        say("ending: requests that were taken are answered first")
        serve.delete(APPLICATION)
        serve.shutdown()  # type: ignore[no-untyped-call]
    return 0


def check_host(host: str, settings: ServeSettings) -> None:
    """Raises SettingsError E1702 where others could ask without a key."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not Keys.load(settings.keys_file):
        raise SettingsError(
            "E1702",
            f"--host {host}: other machines can reach it, so it needs --keys-file; or 127.0.0.1.",
        )
