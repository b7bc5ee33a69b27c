"""A million tiny rows under a hundred kills: none lost, none doubled, no answer under another row.

    python -m tests.chaos.many_rows [--short] [--rows 1000000] [--kills 100] [--folder DIR]

One scoring job with the stub predictor is started again after each SIGKILL of its driver. A tenth
of the kills come while it loads and plans, a tenth while Ray starts, the rest after the run's first
new commit; in a fifth of those an actor is killed before. A quarter of the runs start a Ray of
their own, the others connect to one that stands. The last run, with its own, ends by itself. Then
every row of `rows/` is held against what its number says it must be, batch by batch. Processes of a
dead run that outlive the next one are ended and counted. With --folder a run that was interrupted
goes on, as each kill is noted in DIR/kills.jsonl. One JSON line with the figures; exit code 1 if
any of them is not what the job promises.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medv_ray.archive.ledger import parse
from medv_ray.engine import Answer, Request, row_seed
from medv_ray.errors import DataError
from tests.chaos.ray_nodes import free_port
from tests.integration import processes, stub

ROOT = Path(__file__).parents[2]
MARK = "MEDV_MANY_ROWS"
SHARD_ROWS = 20_000
PICTURES = 7
ACTORS = 2
CHUNK_ROWS = 400
WINDOW = 2 * ACTORS * 8 + 2
"""Chunks that a job hands out ahead, which bounds what one kill can cost."""
EARLY, STARTING, WITH_ACTOR = 0.1, 0.2, 0.36
OWN_RAY = 0.25
STANDING = 10**6
"""In the place of a run's number: the Ray that runs connect to."""
RESERVE = 0.05
"""Of the rows, for the run that is not killed."""
PATIENCE_S = 900.0
GONE_S = 120.0
START_CPU_S, START_MIB = 60.0, 1024
FAILED_STARTS = 20
"""One after the other: on a busy machine Ray may not come up within its 30 s, and `ray stop` of
another program ends ours, too."""
NO_RAY = "E1512"


class Tiny(stub.Stub):
    """Answers with the row's number and its seed."""

    def _one(self, request: Request) -> Answer | DataError:
        ended = super()._one(request)
        assert isinstance(ended, Answer)
        return replace(ended, text=f"{request.question.split()[-1]} {request.seed}")


def load(settings: object) -> Tiny:
    return Tiny()


def picture(number: int) -> bytes:
    """The smallest that is taken: 16 pixels a side."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (30 * number, 90, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def row_id(row: int) -> str:
    return f"row-{row:07d}"


def expected(row: int, shown: list[str]) -> tuple[str, ...]:
    """Question, reference, answer and picture of a row; `shown`: digests of the pictures."""
    return (
        f"tiny {row}", f"known {row}", f"{row} {row_seed(0, row_id(row))}", shown[row % PICTURES],
    )  # fmt: skip


def write_archive(folder: Path, rows: int) -> None:
    """Shards with the pictures inside them; each shard whole or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    held = pa.array([picture(number) for number in range(PICTURES)], pa.binary())
    for start in range(0, rows, SHARD_ROWS):
        path = folder / f"shard-{start // SHARD_ROWS:04d}.parquet"
        if path.exists():
            continue
        numbers = range(start, min(start + SHARD_ROWS, rows))
        data = held.take(pa.array([number % PICTURES for number in numbers]))
        names = pa.nulls(len(numbers), pa.string())
        columns = {
            "id": [row_id(number) for number in numbers],
            "image": pa.StructArray.from_arrays([data, names], ["bytes", "path"]),
            "question": [f"tiny {number}" for number in numbers],
            "answer": [f"known {number}" for number in numbers],
        }
        pq.write_table(pa.table(columns), path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)


class Ledger:
    """What the job's ledger says so far, read on from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._number = path, 0, 0
        self.rows = 0
        self.merges = 0
        self._keys: set[str] = set()
        self.twice = 0

    def look(self) -> None:
        """Take new whole lines in; a torn last line is none."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._number += 1
                self._take(parse(line, self._number))
                self._offset += len(line)

    def _take(self, record: dict[str, Any]) -> None:
        self.merges += record["op"] == "merge"
        if record["op"] == "commit":
            self.rows += record["rows"]
            self.twice += record["source_key"] in self._keys
            self._keys.add(record["source_key"])


