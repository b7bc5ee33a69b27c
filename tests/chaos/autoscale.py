"""Autoscaling on this machine: nodes come when there is work, and go when there is none.

    python -m tests.chaos.autoscale [--only score] [--plot FILE.svg] [--samples FILE.jsonl]

A head of one CPU, and Ray's fake multi-node provider for worker nodes of two. score: `medv score
--max-actors 8` with the toy. lost: a worker node is killed (SIGKILL of its raylet) in the middle of
a scoring job, which goes on. head: the head and all its nodes are killed; the same command goes on,
on a new head. endpoint: replicas 0 -> n -> 0. train: a node is killed in the middle of a stage of
elastic training. One JSON line each; exit code 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from medv_ray.data import synthetic
from tests.chaos import kill_train, serve_runs
from tests.chaos.ray_nodes import (
    Counted,
    FakeCluster,
    end_all,
    end_below,
    fake_cluster,
    free_port,
    join,
    wait_for,
)  # fmt: skip
from tests.chaos.scoring_job import CHUNK_ROWS, ScoringJob, stubbed
from tests.integration import processes

ROWS = 3000
"""Of the toy: eight actors on two cores answer some 20 a second, so that there is work for as long
as it takes Ray to get from one node to five."""
ENDED_S = 240.0
"""In which the scoring run must end on two cores, its nodes' start included."""
IDLE_S = 90.0
"""After which the last idle node must be gone."""
MOST_ACTORS = 8
NODES = 4
REPLICAS = 2
"""Of three that may be: as many as must come."""
CLIENTS_S = 300.0
"""At most. Serve hears of the load every 10 s and looks at it for 30 s before it asks for more than
the first replica; then a node and a model start, on cores that the clients keep busy."""
TRAIN_STEPS = 400

Said = dict[str, Any]
Problems = list[str]


def toy_job(folder: Path) -> ScoringJob:
    """`medv score` of `ROWS` rows with the toy."""
    synthetic.write_archive(folder / "in.parquet", ROWS, per_image=20)
    words = ["--archive", str(folder / "in.parquet"), "--model", "toy"]
    words += ["--out", str(folder / "run"), "--set", f"archive.chunk_rows={CHUNK_ROWS}"]
    words += ["--max-actors", str(MOST_ACTORS)]
    return ScoringJob(folder, [*serve_runs.MEDV, "score", *words], processes.environment(folder))


def on_nodes(job: ScoringJob, cluster: FakeCluster) -> ScoringJob:
    """The job as one of the cluster."""
    return replace(job, environment=job.environment | cluster.for_drivers)


def ended_rows(job: ScoringJob, problems: Problems) -> Said:
    """What became of the rows, each of which is to be answered once."""
    rows = job.rows()
    if not rows.all_answered:
        problems.append(f"{rows}")
    return rows.said()


def actors_alive(cluster: FakeCluster) -> int:
    """Scoring actors of the cluster, as processes."""
    return len(processes.actors(cluster.head.pid)) if cluster.head else 0


def score(folder: Path, counted: list[Counted], problems: Problems) -> Said:
    """From one node to four and more, to the end of the job, and back to one."""
    with fake_cluster(workers=NODES) as cluster:
        job = on_nodes(toy_job(folder), cluster)
        with Counted(cluster.address, lambda: actors_alive(cluster)) as counts:
            counted.append(counts)
            began_s = time.monotonic()
            process = job.start()
            code, said, err = job.end(process)
            took_s, ended_s = time.monotonic() - began_s, counts.now_s
            if code:
                problems.append(f"the job ended with {code}: {err[-300:]}")
            try:
                wait_for(lambda: counts.last == 1, "the nodes to go", IDLE_S)
            except SystemExit as error:
                problems.append(str(error))
            down_s = counts.now_s - ended_s
        if counts.most < 4:
            problems.append(f"at most {counts.most} nodes were alive at once")
        if took_s > ENDED_S:
            problems.append(f"the job took {took_s:.0f} s")
        return {
            "job_s": round(took_s, 1), "most_nodes": counts.most, "nodes_at_the_end": counts.last,
            "most_actors": max(actors for *_, actors in counts.samples),
            "one_node_again_after_s": round(down_s, 1),
            "rows_per_s": said.get("rows_per_s"), **ended_rows(job, problems),
        }  # fmt: skip


