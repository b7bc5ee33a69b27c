"""What is used of Ray under names of its own: it is there, or a warning says what is missing."""

import asyncio
import logging

import pytest
import ray
from ray.data import DataContext
from ray.serve._private.http_util import ASGIReceiveProxy

from medv_ray.on_ray import private_ray
from medv_ray.on_ray.private_ray import RECEIVE, WINDOW, ask_no_proxy, set_window


class Other:
    """What a later Ray may have instead."""

    __slots__ = ()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_ray, "_warned", set())


def test_the_window_is_ray_datas_own(caplog: pytest.LogCaptureFixture) -> None:
    context = DataContext()
    assert getattr(context, WINDOW) == 2  # else the stream need not raise it
    set_window(context, 70)
    assert getattr(context, WINDOW) == 70
    assert not caplog.records


def test_the_call_is_serves_own(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(metadata: object) -> bytes:
        raise AssertionError("the proxy was asked")

    async def run() -> None:
        receive = ASGIReceiveProxy({"type": "http"}, None, ask)  # type: ignore[arg-type]
        ask_no_proxy(receive)
        fetching = asyncio.ensure_future(receive.fetch_until_disconnect())
        await asyncio.sleep(0)
        assert not fetching.done()
        fetching.cancel()

    asyncio.run(run())
    assert not caplog.records


def test_a_ray_without_them_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        set_window(Other(), 70)  # type: ignore[arg-type]
        ask_no_proxy(Other())
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == [f"ray {ray.__version__} has no Other.{n} any more" for n in (WINDOW, RECEIVE)]