@dataclass
class Runs:
    """One archive, one run folder, and what happened to them."""

    folder: Path
    rows: int
    seed: int
    problems: list[str] = field(default_factory=list)
    """Of this session; those before are in kills.jsonl."""
    planning_s: float = 5.0
    """From a run's start to its folder, as it was the last time; the two aim the kills."""
    first_commit_s: float = 15.0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder / "run" / "ledger.jsonl")
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        self.ray = Path(tempfile.gettempdir()) / f"mr-{digest}"  # short: sockets lie below it
        self.kills = self.folder / "kills.jsonl"
        self.address = ""

    def environment(self, number: int) -> dict[str, str]:
        """Of a run, or of the standing Ray, whose workers get theirs from it."""
        ray = self.ray / str(number)
        ray.mkdir(parents=True, exist_ok=True)
        attempts = str(self.folder / "attempts")
        mark = {stub.ATTEMPTS: attempts, MARK: f"{self.folder}#{number}#"}
        return processes.environment(ray) | mark | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

    def stand(self) -> None:
        """Start the Ray that runs connect to, unless it runs."""
        alive = self.alive(STANDING + 1, STANDING)
        if self.address and any("gcs_server" in processes.command(pid) for pid in alive):
            return
        for tries in range(FAILED_STARTS):
            self.tidy(STANDING + 1)
            self.address = f"127.0.0.1:{free_port()}"
            port = self.address.partition(":")[2]
            ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port", port]
            ended = subprocess.run(
                [*ray, "--num-cpus", str(ACTORS), "--include-dashboard", "false"],
                capture_output=True, env=self.environment(STANDING), start_new_session=True,
            )  # fmt: skip
            if not ended.returncode:
                return
            time.sleep(10 * tries)
        raise SystemExit("Ray does not start")

    def start(self, number: int, own_ray: bool) -> subprocess.Popen[bytes]:
        more = {
            "archive": {"archive": str(self.folder / "archive"), "chunk_rows": CHUNK_ROWS},
            "pool": {"max_actors": ACTORS},
        }
        with (
            open(self.folder / "last.out", "wb") as out,
            open(self.folder / "stderr", "ab") as errors,
        ):
            return subprocess.Popen(
                [sys.executable, "-m", "tests.integration.run_job", str(self.folder),
                 "tests.chaos.many_rows:load"],
                cwd=ROOT, stdout=out, stderr=errors, start_new_session=True,
                preexec_fn=_die_with_harness,  # noqa: PLW1509  no other thread is here
                env=self.environment(number)
                | {"MEDV_TEST_SETTINGS": json.dumps(more)}
                | ({} if own_ray else {"RAY_ADDRESS": self.address}),
            )  # fmt: skip

    def actors(self, number: int, own_ray: bool) -> list[int]:
        """Scoring actors of a run; of the standing Ray, also those that a dead run still has."""
        number = number if own_ray else STANDING
        alive = self.alive(number + 1, number)
        return [pid for pid in alive if "ScoreChunk" in processes.command(pid)]

    def alive(self, before: int, first: int = 0) -> list[int]:
        """Processes of runs with a lower number, by the mark in their environment."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environ = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            _, there, rest = environ.partition(f"{MARK}={self.folder}#".encode())
            if there and state != "Z" and first <= int(rest.partition(b"#")[0]) < before:
                found.append(int(entry.name))
        return found

    def tidy(self, before: int) -> int:
        """End what is left of the runs before this one, and remove Ray's files of theirs; how many
        processes that were."""
        alive = self.alive(before)
        for pid in alive:
            _kill(pid)
        for old in self.ray.iterdir() if self.ray.exists() else ():
            if int(old.name) < before:
                shutil.rmtree(old, ignore_errors=True)
        return len(alive)

    def attempts(self) -> int:
        """How many rows were tried so far, again and again included."""
        files = (self.folder / "attempts").iterdir()
        return sum(file.read_bytes().count(b"\n") for file in files)

    def opened(self) -> int:
        """How often the run folder was opened."""
        events = self.folder / "run" / "events.jsonl"
        return events.read_bytes().count(b'"event": "open"') if events.exists() else 0

    def wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
        """False when the job ended first."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                process.kill()
                raise SystemExit("no progress: the job hangs")
            time.sleep(0.02)
        return True

    def more_rows_than(self, rows: float) -> bool:
        self.ledger.look()
        return self.ledger.rows > rows

    def check(self, ok: bool, said: str) -> None:
        if not ok:
            self.problems.append(said)

    def noted(self) -> list[dict[str, Any]]:
        """The kills so far; a line that the harness's own death cut short is none."""
        lines = self.kills.read_bytes().split(b"\n")[:-1] if self.kills.exists() else []
        return [json.loads(line) for line in lines]


