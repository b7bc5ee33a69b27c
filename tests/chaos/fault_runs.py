"""Faults that need whole jobs: each is injected into one, which must end as it promises.

    python -m tests.chaos.fault_runs [--short] [--only stopped]

stopped: SIGSTOP of a scoring actor for a minute. rows: rows that end their worker by SIGSEGV, by
the kernel's SIGKILL as when memory is short, and by a limit on its memory. disk: Ray's own folder
has no room, and runs full. nodes: a cluster of two nodes on this machine loses one, and its head.
servers: SIGKILL of Serve's controller and of its proxy, under clients. One JSON line with the
figures; exit code 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos import ray_nodes, serve_runs
from tests.chaos.ray_nodes import end_all, end_below
from tests.chaos.scoring_job import CHUNK_ROWS, stubbed
from tests.integration import processes

ACTORS = 2
AGAIN_S = 20.0
"""Of a proxy; three looks at it take 6 s, and its start has to find a core."""


class Promises:
    """What was not kept."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def check(self, ok: bool, said: str) -> None:
        if not ok:
            self.problems.append(said)


def stopped(folder: Path, short: bool, promises: Promises) -> dict[str, Any]:
    """An actor that stands still costs time alone: the others go on, and so does it."""
    seconds, rows = (8.0, 160) if short else (60.0, 800)
    job = stubbed(folder, ["sleep:0.05 what?"] * rows, ACTORS)
    process = job.start()
    job.wait_for_commits(process, 2)
    [victim, *_] = processes.actors(process.pid)
    os.kill(victim, signal.SIGSTOP)
    before = job.commits()
    time.sleep(seconds)
    meanwhile = job.commits() - before
    os.kill(victim, signal.SIGCONT)
    code, said, err = job.end(process)
    promises.check(code == 0, f"stopped: the job ended with {code}: {err[-300:]}")
    promises.check(meanwhile > 0, "stopped: the other actor did not go on")
    promises.check(said.get("worker_deaths") == 0, "stopped: a death was counted")
    promises.check(job.rows().all_answered, f"stopped: {job.rows()}")
    return {"actor_stopped_s": seconds, "chunks_meanwhile": meanwhile}


def rows(folder: Path, short: bool, promises: Promises) -> dict[str, Any]:
    """Rows that end their worker are quarantined, and no other row; what a row has too little
    memory for is said as such."""
    questions = ["sleep:0.01 what?"] * 96
    questions[13], questions[40], questions[70] = "segfault", "killed", "limit"
    job = stubbed(folder, questions, ACTORS)
    code, said, err = job.end(job.start())
    promises.check(code == 0, f"rows: the job ended with {code}: {err[-300:]}")
    deaths = said.get("worker_deaths", 99)
    promises.check(deaths <= 9, f"rows: three rows cost {deaths} workers")
    ended = job.rows()
    found = dict(ended.ends)
    # with no memory left, a thread of Ray's may be the one that ends the worker
    short_of_memory = found.pop("out_of_memory", 0)
    crashed = found.pop("worker_crash", 0)
    right = found == {"answered": 93} and short_of_memory <= 1 and crashed + short_of_memory == 3
    promises.check(right and not ended.missing and not ended.duplicate, f"rows: {ended}")
    return {"crashing_rows": crashed, "workers_that_died": deaths, "quarantined": 3}


