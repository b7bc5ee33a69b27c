"""What a replica does not leave to Serve."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.http_util import ASGIReceiveProxy

from medv_ray.on_ray.serve import BACKOFF_S, InlineBody, Replica, build
from medv_ray.serving.guard import BODY, Receive, Scope, Send


@pytest.mark.parametrize("inline", [True, False])
def test_a_proxy_is_asked_only_for_a_body_that_did_not_come_along(inline: bool) -> None:
    asked: list[Any] = []

    async def ask(metadata: Any) -> bytes:
        asked.append(metadata)
        return pickle.dumps(
            [{"type": "http.request", "body": b"late"}, {"type": "http.disconnect"}]
        )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.01)  # in which Serve's task asks
        assert scope.get(BODY, b"late") == (b"{}" if inline else (await receive())["body"])

    async def run() -> None:
        scope: Scope = {"type": "http"} | ({BODY: b"{}"} if inline else {})
        receive = ASGIReceiveProxy(scope, "of the request", ask)  # type: ignore[arg-type]
        fetching = asyncio.ensure_future(receive.fetch_until_disconnect())  # as Serve begins
        await InlineBody(app)(scope, receive, _nothing)  # type: ignore[arg-type]
        assert fetching.done() != inline
        fetching.cancel()

    asyncio.run(run())
    assert asked == ([] if inline else ["of the request"])


def test_settings_reach_the_deployment() -> None:
    scaling = {
        "min_replicas": 0, "max_replicas": 3, "surge_percent": 50, "num_gpus": 0.5,
        "target_ongoing": 1.5, "downscale_seconds": 5,
    }  # fmt: skip
    application = build({"model": "toy", "scaling": scaling, "limits": {"ongoing": 7, "queue": 9}})
    made = application._bound_deployment
    said = made._deployment_config
    assert (said.max_surge_percent, said.autoscaling_config.max_replicas) == (50, 3)
    grows = said.autoscaling_config
    assert (grows.min_replicas, grows.initial_replicas) == (0, 1)  # which says what does not load
    assert (grows.target_ongoing_requests, grows.downscale_delay_s) == (1.5, 5)
    assert grows.upscale_delay_s == 30  # docs/autoscaling.md: half a minute
    assert said.request_router_config.max_backoff_s == BACKOFF_S
    assert (said.max_ongoing_requests, said.max_queued_requests) == (7, 9)
    assert said.graceful_shutdown_timeout_s > 120
    assert made.ray_actor_options["num_gpus"] == 0.5
    plain = build({"model": "toy", "limits": {"ongoing": 7}})._bound_deployment._deployment_config
    assert plain.autoscaling_config.target_ongoing_requests == 3.5


async def _nothing(message: Any) -> None:
    raise AssertionError(message)


@pytest.mark.filterwarnings("ignore:coroutine .*__del__")  # Serve's own, when it is collected
def test_serves_last_call_ends_what_the_service_holds() -> None:
    ended: list[str] = []
    replica = Replica.__new__(Replica)  # type: ignore[call-overload]
    asyncio.run(replica.__del__())  # it has not loaded
    replica._service = SimpleNamespace(close=lambda: ended.append("closed"))
    asyncio.run(replica.__del__())
    assert ended == ["closed"]
    del replica._service
