"""Kill a scoring job again and again; at the end every row must be there once.

    python -m tests.chaos.kill_runs [--short] [--decode-actors 1]

1. SIGKILL the driver, each time at a random moment after that run's first new commit, and start the
   same job again at once. 2. SIGKILL scoring actors of the last run. 3. A row that aborts its
worker. The predictor sleeps 40 ms a row. With `--decode-actors`, every other run decodes in actors
in front of the scoring ones, of which there is one less for each; both kinds are killed. One JSON
line with the figures; exit code 1 if any of them is not what the job promises.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from medv_ray.archive.rows import read_run
from tests.chaos.scoring_job import commits
from tests.integration import processes, stub

ROOT = Path(__file__).parents[2]
CHUNK_ROWS = 32
ACTORS = 2
ROW_S = 0.04
DRIVER_WINDOW_S = 2.0
ACTOR_WINDOW_S = 1.0
PATIENCE_S = 180.0
GONE_S = 120.0
"""Ray's agents look for their raylet every few seconds and leave last."""


@dataclass
class Runs:
    """One archive, one run folder, and what happened to them."""

    folder: Path
    rng: random.Random
    seen: set[int] = field(default_factory=set)
    """Every process that a job had."""
    problems: list[str] = field(default_factory=list)
    patience_s: float = PATIENCE_S
    decode_actors: int | None = None
    """Of every other run, the first among them; None: no run has any."""
    started: int = 0

    def start(self) -> subprocess.Popen[str]:
        pool = {"max_actors": ACTORS}
        if self.decode_actors is not None:
            decoders = 0 if self.started % 2 else self.decode_actors
            pool = {"max_actors": ACTORS - decoders, "decode_actors": decoders}
        self.started += 1
        more = {"chunk_rows": CHUNK_ROWS, "pool": pool}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.run_job", str(self.folder)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "MEDV_TEST_SETTINGS": json.dumps(more),
                stub.ATTEMPTS: str(self.folder / "attempts"),
            },
        )  # fmt: skip

    def commits(self) -> int:
        return commits(self.folder)

    def attempts(self) -> Counter[int]:
        """How often each row was tried so far."""
        files = (self.folder / "attempts").iterdir()
        return Counter(int(n) for f in files for n in f.read_text().split("\n")[:-1])

    def wait_for_commits(self, process: subprocess.Popen[str], more_than: int) -> bool:
        """False when the job ended first."""
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            if self.commits() > more_than:
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        raise SystemExit("no progress: the job hangs")

    def note(self, process: subprocess.Popen[str]) -> None:
        self.seen |= set(processes.descendants(process.pid))

    def check(self, ok: bool, said: str) -> None:
        if not ok:
            self.problems.append(said)


def kill_drivers(runs: Runs, kills: int) -> dict[str, object]:
    """Each run must commit something; each kill may cost a chunk an actor."""
    gained, lost, slowest = [], [], 0.0
    for number in range(kills):
        before, tried = runs.commits(), runs.attempts().total()
        started = time.monotonic()
        process = runs.start()
        if not runs.wait_for_commits(process, before):
            runs.problems.append(f"run {number} ended before its kill: too few rows")
            break
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(runs.rng.uniform(0, DRIVER_WINDOW_S))
        runs.note(process)
        process.kill()
        process.wait()
        time.sleep(0.5)  # its actors may write a last line
        committed = {row for table in read_run(str(runs.folder / "run")) for row in rows_in(table)}
        gained.append(runs.commits() - before)
        lost.append(runs.attempts().total() - tried - gained[-1] * CHUNK_ROWS)
        runs.check(len(committed) == runs.commits() * CHUNK_ROWS, f"kill {number}: torn read")
        runs.check(gained[-1] > 0, f"run {number} made no progress")
        runs.check(lost[-1] <= ACTORS * CHUNK_ROWS, f"kill {number} cost {lost[-1]} rows")
    return {
        "driver_kills": len(gained),
        "chunks_per_run": [min(gained), max(gained)],
        "rows_redone_per_driver_kill": {"max": max(lost), "allowed": ACTORS * CHUNK_ROWS},
        "slowest_first_commit_s": round(slowest, 1),
    }


def rows_in(table: object) -> list[int]:
    return table.column("row").to_pylist()  # type: ignore[attr-defined, no-any-return]


