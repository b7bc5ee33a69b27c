"""What a replica does not leave to Serve."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from ray.serve._private.http_util import ASGIReceiveProxy

from medv_ray.on_ray.serve import Alone
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
        await Alone(app)(scope, receive, _nothing)  # type: ignore[arg-type]
        assert fetching.done() != inline
        fetching.cancel()

    asyncio.run(run())
    assert asked == ([] if inline else ["of the request"])


async def _nothing(message: Any) -> None:
    raise AssertionError(message)
