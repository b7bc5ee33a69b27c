r"""Planner, ledger, commits and the start of a resume, at 10^5 to 10^7 rows and 1,000 workers.

    python benchmarks/bench_ledger.py [--rows 100000 1000000 10000000] [--folder DIR]

The job's own code without Ray, model and pictures: an archive of parquet shards is planned, its
chunks go to simulated workers that end in random order, each with a part of the real columns, and
are committed until nine tenths are done. There the process ends without a word, as by a kill. A new
one plans again and opens the run: that is the start of a resume. The last one commits the rest and
finishes; then every row is looked for in `rows/`. Each step is a process of its own, whose peak
memory is its own too. Goals at the largest size: the resume starts in under 60 s and 1 GiB, and the
planner's memory does not grow with the rows. A commit waits for the disk; so `--folder` lies in
memory (/dev/shm) unless said. `--starts` writes the ledger at once, without parts, and measures
planning and resume alone. One JSON line a size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from medv_ray.archive import rows as parts
from medv_ray.archive.chunks import Chunk
from medv_ray.archive.ledger import render
from medv_ray.archive.plan import Plan, plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.rows import Part, read_run
from medv_ray.archive.run import MERGE_AFTER, Run, commit_record
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from medv_ray.archive.store import Store
from medv_ray.schema import ANSWER_SCHEMA

WORKERS = 1000
PASS_CHUNKS = 50_000
"""As `medv_ray.on_ray.score`, which would load torch."""
WINDOW = 2 * WORKERS * 8 + 2
"""Chunks that a job hands out ahead, as `medv_ray.on_ray.stream`."""
SHARD_ROWS, GROUP_ROWS = 10_000, 100
QUARANTINED = 1000
"""One row in so many."""
DONE = 0.9
GOAL_S, GOAL_MIB = 60.0, 1024
SEED = 7
TOGETHER = 16
"""Chunks that come in while the driver commits the last ones."""
STAGES = ("plan", "commit", "resume", "finish", "check")
STARTS = ("plan", "ledger", "resume")


def write_archive(folder: Path, rows: int) -> None:
    """Shards as a hub's: 100 rows a row group, ids and questions of their own, one tiny picture."""
    folder.mkdir(parents=True)
    for first in range(0, rows, SHARD_ROWS):
        numbers = range(first, min(first + SHARD_ROWS, rows))
        held = pa.array([b"no picture"] * len(numbers), pa.binary())
        columns = {
            "id": [f"study-{number:09d}" for number in numbers],
            "image": pa.StructArray.from_arrays(
                [held, pa.nulls(len(numbers), pa.string())], ["bytes", "path"]
            ),
            "question": [f"is {number} seen?" for number in numbers],
        }
        path = folder / f"shard-{first // SHARD_ROWS:06d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=GROUP_ROWS)


def planned(folder: Path) -> Plan:
    """As a job plans, or plans again before it goes on."""
    prior = Prior.read(str(folder / "run"))
    asked = ArchiveSettings(archive=str(folder / "archive"))
    return plan(open_archive(asked, prior.images), "settings", prior)


def part_of(store: Store, chunk: Chunk) -> Part:
    """What a worker leaves behind: a part with the real columns, not visible yet."""
    numbers = np.asarray(chunk.rows)
    bad = numbers % QUARANTINED == 0
    size = len(numbers)
    known: dict[str, Any] = {
        "id": [f"{chunk.file}:{number}" for number in numbers],
        "file": pa.array(np.full(size, chunk.file), pa.int32()),
        "row": pa.array(numbers, pa.int64()),
        "question": ["is it seen?"] * size,
        "status": np.where(bad, "quarantined", "answered"),
        "reason": pa.array(np.where(bad, "corrupt_image", None), pa.string()),
        "code": pa.array(np.where(bad, "E1203", None), pa.string()),
        "answer": pa.array(np.where(bad, None, "yes"), pa.string()),
        "confidence": pa.array(numbers % 97 / 97, pa.float32()),
        "chunk": [chunk.key] * size,
    }
    columns = [
        pa.array(known[field.name], field.type)
        if field.name in known
        else pa.nulls(size, field.type)
        for field in ANSWER_SCHEMA
    ]
    data = parts.render(pa.table(columns, ANSWER_SCHEMA))
    name = f"{parts.FOLDER}/part-{chunk.key[:16]}.parquet"
    hidden = f"{parts.FOLDER}/part-{chunk.key[:16]}-{uuid4().hex[:12]}.parquet.tmp"
    store.write_hidden(hidden, data)
    lost = int(bad.sum())
    digest = sha256(data).hexdigest()
    return Part(
        chunk.key, chunk.source_key, hidden, name, digest, len(data), size, size - lost, 0, lost
    )