def kill_actors(runs: Runs, kills: int) -> dict[str, object]:
    """Kill actors of one run, each after a commit since the last kill; then let it end."""
    before, tried = runs.commits(), runs.attempts().total()
    process = runs.start()
    killed = 0
    commits = before
    while killed < kills and runs.wait_for_commits(process, commits):
        time.sleep(runs.rng.uniform(0, ACTOR_WINDOW_S))
        alive = processes.actors(process.pid) + processes.decoding_actors(process.pid)
        if alive:
            runs.note(process)
            os.kill(runs.rng.choice(alive), signal.SIGKILL)
            killed += 1
        commits = runs.commits()
    output = process.communicate(timeout=PATIENCE_S)[0]
    runs.check(killed == kills, f"only {killed} of {kills} actors were killed: too few rows")
    runs.check(process.returncode == 0, f"the last run ended with {process.returncode}")
    said = json.loads(output.splitlines()[-1]) if output else {}
    committed = said.get("new_rows", 0)
    redone = runs.attempts().total() - tried - committed
    runs.check(redone <= killed * CHUNK_ROWS, f"{killed} actor kills cost {redone} rows")
    # a kill between two chunks is none that a chunk could see
    runs.check(said.get("worker_deaths", 0) <= killed, "more deaths were counted than kills")
    return {
        "actor_kills": killed,
        "worker_deaths_seen": said.get("worker_deaths"),
        "rows_redone_by_actor_kills": {"total": redone, "allowed": killed * CHUNK_ROWS},
    }


def check_rows(runs: Runs, rows: int) -> dict[str, object]:
    """Nothing missing, nothing twice, no healthy row quarantined."""
    found: Counter[int] = Counter()
    states: Counter[str] = Counter()
    for table in read_run(str(runs.folder / "run")):
        found.update(rows_in(table))
        states.update(table.column("status").to_pylist())
    missing = rows - len(found)
    twice = sum(count - 1 for count in found.values())
    quarantined = states["quarantined"]
    runs.check(not missing and not twice, f"{missing} rows missing, {twice} twice")
    runs.check(not quarantined, f"{quarantined} healthy rows quarantined")
    return {"rows": rows, "missing": missing, "duplicate": twice, "quarantined": quarantined}


def poison(runs: Runs) -> dict[str, object]:
    """One row aborts its worker: three deaths, one quarantined row, and the job ends."""
    questions = [f"sleep:0.01 row {number}" for number in range(96)]
    questions[runs.rng.randrange(96)] = "abort 0"
    folder = runs.folder / "poison"
    stub.write_archive(folder / "in.parquet", questions)
    (folder / "attempts").mkdir()
    process = Runs(folder, runs.rng).start()
    said = json.loads(process.communicate(timeout=PATIENCE_S)[0].splitlines()[-1])
    runs.check(process.returncode == 0, "the poisoned job did not end well")
    runs.check(said["worker_deaths"] <= 3, f"a poison row cost {said['worker_deaths']} workers")
    runs.check(said["reasons"] == {"worker_crash": 1}, f"quarantined: {said['reasons']}")
    return {"poison_deaths": said["worker_deaths"], "poison_quarantined": said["quarantined"]}


def leftovers(runs: Runs) -> int:
    """Processes of killed jobs that do not go away."""
    deadline = time.monotonic() + GONE_S
    alive = runs.seen
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if "ray" in processes.command(pid)}
        time.sleep(0.5)
    runs.check(not alive, f"{len(alive)} processes of dead jobs live on")
    return len(alive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="3 + 2 kills over 800 rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decode-actors", type=int, choices=range(1, ACTORS))
    args = parser.parse_args()
    rows, drivers, actors = (800, 3, 2) if args.short else (5000, 20, 10)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medv-kill-") as name:
        runs = Runs(Path(name), random.Random(args.seed), decode_actors=args.decode_actors)
        (runs.folder / "attempts").mkdir()
        questions = [f"sleep:{ROW_S} row {number}" for number in range(rows)]
        stub.write_archive(runs.folder / "in.parquet", questions)
        figures: dict[str, object] = {"chaos": "kill_runs", "seed": args.seed}
        figures["decode_actors"] = args.decode_actors
        figures |= kill_drivers(runs, drivers)
        figures |= kill_actors(runs, actors)
        figures |= check_rows(runs, rows)
        figures |= poison(runs)
        figures["processes_left"] = leftovers(runs)
    figures |= {"seconds": round(time.monotonic() - started), "problems": runs.problems}
    print(json.dumps(figures))
    sys.exit(1 if runs.problems else 0)


if __name__ == "__main__":
    main()