def lost(folder: Path, counted: list[Counted], problems: Problems) -> Said:
    """A worker node dies under its actors: the job goes on, and ends with every row once."""
    rows = 3200
    with fake_cluster(workers=NODES) as cluster:
        job = on_nodes(stubbed(folder, ["sleep:0.1 what?"] * rows, MOST_ACTORS), cluster)
        with Counted(cluster.address, lambda: actors_alive(cluster)) as counts:
            counted.append(counts)
            process = job.start()

            def busy_nodes() -> list[int]:
                return [pid for pid in cluster.raylets() if processes.actors(pid)]

            over = lambda: process.poll() is not None  # noqa: E731
            wait_for(lambda: bool(busy_nodes()) or over(), "actors on a worker node", ENDED_S)
            if over():
                raise SystemExit(f"the job ended before the kill: {process.communicate()}")
            busy = busy_nodes()
            before, died = job.commits(), len(processes.actors(busy[0]))
            time.sleep(2)
            os.kill(busy[0], signal.SIGKILL)
            killed_s = time.monotonic()
            job.wait_for_commits(process, before + 20)
            went_on_s = time.monotonic() - killed_s
            code, said, err = job.end(process)
        if code:
            problems.append(f"the job ended with {code}: {err[-300:]}")
        return {
            "actors_on_it": died, "commits_before": before,
            "twenty_more_commits_after_s": round(went_on_s, 1),
            "worker_deaths": said.get("worker_deaths"), **ended_rows(job, problems),
        }  # fmt: skip


def head(folder: Path, counted: list[Counted], problems: Problems) -> Said:
    """Head and nodes are gone: the job ends in a line, and the same command goes on."""
    rows = 960
    with fake_cluster(workers=2) as cluster:
        job = on_nodes(stubbed(folder, ["sleep:0.1 what?"] * rows, MOST_ACTORS), cluster)
        process = job.start()
        job.wait_for_commits(process, 5)
        killed_s = time.monotonic()
        cluster.kill_head()
        code, _, told = job.end(process)
        ended_s, before = time.monotonic() - killed_s, job.commits()
        err = told
        if not code or "Traceback" in err:
            problems.append(f"without a head the job ended with {code}: {err[-300:]}")
        cluster.start()
        began_s, process = time.monotonic(), job.start()
        job.wait_for_commits(process, before + 1)
        first_s = time.monotonic() - began_s
        code, said, err = job.end(process)
        if code:
            problems.append(f"the job that went on ended with {code}: {err[-300:]}")
        if said.get("new_rows") != rows - CHUNK_ROWS * before:
            problems.append(
                f"{said.get('new_rows')} new rows, {CHUNK_ROWS * before} were committed"
            )
        return {
            "job_ended_after_s": round(ended_s, 1), "said": told.strip()[-200:],
            "rows_before": CHUNK_ROWS * before, "start_to_first_commit_s": round(first_s, 1),
            **ended_rows(job, problems),
        }  # fmt: skip


def endpoint(folder: Path, counted: list[Counted], problems: Problems) -> Said:
    """Nobody asks: no replica, and no node but the head. Clients come, and it answers; they go."""
    from medv_ray.on_ray.front import CALLBACK

    scaling = {"min_replicas": 0, "target_ongoing": 1, "downscale_seconds": 5}
    environment = {CALLBACK: "medv_ray.on_ray.front:middlewares"}
    how = {"head_cpus": 0, "worker_cpus": 1, "workers": 3, "environment": environment}
    words = ["--max-replicas", "3"]
    words += [word for name, one in scaling.items() for word in ("--set", f"scaling.{name}={one}")]
    with fake_cluster(**how) as cluster, ExitStack() as stack:
        served = serve_runs.medv_serve(*words, environment=cluster.for_drivers)
        running = stack.enter_context(served)

        def replicas() -> int:
            below = processes.descendants(cluster.head.pid) if cluster.head else []
            return sum("ServeReplica" in processes.command(pid) for pid in below)

        counts = stack.enter_context(Counted(cluster.address, replicas))
        counted.append(counts)

        def none() -> bool:
            return bool(counts.samples) and counts.samples[-1][1:] == (1, 0)

        wait_for(none, "the first replica and its node to go", IDLE_S)
        idle_at_s = counts.now_s
        seen = serve_runs.Seen()

        def most() -> int:
            return max((one for at, _, one in counts.samples if at > idle_at_s), default=0)

        asyncio.run(ask_for(serve_runs.Clients(running, seen), lambda: most() >= REPLICAS))
        asked_until_s = counts.now_s
        wait_for(none, "the replicas and their nodes to go", IDLE_S)
        problems += seen.problems
        if most() < REPLICAS:
            problems.append(f"at most {most()} replicas in {CLIENTS_S:.0f} s")
        return {
            "none_at_s": idle_at_s, "most_replicas": most(), "most_nodes": counts.most,
            "asked_until_s": asked_until_s, "none_again_at_s": counts.now_s, **seen.said(),
        }  # fmt: skip


