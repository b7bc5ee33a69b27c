"""The parts of tests/chaos/autoscale.py and ray_nodes.py that need no cluster."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos import autoscale, ray_nodes, serve_runs
from tests.chaos.ray_nodes import HEAD, Counted, FakeCluster
from tests.integration import processes


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts; none is left."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_the_autoscaler_takes_the_cluster(tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = FakeCluster(workers=3, worker_cpus=5, folder=tmp_path).config()
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert (types["worker"]["max_workers"], types["worker"]["resources"]["CPU"]) == (3, 5)
    assert prepared["head_node_type"] == HEAD
    # a head that the provider does not know by its name costs a node too many
    from ray.autoscaler._private.fake_multi_node import node_provider

    assert HEAD == node_provider.FAKE_HEAD_NODE_TYPE
    assert ray_nodes.PROVIDER.rpartition(".")[2] == node_provider.FakeMultiNodeProvider.__name__


def test_nodes_are_counted_while_they_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = iter([1, 1, 3, 3, 1])
    monkeypatch.setattr(ray_nodes, "nodes_alive", lambda address: next(alive, 1))
    monkeypatch.setattr(ray_nodes, "LOOK_S", 0.01)
    with Counted("nowhere", lambda: 7) as counts:
        ray_nodes.wait_for(lambda: len(counts.samples) >= 5, "five samples", 20)
    assert [sample[1:] for sample in counts.samples[:5]] == [(n, 7) for n in (1, 1, 3, 3, 1)]
    assert (counts.most, counts.last) == (3, 1)
    assert [nodes for _, nodes, _ in counts.changes()] == [1, 3, 1]


def test_a_wait_in_vain_says_for_what() -> None:
    with pytest.raises(SystemExit, match="0 s in vain for the moon"):
        ray_nodes.wait_for(lambda: False, "the moon", 0)


def test_only_what_lies_below_is_ended(sleepers: list[subprocess.Popen[bytes]]) -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print(flush=True); input()"
    for _ in range(2):
        sleepers.append(
            subprocess.Popen(
                [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
    first, second = sleepers
    for one in sleepers:
        assert one.stdout is not None
        one.stdout.readline()
    [below] = processes.descendants(first.pid)
    ray_nodes.end_all(first)
    deadline = time.monotonic() + 20
    while processes.command(below) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.command(below)
    assert second.poll() is None
    [other] = processes.descendants(second.pid)
    ray_nodes.end_all(second)
    assert not processes.command(other) or time.monotonic() < deadline


def test_what_has_ended_is_not_killed_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it may be another's by now"))
    ray_nodes.end_all(ended)


def test_what_a_run_leaves_is_ended() -> None:
    code = (
        "import subprocess; from tests.chaos.ray_nodes import end_below\n"
        "one = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "end_below(); print(one.wait())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "-9\n", done.stderr


@pytest.mark.parametrize("more", [[], ["--hang"]])
def test_an_endpoint_that_does_not_start_is_not_waited_for(
    more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, time; '--hang' in sys.argv and time.sleep(60); print('no option')"
    monkeypatch.setattr(serve_runs, "MEDV", [sys.executable, "-S", "-c", code])
    monkeypatch.setattr(serve_runs, "START_S", 0.5 if more else 20)
    with pytest.raises(SystemExit, match="did not start"), serve_runs.medv_serve(*more):
        pytest.fail("it runs")


def test_an_endpoint_is_ended_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, time; print('answers as', os.getpid(), flush=True); time.sleep(60)"
    monkeypatch.setattr(serve_runs, "MEDV", [sys.executable, "-S", "-c", code])
    below = set(processes.descendants(os.getpid()))
    found: set[int] = set()

    def look() -> None:
        found.update(set(processes.descendants(os.getpid())) - below)
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), serve_runs.medv_serve():
        look()
    [pid] = found
    assert not processes.command(pid)


def test_clients_ask_until_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    async def ask(self: serve_runs.Clients, stream: bool = False) -> SimpleNamespace:
        asked.append(stream)
        await asyncio.sleep(0)
        # the third has no Retry-After, as of an error that nobody promised
        return SimpleNamespace(status_code=500 if len(asked) == 3 else 200, headers={})

    async def go(enough: Callable[[], bool]) -> None:
        clients = serve_runs.Clients(serve_runs.Endpoint(1), serve_runs.Seen())
        await autoscale.ask_for(clients, enough)

    monkeypatch.setattr(serve_runs.Clients, "ask", ask)
    began_s = time.monotonic()
    asyncio.run(go(lambda: len(asked) > 20))
    assert time.monotonic() - began_s < 20
    assert sorted(asked[2:10]) == [False] * 4 + [True] * 4
    monkeypatch.setattr(autoscale, "CLIENTS_S", 0.2)
    asyncio.run(go(lambda: False))  # in vain


def test_the_plot_is_the_same_each_time(tmp_path: Path) -> None:
    counts = Counted("nowhere")
    counts.samples = [(0.0, 1, 0), (5.0, 4, 3), (20.0, 5, 8), (40.0, 1, 0)]
    for name in ("a.svg", "b.svg"):
        autoscale.plot(tmp_path / name, counts)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml")
    assert "<svg" in text