def kill_once(runs: Runs, number: int, kills: int) -> dict[str, Any] | None:
    """Start the job and kill it. None when it ended by itself, because Ray did not start, say."""
    rng = random.Random(f"{runs.seed} {number}")
    runs.ledger.look()
    before, tried, opened = runs.ledger.rows, runs.attempts(), runs.opened()
    spare = max(0.0, runs.rows * (1 - RESERVE) - before)
    aim = min(spare, rng.uniform(0, 2) * spare / ((kills - number) * (1 - STARTING)))
    kind, own_ray, first, hit = rng.random(), rng.random() < OWN_RAY, None, 0
    began = time.monotonic()
    process = runs.start(number, own_ray)

    def is_open() -> bool:
        return runs.opened() > opened

    if kind < EARLY:
        time.sleep(rng.uniform(0, runs.planning_s))
        alive = process.poll() is None
    else:
        alive = runs.wait(process, is_open)
        runs.planning_s = time.monotonic() - began
        if kind < STARTING:
            time.sleep(rng.uniform(0, max(1.0, runs.first_commit_s - runs.planning_s)))
            alive = process.poll() is None
        else:
            alive = alive and runs.wait(process, lambda: runs.more_rows_than(before))
            if alive:
                runs.first_commit_s = time.monotonic() - began
                first = first_commit(process.pid, runs.first_commit_s)
            if kind < WITH_ACTOR and alive:
                time.sleep(rng.uniform(0, 0.3))
                actors = runs.actors(number, own_ray)
                for pid in rng.sample(actors, min(1, len(actors))):
                    _kill(pid)
                    hit += 1
            alive = alive and runs.wait(process, lambda: runs.more_rows_than(before + aim))
            time.sleep(rng.uniform(0, 0.3))
    actors = runs.actors(number, own_ray)
    peak = {"driver": _peak_mib(process.pid), "actor": max(map(_peak_mib, actors), default=0)}
    alive = alive and process.poll() is None
    process.kill()
    process.wait()
    time.sleep(0.5)  # its actors may write a last line
    runs.ledger.look()
    if not alive:
        return None
    new = runs.ledger.rows - before
    opens = runs.opened() > opened
    phase = "scoring" if new else "starting" if opens else "planning"
    redone = runs.attempts() - tried - new
    runs.check(runs.ledger.rows >= before, f"kill {number}: committed rows are gone")
    runs.check(first is None or new > 0, f"run {number} made no progress")
    runs.check(redone <= (WINDOW + hit) * CHUNK_ROWS, f"kill {number} cost {redone} rows")
    return {
        "kill": number, "own_ray": own_ray, "phase": phase, "first_commit": first,
        "new_rows": new, "redone_rows": redone, "actors_killed": hit, "peak_mib": peak,
    }  # fmt: skip


def first_commit(driver: int, seconds: float) -> dict[str, float]:
    """How long a start took, what of it the driver computed, and how busy the machine was."""
    fields = Path(f"/proc/{driver}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return {
        "seconds": round(seconds, 1),
        "driver_cpu_s": round(ticks / os.sysconf("SC_CLK_TCK"), 1),
        "load": round(os.getloadavg()[0], 1),
    }


