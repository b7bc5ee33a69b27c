r"""What Ray Data costs: the scoring job against a bare loop with the same predictor.

    python benchmarks/bench_score.py [--repeats 5]

A batch is a chunk. The predictor waits a fixed time for each batch (250 ms, 40 ms) and answers at
once. Bare: read the rows, answer, write the part, commit, in a loop. Ray: the same through the
job's own stream with one actor. Both arms first give equal rows, then take turns in one process,
each time into a fresh run folder. Steady time is from the first commit to the last, a batch;
start-up stands apart. Goals: at most 2 % over the bare loop at 250 ms, 10 % at 40 ms. One JSON line
for each batch time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the actor imports this file by its name

from benchmarks.circumstances import circumstances
from medv_ray.archive.plan import plan
from medv_ray.archive.rows import Part, read_run
from medv_ray.archive.run import Run
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.data.synthetic import write_archive
from medv_ray.engine import Answer, Request
from medv_ray.on_ray.chunk import ChunkScorer
from medv_ray.on_ray.cluster import running_ray
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.on_ray.preflight import size_pool
from medv_ray.settings import TOY

GOALS = {250: 0.02, 40: 0.10}
BATCHES = {250: 40, 40: 150}
CHUNK_ROWS = 8


class FixedCost:
    """Answers after a fixed wait for each call."""

    def __init__(self, seconds: float) -> None:
        self.counters = SimpleNamespace(answers=0)
        self._seconds = seconds

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        time.sleep(self._seconds)
        self.counters.answers += len(requests)
        return [
            Answer(request.question[::-1], (1,), (0.5,), (0,), 1, 0.0, "stop")
            for request in requests
        ]

    def close(self) -> None:
        """Nothing to let go of."""


def load(settings: ScoreSettings) -> FixedCost:
    """The predictor of an actor; its cost in ms travels as the seed."""
    return FixedCost(settings.seed / 1000)


def open_run(folder: Path, ms: int, name: str) -> tuple[ScoreSettings, Run]:
    """Settings and a fresh run over the archive of `ms`."""
    settings = ScoreSettings.model_validate(
        {
            "out": str(folder / name),
            "archive": {"archive": str(folder / f"{ms}.parquet"), "chunk_rows": CHUNK_ROWS},
            "model": {"path": str(TOY)},
            "pool": {"max_actors": 1},
            "seed": ms,
        }
    )
    planned = plan(open_archive(settings.archive), f"{ms}")
    return settings, Run.open(settings.out, planned, {"bench": ms})


def bare(folder: Path, ms: int, name: str) -> tuple[float, float]:
    """Start-up and steady seconds a batch without Ray."""
    settings, run = open_run(folder, ms, name)
    started = time.perf_counter()
    with run:
        scorer = ChunkScorer(
            run.plan.archive, Store(settings.out), settings.answer, lambda: load(settings)
        )
        commits = []
        for chunk in run.todo():
            part, _ = scorer.score(chunk)
            run.commit(part)
            commits.append(time.perf_counter())
    return commits[0] - started, (commits[-1] - commits[0]) / (len(commits) - 1)


def through_ray(folder: Path, ms: int, name: str, capacity: Any) -> tuple[float, float]:
    """Start-up and steady seconds a batch through the job's stream."""
    from medv_ray.on_ray.actor import Work
    from medv_ray.on_ray.stream import Stream

    settings, run = open_run(folder, ms, name)
    started = time.perf_counter()
    with run:
        todo = run.todo()
        stream = Stream(todo, size_pool(settings.pool, capacity, len(todo)))
        work = Work(settings, run.plan.archive, stream.supervisor, "benchmarks.bench_score:load")
        commits = []
        for results in stream.run(work):
            run.commit_all([Part(**result["part"]) for _, result in results])
            commits += [time.perf_counter()] * len(results)
    return commits[0] - started, (commits[-1] - commits[0]) / (len(commits) - 1)


def content(out: Path) -> list[tuple[Any, ...]]:
    """The rows of a run, in order, without times and digests of the writing."""
    rows = [row for table in read_run(str(out)) for row in table.to_pylist()]
    kept = ("file", "row", "id", "status", "answer", "confidence", "chunk")
    return sorted(tuple(row[name] for name in kept) for row in rows)


def measure(folder: Path, ms: int, repeats: int, capacity: Any) -> dict[str, Any]:
    """All repeats of one batch time."""
    write_archive(folder / f"{ms}.parquet", BATCHES[ms] * CHUNK_ROWS, row_group_rows=1200)
    bare(folder, ms, f"{ms}-check-bare")
    through_ray(folder, ms, f"{ms}-check-ray", capacity)
    if content(folder / f"{ms}-check-bare") != content(folder / f"{ms}-check-ray"):
        raise SystemExit("the two arms give different rows: nothing was timed")
    pairs, start_up = [], []
    for number in range(repeats):
        _, plain = bare(folder, ms, f"{ms}-bare-{number}")
        start_s, streamed = through_ray(folder, ms, f"{ms}-ray-{number}", capacity)
        pairs.append((plain, streamed))
        start_up.append(start_s)
    overheads = [streamed / plain - 1 for plain, streamed in pairs]
    return {
        "bench": "score",
        "batch_ms": ms,
        "batches": BATCHES[ms],
        "repeats": repeats,
        "bare_ms": round(statistics.median(p for p, _ in pairs) * 1000, 2),
        "ray_ms": round(statistics.median(s for _, s in pairs) * 1000, 2),
        "overhead": round(statistics.median(overheads), 4),
        "overhead_range": [round(min(overheads), 4), round(max(overheads), 4)],
        "goal": GOALS[ms],
        "start_up_s": round(statistics.median(start_up), 2),
        **circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ms", type=int, choices=sorted(GOALS), nargs="*", default=list(GOALS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_ray() as cluster:
        for ms in args.ms:
            print(json.dumps(measure(Path(name), ms, args.repeats, cluster.capacity)), flush=True)


if __name__ == "__main__":
    main()
