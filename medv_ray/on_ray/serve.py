"""The endpoint on Ray Serve: a replica around the service, and the application that Serve deploys.

    serve deploy cluster/serve.yaml      # names `build` below and its settings

Each replica steps its own engine; the requests of all clients meet there.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

import torch
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from medv_ray.errors import RunError
from medv_ray.on_ray.meters import RayMeters
from medv_ray.on_ray.options import serve_settings
from medv_ray.on_ray.private_ray import ask_no_proxy
from medv_ray.serving.app import make_app
from medv_ray.serving.audit import AuditLog
from medv_ray.serving.auth import Keys
from medv_ray.serving.guard import BODY, App, Receive, Scope, Send
from medv_ray.serving.meters import Meters
from medv_ray.serving.options import ServeSettings
from medv_ray.serving.service import Service
from medv_ray.serving.traces import check_tracing
from medv_ray.settings import build as settings_of

log = logging.getLogger(__name__)
HEALTH_SECONDS = 3.0
"""Between two looks at a replica. A stuck one is replaced after `limits.stuck_seconds` and three of
these, as Serve wants three bad looks in a row."""
BACKOFF_S = 0.05
"""At most between two looks of a waiting request for room in a replica. Serve's own 0.5 s left
replicas half empty: 20 instead of 36 answers a second where 100 clients ask one of 64 permits."""
CRASH_CODE = 70  # EX_SOFTWARE


class InlineBody:
    """A request that came with its body is answered without the proxy's help.

    Serve asks its proxy, by two actor calls a request, for the body and whether the client is gone.
    Here the front has sent the body along (`BODY`), and the proxy cancels the request of a client
    that leaves: the calls would only tell of a lost proxy, and cost 2 ms an answer on two cores.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if BODY in scope:
            ask_no_proxy(receive)
        await self._app(scope, receive, send)


@serve.ingress()
class Replica:
    """One process that holds the model."""

    def __init__(self, values: dict[str, Any]) -> None:
        """`values`: of ServeSettings. Raises MedvError."""
        settings = settings_of(ServeSettings, values)
        if settings.scaling.cpus_per_replica >= 1:
            torch.set_num_threads(int(settings.scaling.cpus_per_replica))
        # a replica that can not step any more would refuse quickly and so draw requests: its end
        # lets the front ask another one
        self._service = Service.load(
            settings, Meters([RayMeters()]), on_failure=lambda: os._exit(CRASH_CODE)
        )
        audit = settings.audit_log
        if audit is not None:  # two replicas can not chain lines in one file
            audit = f"{audit}.{serve.get_replica_context().replica_id.unique_id}"
        self._audit = None if audit is None else AuditLog(audit)
        self._keys = Keys.load(settings.keys_file)
        gc.collect()
        gc.freeze()  # what was imported is not looked at again: 0.4 s a collection

    def __serve_build_asgi_app__(self) -> App:
        return InlineBody(make_app(self._service, self._keys, self._audit))

    def __del__(self) -> None:
        """Serve's last call, when all are answered: traces that wait are sent, batches stop."""
        if hasattr(self, "_service"):  # else it has not loaded
            self._service.close()

    def check_health(self) -> None:
        """Raises RunError E1708 when the scheduler's thread is stuck or gone."""
        self._service.sample()
        wrong = self._service.health()
        if wrong is not None:
            log.error("unhealthy: %s", wrong)
            raise RunError("E1708", wrong)


def build(args: dict[str, Any]) -> serve.Application:
    """The application that a Serve YAML names; `args` are the values of ServeSettings.

    Raises SettingsError E1001, E1002, E1003, E1702.
    """
    settings = serve_settings(args)
    Keys.load(settings.keys_file)  # unreadable keys are an error now
    check_tracing(settings.tracing)
    limits, scaling = settings.limits, settings.scaling
    deployment = serve.deployment(
        name="medv",
        max_ongoing_requests=limits.ongoing,
        max_queued_requests=limits.queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=limits.retry_after_s),
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            initial_replicas=max(1, scaling.min_replicas),
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing or limits.ongoing / 2,
            downscale_delay_s=scaling.downscale_seconds,
        ),
        request_router_config=RequestRouterConfig(max_backoff_s=BACKOFF_S),  # type: ignore[arg-type]
        max_surge_percent=scaling.surge_percent,
        # a request that was taken is answered
        graceful_shutdown_timeout_s=limits.request_seconds + 10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=10,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        ray_actor_options={
            "num_cpus": scaling.cpus_per_replica,
            "num_gpus": scaling.num_gpus,
        },
    )
    bound: serve.Application = deployment(Replica).bind(settings.model_dump(mode="json"))
    return bound
