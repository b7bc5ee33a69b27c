"""The driver's side of a pass, without a Ray: what it hands out, and what a loss becomes."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from medv_ray.errors import CheckpointError, RunError
from medv_ray.on_ray import stream as streaming
from medv_ray.on_ray.cluster import Lost
from medv_ray.on_ray.preflight import PoolSize
from medv_ray.on_ray.stream import Stream


class Called:
    """Stands in for the supervisor's handle."""

    def __init__(self) -> None:
        self.feeds: list[tuple[list[str], list[int], bool]] = []
        self.feed = SimpleNamespace(remote=lambda *given: self.feeds.append(given))
        self.results = SimpleNamespace(remote=lambda: "reply")
        self.stops = 0
        self.stop = SimpleNamespace(remote=self._stop)
        self.options: dict[str, Any] = {}

    def _stop(self) -> None:
        self.stops += 1


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Called:
    made = Called()

    def options(**given: Any) -> Any:
        made.options.update(given)
        return SimpleNamespace(remote=lambda *_: made)

    here = SimpleNamespace(get_node_id=lambda: "0a" * 28)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=options))
    monkeypatch.setattr(streaming, "LOOK_S", 0.0)
    return made


def a_stream(num_chunks: int = 0, check: Any = lambda: False) -> Stream:
    chunks: Any = [SimpleNamespace(to_json=lambda n=n: {"n": n}) for n in range(num_chunks)]
    return Stream(chunks, PoolSize(1, 1, 2), check)


def test_the_supervisor_stays_where_the_driver_is(supervisor: Called) -> None:
    a_stream()
    where = supervisor.options["scheduling_strategy"]
    assert (where.node_id, where.soft) == ("0a" * 28, False)
    assert supervisor.options["num_cpus"] == 0


def test_no_more_than_a_window_is_under_way(supervisor: Called) -> None:
    stream = a_stream(9)
    window = PoolSize(1, 1, 2).window
    assert window == 6
    stream._feed([])
    for number in (0, 1):
        stream._out.pop(number)
    stream._feed([0, 1])
    fed = [[json.loads(text)["number"] for text in texts] for texts, *_ in supervisor.feeds]
    assert fed == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert [rest for _, *rest in supervisor.feeds] == [[[], False], [[0, 1], False]]
    stream._out.clear()
    stream._feed([])
    assert supervisor.feeds[-1][2], "that was the last one"


def test_a_supervisor_that_is_gone_is_a_loss(
    supervisor: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray, "wait", gone)
    with pytest.raises(Lost, match=r"E1512: the job's supervisor is gone \(ActorDiedError\)"):
        a_stream()._ask("results")


def test_a_stop_is_asked_for_once_while_it_waits(
    supervisor: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter([[], [], ["reply"]])
    monkeypatch.setattr(ray, "wait", lambda *_, **__: (next(waits), []))
    monkeypatch.setattr(ray, "get", lambda reply, timeout: reply)
    stream = a_stream(check=lambda: True)
    assert stream._ask("results") == "reply"
    assert (supervisor.stops, stream.stopped) == (1, True)


@pytest.mark.parametrize(
    ("fatal", "is_full", "kind", "code"),
    [
        (("CheckpointError", "E1402", "no tensor."), True, CheckpointError, "E1402"),
        (None, True, RunError, "E1503"),
        (None, False, Lost, "E1512"),
    ],
)
def test_why_ray_data_ended(
    supervisor: Called,
    monkeypatch: pytest.MonkeyPatch,
    fatal: tuple[str, str, str] | None,
    is_full: bool,
    kind: type,
    code: str,
) -> None:
    stream = a_stream()
    monkeypatch.setattr(stream, "report", lambda: {"fatal": fatal})
    stream._full = is_full
    found = stream._reported("ActorDiedError")
    assert (type(found), found.code) == (kind, code)


def test_a_pass_that_goes_on_is_not_over(
    supervisor: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LOST_S", 0.01)
    stream, ended = a_stream(), threading.Event()
    stream._pump = threading.Thread(target=ended.wait, daemon=True)
    stream._pump.start()
    assert not stream.is_over()
    ended.set()
    stream._pump.join()
    assert stream.is_over()