def memory_mib(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


class Watch:
    """Seconds of named stretches, and those of them that this process computed."""

    def __init__(self) -> None:
        self.s: Counter[str] = Counter()
        self.cpu_s: Counter[str] = Counter()

    def take(self, name: str, what: Callable[[], Any]) -> Any:
        began, computed = time.monotonic(), time.process_time()
        found = what()
        self.s[name] += time.monotonic() - began  # type: ignore[assignment]
        self.cpu_s[name] += time.process_time() - computed  # type: ignore[assignment]
        return found


def opened(folder: Path, watch: Watch) -> Run:
    """The start of a job, or of its resume, up to its first chunk."""
    found = watch.take("plan", lambda: planned(folder))
    return watch.take("open", lambda: Run.open(str(folder / "run"), found, {}))


def drive(run: Run, watch: Watch, until: float) -> int:
    """Commit until so many of the plan's rows are in the ledger; how many commits that took."""
    rng = random.Random(SEED)
    commits, done = 0, run.ledger.counts()["rows"]
    while done < until * run.plan.rows:
        todo = watch.take("todo", lambda: run.todo(PASS_CHUNKS))
        waiting = iter(todo)
        flying = list(islice(waiting, WINDOW))
        while flying and done < until * run.plan.rows:
            back = []
            for _ in range(min(TOGETHER, len(flying))):  # a worker computes one and reads one
                back.append(flying.pop(rng.randrange(min(len(flying), 2 * WORKERS))))
                flying += islice(waiting, 1)
            made = watch.take("workers", lambda back=back: [part_of(run.store, c) for c in back])
            watch.take("commit", lambda made=made: run.commit_all(made))
            done += sum(part.rows for part in made)
            commits += len(made)
    return commits


def stage(name: str, folder: Path) -> dict[str, Any]:
    """One step of the simulation, in this process."""
    base, watch = memory_mib("VmRSS"), Watch()
    more: dict[str, Any] = {}
    if name == "plan":
        found = watch.take("plan", lambda: planned(folder))
        more = {"rows": found.rows, "chunks": len(found.chunks)}
    elif name == "ledger":
        more["commits"] = watch.take("ledger", lambda: write_ledger(folder))
    elif name == "check":
        more = watch.take("check", lambda: look(folder))
    else:
        run = opened(folder, watch)
        more["open_chunks"] = run.open_chunks
        watch.take("todo", lambda: run.todo(PASS_CHUNKS))
        if name == "commit":
            more["commits"] = drive(run, watch, DONE)
            more["ledger_bytes"] = (folder / "run" / "ledger.jsonl").stat().st_size
        if name == "finish":
            more["commits"] = drive(run, watch, 1.0)
            summary = watch.take("finish", run.finish)
            more |= {"answered": summary.answered, "quarantined": summary.quarantined}
    seconds = {key: round(value, 2) for key, value in watch.s.items()}
    cpu = {key: round(value, 2) for key, value in watch.cpu_s.items()}
    peak = memory_mib("VmHWM")
    return {"s": seconds, "cpu_s": cpu, "base_mib": round(base), "peak_mib": round(peak), **more}


def write_ledger(folder: Path) -> int:
    """The ledger that nine tenths of the commits leave behind, merged 2,000 at a time, without the
    simulation: the merged files hold nothing. How many commits that are."""
    with Run.open(str(folder / "run"), planned(folder), {}) as run:
        store, chunks = run.store, run.plan.chunks
    lines, number, count = [], 0, int(DONE * len(chunks))
    names: list[str] = []
    for done, chunk in enumerate(islice(chunks, count), 1):
        number += 1
        size = len(chunk.rows)
        part = Part(
            chunk.key, chunk.source_key, "", f"{parts.FOLDER}/part-{chunk.key[:16]}.parquet",
            "0" * 64, 9000, size, size, 0, 0,
        )  # fmt: skip
        lines.append(render({**commit_record(part), "number": number}))
        names.append(part.name)
        if len(names) == MERGE_AFTER or done == count:
            number += 1
            merged = f"{parts.FOLDER}/merged-{number:016x}.parquet"
            store.write(merged, b"x" * 64)
            record = {"op": "merge", "part": merged, "parts": names, "number": number}
            lines.append(render({**record, "sha256": "0" * 64, "size": 64}))
            names = []
    store.write("ledger.jsonl", b"".join(lines))
    return count


def look(folder: Path) -> dict[str, int]:
    """Every row of the archive once in `rows/`?"""
    planned_rows = sum(
        pq.read_metadata(path).num_rows for path in (folder / "archive").glob("*.parquet")
    )
    seen = np.zeros(planned_rows, np.uint8)
    for table in read_run(str(folder / "run"), ["file", "row"]):
        index = table.column("file").to_numpy() * SHARD_ROWS + table.column("row").to_numpy()
        np.add.at(seen, index, 1)
    return {"missing": int((seen == 0).sum()), "doubled": int((seen > 1).sum())}


def measure(rows: int, folder: Path, stages: tuple[str, ...]) -> dict[str, Any]:
    """Stages at one size."""
    shutil.rmtree(folder, ignore_errors=True)
    write_archive(folder / "archive", rows)
    line: dict[str, Any] = {"bench": "ledger", "rows": rows, "workers": WORKERS}
    for name in stages:
        command = [sys.executable, __file__, "--stage", name, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        line[name] = json.loads(done.stdout)
        sys.stderr.write(f"{rows} {name}: {done.stdout.decode()}")
    shutil.rmtree(folder)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/medv-ledger"))
    parser.add_argument("--starts", action="store_true", help="a ledger without its commits")
    parser.add_argument("--stage", choices=(*STAGES, "ledger"))
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(stage(args.stage, args.folder)), flush=True)
        os._exit(0)  # as by a kill: nothing is closed
    for rows in args.rows:
        print(
            json.dumps(measure(int(rows), args.folder, STARTS if args.starts else STAGES)),
            flush=True,
        )


if __name__ == "__main__":
    main()