async def ask_for(clients: serve_runs.Clients, enough: Callable[[], bool]) -> None:
    """Eight clients, half of them streaming, until there is enough, and once more then; the first
    request waits for a replica."""
    await clients.must_answer()
    await clients.many(8, CLIENTS_S, enough)
    await clients.must_answer()


def train(folder: Path, counted: list[Counted], problems: Problems) -> Said:
    """Two workers on two nodes; one node dies, and the worker that is left goes on from the last
    checkpoint, to the end."""
    kill_train.prepare(folder, TRAIN_STEPS)
    file = folder / "settings.json"
    settings = json.loads(file.read_text())
    settings["workers"] |= {"min_workers": 1}
    file.write_text(json.dumps(settings))
    nodes_folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    environment = {**processes.environment(nodes_folder), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    address = f"127.0.0.1:{free_port()}"
    first = ["--head", "--node-ip-address", "127.0.0.1", "--port", address.rpartition(":")[2]]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, nodes_folder, ignore_errors=True)
        head = join(environment, address, 1, *first, "--include-dashboard", "false")
        stack.callback(end_all, head)
        more = ["--address", address, "--node-ip-address", "127.0.0.2"]
        second = join(environment, address, 2, *more)
        stack.callback(end_all, second)
        run = kill_train.Run(folder, random.Random(0), nodes_folder)
        run.process = process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.train_job", str(folder)], text=True,
            cwd=processes.ROOT, env={**environment, "RAY_ADDRESS": address},
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        stack.callback(end_all, process)
        if not run.wait(lambda: run.saved() > 0):
            raise SystemExit(f"it ended before its first checkpoint: {process.communicate()}")
        workers = [len(workers_below(node.pid)) for node in (head, second)]
        if workers != [1, 1]:
            problems.append(f"workers of the two nodes: {workers}")
        end_all(second)
        killed_s, before = time.monotonic(), run.saved()
        if not run.wait(lambda: run.saved() > before + 2 * kill_train.SAVE_EVERY):
            raise SystemExit(f"it ended with the node: {process.communicate()}")
        went_on_s, left = time.monotonic() - killed_s, len(workers_below(head.pid))
        run.end()
        problems += run.problems
        if left != 1:
            problems.append(f"{left} workers went on")
        if run.saved() != TRAIN_STEPS:
            problems.append(f"the last step is {run.saved()}")
        return {
            "steps": TRAIN_STEPS, "killed_after_step": before, "workers_left": left,
            "two_more_saves_after_s": round(went_on_s, 1),
        }  # fmt: skip


def workers_below(pid: int) -> list[int]:
    """Training workers of a node."""
    below = processes.descendants(pid)
    return [one for one in below if "RayTrainWorker" in processes.command(one)]


Arm = Callable[[Path, list[Counted], Problems], Said]
ARMS: dict[str, Arm] = {arm.__name__: arm for arm in (score, lost, head, endpoint, train)}


def plot(file: Path, counts: Counted) -> None:
    """Nodes and what else was counted over time."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "medv_ray", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams["axes.spines.right"] = False
    seconds, nodes, actors = zip(*counts.samples, strict=True)
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.step(seconds, nodes, where="post", color="#2b6cb0", label="nodes alive, the head included")
    axes.step(seconds, actors, where="post", color="#a3b1bf", label="scoring actors")
    axes.set_xlabel("seconds since the job was started")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", choices=ARMS, action="append")
    parser.add_argument("--plot", type=Path, help="of score: an SVG of nodes over time")
    parser.add_argument("--samples", type=Path, help="nodes over time as lines of JSON, by arm")
    args = parser.parse_args()
    failed = False
    for name in args.only or ARMS:
        folder, problems, counted = Path(tempfile.mkdtemp(prefix="mas", dir="/tmp")), [], []
        began_s, said = time.monotonic(), {}
        try:
            said = ARMS[name](folder, counted, problems)
        except SystemExit as error:
            problems.append(str(error))
        finally:
            end_below()
            shutil.rmtree(folder, ignore_errors=True)
        for counts in counted:
            said["nodes_over_time"] = [one[:2] for one in counts.changes()]
            if args.samples:
                with args.samples.open("a") as file:
                    file.writelines(
                        json.dumps(dict(zip(("s", "nodes", "actors"), one, strict=True), arm=name))
                        + "\n" for one in counts.samples
                    )  # fmt: skip
            if args.plot and name == "score":
                plot(args.plot, counts)
        seconds = round(time.monotonic() - began_s)
        print(
            json.dumps({"run": name, **said, "seconds": seconds, "problems": problems}), flush=True
        )
        failed |= bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
