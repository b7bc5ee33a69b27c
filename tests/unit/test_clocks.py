"""Waits, deadlines and durations go by a clock that nobody sets: a wall clock that is put forward
or back ends no wait early, makes no duration negative, and changes no order.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from medv_ray.on_ray.supervisor import Supervisor

ROOT = Path(__file__).parents[2]
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
SHOWN = {
    "medv_ray/archive/lock.py": {"_owner_line", "in_use"},
    "medv_ray/archive/run.py": {"_begin", "event"},
    "medv_ray/client/load.py": {"retry_after"},
    "medv_ray/client/report.py": {"report"},
    "medv_ray/dicomweb/client.py": {"_retry_after"},
    "medv_ray/on_ray/doctor_cluster.py": {"_agrees", "check_clock"},
    "medv_ray/on_ray/front.py": {"_pass"},
    "medv_ray/serving/requests.py": {"identity"},
    "medv_ray/serving/audit.py": {"write"},
    "medv_ray/serving/traces.py": {"__init__"},
    "medv_ray/serving/batch/batches.py": {"create", "over", "publish", "sweep"},
    "medv_ray/serving/batch/job.py": {"_all", "_note", "_opened"},
    "medv_ray/serving/batch/routes.py": {"put"},
    "medv_ray/serving/batch/runner.py": {"_end", "_lock", "_lost"},
    "medv_ray/serving/batch/shelf.py": {"all", "get", "sweep"},
    "medv_ray/training/writers.py": {"_add"},
}
"""Functions that ask for the time of day, to write it down, to show how old a lock is, as a server
named a date until which to wait, which is taken for a minute or a day at most, or as a file or a
batch of a client ends at a date, whichever replica lives then."""


def asked(tree: ast.AST, inside: str = "") -> Iterator[str]:
    """Functions in which the wall clock is asked."""
    for node in ast.iter_child_nodes(tree):
        here = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL:
            yield here
        yield from asked(node, here)


def test_no_wait_goes_by_the_wall_clock() -> None:
    found: dict[str, set[str]] = {}
    for file in [*ROOT.glob("medv_ray/**/*.py"), *ROOT.glob("jobs/*.py")]:
        if names := set(asked(ast.parse(file.read_text()))):
            found[str(file.relative_to(ROOT))] = names
    assert found == SHOWN


def test_the_start_of_a_pool_is_measured_by_another_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look() -> tuple[float | None, float]:
        supervisor = Supervisor(1)
        before = (await supervisor.report())["ready_ago_s"]
        await supervisor.born("actor")
        await supervisor.ready("actor")
        monkeypatch.setattr("time.time", lambda: 0.0)  # 1970
        return before, (await supervisor.report())["ready_ago_s"]

    before, ago_s = asyncio.run(look())
    assert before is None
    assert 0 <= ago_s < 60