def disk(folder: Path, short: bool, promises: Promises) -> dict[str, Any]:
    """Ray's own folder on a disk of 400 kB: no job, and a line that says so at once. On one that
    runs full meanwhile: done, or an end with a line; and the same command goes on."""
    if os.geteuid() != 0:
        return {"skipped": "to mount a small disk needs root"}
    job = stubbed(folder, ["sleep:0.05 what?"] * 160, ACTORS)
    small = Path(tempfile.mkdtemp(prefix="md", dir="/tmp"))
    began = time.monotonic()
    cramped = replace(job, environment=job.environment | {"RAY_TMPDIR": str(small)})
    with mounted(small, "400k"):
        code, _, err = cramped.end(cramped.start())
    none_s = time.monotonic() - began
    promises.check(code not in (0, None), "disk: it ran without room for Ray")
    promises.check(err.count("\n") == 1 and "E15" in err, f"disk: it said {err[-500:]!r}")
    promises.check(str(small) not in err and "Traceback" not in err, "disk: a path or a stack")
    with mounted(small, "64m"):
        process = cramped.start()
        job.wait_for_commits(process, 2)
        ballast = small / "ballast"
        room = os.statvfs(small)
        ballast.write_bytes(bytes(room.f_bavail * room.f_bsize))
        full_code, _, err = job.end(process)
        promises.check("Traceback" not in err, "disk: a stack when it ran full")
        if full_code:
            promises.check(err.count("\n") == 1, f"disk: {err[-500:]}")
    code, _, _ = job.end(job.start())
    promises.check(code == 0, f"disk: the job that went on ended with {code}")
    promises.check(job.rows().all_answered, f"disk: {job.rows()}")
    small.rmdir()
    return {"end_without_room_s": round(none_s, 1), "exit_code_when_it_ran_full": full_code}


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def nodes(folder: Path, short: bool, promises: Promises) -> dict[str, Any]:
    """The second node goes: the job goes on. The head goes: the job ends, and the same command goes
    on, on a new head."""
    port = ray_nodes.free_port()
    address = f"127.0.0.1:{port}"
    rows = 320 if short else 640
    job = stubbed(folder, ["sleep:0.1 what?"] * rows, ACTORS)
    job.environment["RAY_ADDRESS"] = address
    environment = processes.environment(Path(tempfile.mkdtemp(prefix="mn", dir="/tmp")))
    first = ("--head", "--port", str(port), "--include-dashboard", "false")
    first += ("--node-ip-address", "127.0.0.1")  # by which the driver finds the head's raylet
    more = ("--address", address, "--node-ip-address", "127.0.0.2")
    started, figures = list[subprocess.Popen[bytes]](), dict[str, Any]()
    try:
        started.append(ray_nodes.join(environment, address, 1, *first))
        started.append(ray_nodes.join(environment, address, 2, *more))
        process = job.start()
        job.wait_for_commits(process, 3)
        second = started[1].pid
        job.wait_for(process, lambda: bool(processes.actors(second)), "actors on the second node")
        end_all(started[1])
        before = job.commits()
        job.wait_for(process, lambda: job.commits() >= before + 6, "six more commits")
        figures["went_on_without_the_second_node"] = process.poll() is None
        if process.poll() is not None:
            promises.check(False, f"nodes: without the second one it ended: {job.end(process)}")
            before, process = job.commits(), job.start()
            job.wait_for_commits(process, before + 1)
        end_all(started[0])
        began, before = time.monotonic(), job.commits()
        code, _, err = job.end(process)
        figures["end_after_the_head_went_s"] = round(time.monotonic() - began, 1)
        promises.check(code not in (0, None), "nodes: a job without a head ended well")
        promises.check("Traceback" not in err, f"nodes: a stack: {err[-300:]}")
        figures["said"] = err.strip()[-200:]
        promises.check(CHUNK_ROWS * before < rows, "nodes: too few rows")
        started.append(ray_nodes.join(environment, address, 1, *first))
        code, _, err = job.end(job.start())
        promises.check(code == 0, f"nodes: the job that went on ended with {code}: {err[-300:]}")
        found = job.rows()
        promises.check(found.all_answered, f"nodes: {found}")
        figures |= found.said()
    finally:
        for node in started:
            end_all(node)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
    return figures


def servers(folder: Path, short: bool, promises: Promises) -> dict[str, Any]:
    """Serve's controller goes: nobody notices. Its proxy goes: open connections break, and it
    answers again soon."""
    figures: dict[str, Any] = {}
    with serve_runs.medv_serve() as endpoint:
        for name in ("ServeController", "ProxyActor"):
            seen = serve_runs.Seen()
            asyncio.run(after_kill(endpoint, name, seen, figures))
            problems = Counter(seen.problems)
            # nobody listens until there is another one: that is no connection that broke
            refused = problems.pop("client met ConnectError", 0)
            met = sum(problems.pop(said) for said in [*problems] if said.startswith("client met"))
            promises.check(not problems, f"servers: {name}: {problems.most_common(3)}")
            is_proxy = name == "ProxyActor"
            promises.check(met <= 8 * is_proxy, f"servers: {name}: {met} connections broke")
            promises.check(is_proxy or not refused, f"servers: {name}: {refused} were refused")
            again_s = figures[f"{name}_answers_again_s"]
            promises.check(again_s < AGAIN_S, f"servers: {name}: it answers after {again_s} s")
            figures[f"{name}_connections_broken"] = met
    return figures


async def after_kill(
    endpoint: serve_runs.Endpoint, name: str, seen: serve_runs.Seen, figures: dict[str, Any]
) -> None:
    """Four clients; the process of that name is killed, and they go on for a while."""
    clients = serve_runs.Clients(endpoint, seen)
    await clients.must_answer()
    [pid, *_] = endpoint.pids(name)
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.many(4, 25))
        await asyncio.sleep(2)
        os.kill(pid, signal.SIGKILL)
        killed_s, before = time.monotonic(), seen.statuses[200]
        while seen.statuses[200] < before + 5 and time.monotonic() < killed_s + 60:
            await asyncio.sleep(0.05)
        figures[f"{name}_answers_again_s"] = round(time.monotonic() - killed_s, 2)
    await clients.must_answer()


Fault = Callable[[Path, bool, Promises], dict[str, Any]]
FAULTS: dict[str, Fault] = {
    fault.__name__: fault for fault in (stopped, rows, disk, nodes, servers)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=FAULTS, action="append")
    args = parser.parse_args()
    promises, figures = Promises(), dict[str, Any]()
    for name in args.only or FAULTS:
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="mf", dir="/tmp"))
        try:
            figures[name] = FAULTS[name](folder, args.short, promises)
        except (SystemExit, RuntimeError) as error:
            figures[name] = {}
            promises.problems.append(f"{name}: {error}")
        finally:
            end_below()
        figures[name]["seconds"] = round(time.monotonic() - began)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"chaos": "fault_runs", **figures, "problems": promises.problems}))
    return int(bool(promises.problems))


if __name__ == "__main__":
    sys.exit(main())