def kill_drivers(runs: Runs, kills: int) -> None:
    """All kills that are not noted yet."""
    noted = runs.noted()
    few = max(1, kills // 20)
    failed, began = 0, time.monotonic()
    while len(noted) < kills:
        number, problems = len(noted), len(runs.problems)
        one = kill_once(runs, number, kills)
        if one is None:
            failed += 1
            said = _last_line(runs.folder / "stderr")
            sys.stderr.write(f"run {number} ended before its kill: {said}\n")
            if NO_RAY not in said or failed == FAILED_STARTS:
                runs.problems.append(f"run {number} ended before its kill")
                return
            time.sleep(5 * failed)
            runs.stand()
            continue
        ended = runs.tidy(number)  # this run may die beside the next one
        one |= {"starts_that_failed": failed, "processes_ended": ended}
        one |= {"problems": runs.problems[problems:], "seconds": round(time.monotonic() - began, 1)}
        failed, began = 0, time.monotonic()
        noted.append(one)
        with open(runs.kills, "a") as file:
            file.write(json.dumps(one) + "\n")
        if len(noted) % few == 0:
            state = f"{len(noted)} kills, {runs.ledger.rows} of {runs.rows} rows"
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {state}; {json.dumps(one)}\n")


def last_run(runs: Runs, number: int, tries: int = FAILED_STARTS) -> dict[str, Any]:
    """The run that nobody kills; its rate is that between its first and its last commit."""
    runs.ledger.look()
    before, began = runs.ledger.rows, time.monotonic()
    process = runs.start(number, own_ray=True)
    first, last_s, first_rows, peak, actor = None, 0.0, before, 0, 0
    while process.poll() is None:
        runs.ledger.look()
        now = time.monotonic() - began
        if runs.ledger.rows > before and first is None:
            first, first_rows = first_commit(process.pid, now), runs.ledger.rows
        if runs.ledger.rows < runs.rows:
            last_s = now
        peak = max(peak, _peak_mib(process.pid))
        actor = max([actor, *map(_peak_mib, runs.actors(number, own_ray=True))])
        if now > PATIENCE_S + runs.rows / 50:
            process.kill()
            raise SystemExit("the last run hangs")
        time.sleep(0.5)
    seconds = time.monotonic() - began
    if process.returncode and NO_RAY in _last_line(runs.folder / "stderr") and tries > 1:
        return last_run(runs, number, tries - 1)
    said = json.loads(_last_line(runs.folder / "last.out") or "{}")
    runs.check(process.returncode == 0, f"the last run ended with {process.returncode}")
    runs.check(said.get("answered") == runs.rows, f"the last run answered {said.get('answered')}")
    busy = last_s - first["seconds"] if first else 0.0
    rate = (runs.ledger.rows - first_rows) / busy if busy > 1 else None
    return {
        "rows": runs.rows - before, "seconds": round(seconds, 1), "first_commit": first,
        "rows_per_s": rate and round(rate), "peak_mib": {"driver": peak, "actor": actor},
    }  # fmt: skip


def check_rows(runs: Runs) -> dict[str, Any]:
    """Every row once, answered, with what belongs to its number; a batch at a time, by pyarrow."""
    run = runs.folder / "run"
    shards = [file[0] for file in json.loads((run / "run.json").read_text())["files"]]
    starts = [int(name.partition("-")[2][:4]) * SHARD_ROWS for name in shards]
    shown = [hashlib.sha256(picture(number)).hexdigest() for number in range(PICTURES)]
    names = ["question", "reference", "answer", "image_sha256"]
    seen, states = bytearray(runs.rows), Counter[str]()
    twice = wrong = foreign = 0
    for path in sorted((run / "rows").iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(
            8192, columns=["id", "file", "row", "status", *names], use_threads=False
        ):
            ids, files, numbers, status, *cells = (column.to_pylist() for column in batch.columns)
            states.update(status)
            for index, found in enumerate(zip(*cells, strict=True)):
                row = starts[files[index]] + numbers[index]
                if row >= runs.rows or ids[index] != row_id(row):
                    foreign += 1
                    continue
                twice += seen[row]
                seen[row] = 1
                wrong += found != expected(row, shown)
    missing = runs.rows - sum(seen)
    runs.check(not missing and not twice, f"{missing} rows missing, {twice} twice")
    runs.check(not wrong and not foreign, f"{wrong} rows hold another row's, {foreign} are no rows")
    runs.check(states == {"answered": runs.rows}, f"states: {dict(states)}")
    runs.check(not runs.ledger.twice, f"{runs.ledger.twice} chunks were committed twice")
    return {"missing": missing, "duplicate": twice, "wrong": wrong + foreign}


def summary(runs: Runs, ended: dict[str, Any]) -> dict[str, Any]:
    """Figures over all kills, those of an earlier session included."""
    noted = runs.noted()
    scoring = [one for one in noted if one["phase"] == "scoring"]
    redone = [one["redone_rows"] for one in noted]
    starts = [one["first_commit"] for one in [*noted, ended] if one["first_commit"]]
    peaks = [*(one["peak_mib"] for one in noted), ended["peak_mib"]]
    tried = np.concatenate(
        [np.fromstring(f.read_text(), int, sep="\n") for f in (runs.folder / "attempts").iterdir()]
    )
    times = np.bincount(tried, minlength=runs.rows)
    costs = [one["driver_cpu_s"] for one in starts]
    most = {name: max(peak[name] for peak in peaks) for name in ("driver", "actor")}
    # not the seconds: they are the machine's, which others may use, too
    runs.check(max(costs) < START_CPU_S, f"a driver took {max(costs):.0f} s of CPU to its start")
    runs.check(most["driver"] < START_MIB, f"a driver took {most['driver']} MiB")
    return {
        "kills": dict(Counter(one["phase"] for one in noted)) | {"all": len(noted)},
        "runs_with_own_ray": sum(one["own_ray"] for one in noted),
        "actor_kills": sum(one["actors_killed"] for one in noted),
        "rows_redone": {
            "all": len(tried) - runs.rows, "per_kill_mean": round(sum(redone) / len(noted)),
            "per_kill_median": round(median(redone)), "per_kill_max": max(redone),
            "most_tries_of_a_row": int(times.max()),
        },
        "new_rows_per_scoring_run": {
            "min": min((one["new_rows"] for one in scoring), default=0),
            "max": max((one["new_rows"] for one in scoring), default=0),
        },
        "start_to_first_commit_s": {
            **_middle_and_most([one["seconds"] for one in starts]),
            "first_five": [one["seconds"] for one in starts[:5]],
            "last_five": [one["seconds"] for one in starts[-5:]],
        },
        "driver_cpu_s_to_first_commit": {
            **_middle_and_most(costs), "first_five": costs[:5], "last_five": costs[-5:],
        },
        "load_then": _middle_and_most([one["load"] for one in starts]),
        "peak_mib": most,
        **{
            name: sum(one[name] for one in noted)
            for name in ("starts_that_failed", "processes_ended")
        },
        "seconds": round(sum(one["seconds"] for one in noted) + ended["seconds"]),
    }  # fmt: skip


def _middle_and_most(numbers: list[float]) -> dict[str, float]:
    return {"median": round(median(numbers), 1), "max": max(numbers)}


def leftovers(runs: Runs, number: int) -> int:
    """Processes of all runs that do not go away by themselves; scoring actors on the standing Ray
    among them, which is ended then."""
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        alive = runs.alive(number) + runs.actors(number, own_ray=False)
        if not alive:
            break
        time.sleep(0.5)
    runs.check(not alive, f"{len(alive)} processes of dead runs live on")
    runs.tidy(STANDING + 1)
    return len(alive)


def _die_with_harness() -> None:
    """So that a harness that is killed leaves no job that goes on without it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _peak_mib(pid: int) -> int:
    """Highest resident size so far; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep everything here; one that is there goes on")
    parser.add_argument("--short", action="store_true", help="4 kills over 40,000 rows")
    args = parser.parse_args()
    rows, kills = (40_000, 4) if args.short else (args.rows, args.kills)
    folder = Path(args.folder or tempfile.mkdtemp(prefix="medv-many-")).absolute()
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    shape, asked = {"rows": rows, "kills": kills, "seed": args.seed}, folder / "asked.json"
    if asked.exists() and json.loads(asked.read_text()) != shape:
        raise SystemExit(f"--folder holds a run of other numbers: {asked.read_text()}")
    asked.write_text(json.dumps(shape))
    with open(folder / "sessions", "a") as file:
        file.write(".")
    runs = Runs(folder, rows, args.seed)
    runs.tidy(STANDING + 1)  # of a session that was killed
    write_archive(folder / "archive", rows)
    if len(runs.noted()) < kills:
        runs.stand()
    kill_drivers(runs, kills)
    ended = last_run(runs, kills)
    figures = {"chaos": "many_rows", **shape, "chunk_rows": CHUNK_ROWS, **check_rows(runs)}
    figures |= {**summary(runs, ended), "last_run": ended, "merges": runs.ledger.merges}
    figures |= {
        "processes_left": leftovers(runs, kills + 1),
        "harness_sessions": len((folder / "sessions").read_text()),
    }  # fmt: skip
    problems = [said for one in runs.noted() for said in one["problems"]]
    problems += [said for said in runs.problems if said not in problems]
    shutil.rmtree(runs.ray, ignore_errors=True)
    if not args.folder and not problems:
        shutil.rmtree(folder)
    print(json.dumps({**figures, "problems": problems}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
