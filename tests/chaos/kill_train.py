"""Kill one training run again and again; its weights must be those of a run that nobody killed.

    python -m tests.chaos.kill_train [--short]

Ray Train, two workers, ZeRO-3, AdamW, the toy of the tests. SIGKILL of a worker, after which Ray
Train goes on, and of the driver, after which the same command does; at a random moment, or while a
checkpoint is being written (its `.tmp` folder is there). Each kill waits for a checkpoint that is
newer than the last one's. One JSON line with the figures; exit code 1 if a byte differs.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, field
from pathlib import Path

from medv_ray.training.job import TrainSettings, WorkerSettings
from tests.integration import processes
from tests.unit.training import tiny

KINDS = (
    ("driver", False),
    ("worker", True),
    ("driver", True),
    ("worker", False),
    ("worker", True),
)
"""What is killed, and whether during a save."""
SAVE_EVERY = 5
WINDOW_S = 1.0
PATIENCE_S = 240.0
GONE_S = 120.0
POLL_S = 0.001
"""A save takes some milliseconds."""


@dataclass
class Run:
    """A stage in a folder, and what happened to it."""

    folder: Path
    rng: random.Random
    ray_folder: Path
    process: subprocess.Popen[str] | None = None
    seen: set[int] = field(default_factory=set)
    """Every process that a driver had when it was killed."""
    killed: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    """Saves that a kill left half-written."""
    problems: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.chaos.train_job", str(self.folder)]
        self.process = subprocess.Popen(
            command, cwd=processes.ROOT, env=processes.environment(self.ray_folder),
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        return self.process

    @property
    def checkpoints(self) -> Path:
        return self.folder / "out" / "checkpoints"

    def saved(self) -> int:
        """The last step that was published."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return max((int(n[5:]) for n in names if not n.endswith(".tmp")), default=0)

    def saving(self) -> list[str]:
        """Saves that go on, or were cut."""
        return [n for n in os.listdir(self.checkpoints) if n.endswith(".tmp")]

    def saves_anew(self) -> bool:
        """Whether a step that is not saved yet is being saved."""
        return any(int(name[5:-4]) > self.saved() for name in self.saving())

    def workers(self) -> list[int]:
        """Training workers of the driver that runs."""
        below = processes.descendants(self.process.pid) if self.process else []
        return [pid for pid in below if "RayTrainWorker" in processes.command(pid)]

    def wait(self, ready: Callable[[], bool], poll_s: float = 0.05) -> bool:
        """False when the job ended before it was ready."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if ready():
                return True
            if self.process is None or self.process.poll() is not None:
                return False
            time.sleep(poll_s)
        raise SystemExit("no progress: the job hangs")

    def kill(self, what: str, during_save: bool) -> bool:
        """One kill; False when the job ended before it."""
        process = self.process or self.start()
        # those of a killed driver live on for a second, and save
        if not self.wait(lambda: bool(self.workers())):
            return False
        before = self.saved()
        if not self.wait(lambda: self.saved() > before):
            return False
        alive, workers = set(processes.descendants(process.pid)), self.workers()
        if during_save:
            self.wait(self.saves_anew, POLL_S)
        else:
            time.sleep(self.rng.uniform(0, WINDOW_S))
        if process.poll() is not None:
            return False
        self.seen |= alive
        victim = process.pid if what == "driver" else self.rng.choice(sorted(workers))
        os.kill(victim, signal.SIGKILL)
        time.sleep(0.1)  # what is dying may still publish
        self.torn += bool(self.saving())
        self.killed[f"{what}{' during a save' if during_save else ''}"] += 1
        if what == "driver":
            process.wait()
            self.process = None
        return True

    def end(self) -> None:
        """Let the job end."""
        process = self.process or self.start()
        said = process.communicate(timeout=PATIENCE_S)[0]
        if process.returncode:
            self.problems.append(f"the last run ended with {process.returncode}: {said.strip()}")

    def tensors(self) -> dict[str, bytes]:
        """Files of the last checkpoint and of the exported folder."""
        out = self.folder / "out"
        files = sorted((self.checkpoints / f"step-{self.saved():08d}").glob("*.safetensors"))
        files += sorted((out / "model").glob("*.safetensors"))
        return {str(file.relative_to(out)): file.read_bytes() for file in files}

    def losses(self) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate of each line that was kept."""
        file = self.folder / "out" / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(e["step"], e["loss"], e["lr"]) for e in map(json.loads, lines)]


def prepare(folder: Path, num_steps: int) -> None:
    """Model, data and settings of a run."""
    stage = {"optimizer": "adamw", "lr": 2e-3, "max_steps": num_steps, "epochs": num_steps}
    made = tiny.settings(folder, **stage)
    settings: TrainSettings = made.model_copy(
        update={
            "shard": made.shard.model_copy(update={"engine": "zero3"}),
            "workers": WorkerSettings(num_workers=2, max_failures=1000),
            "save_every": SAVE_EVERY,
        }
    )
    (folder / "settings.json").write_text(settings.model_dump_json())


def leftovers(run: Run) -> int:
    """Processes of killed drivers that do not go away."""
    deadline = time.monotonic() + GONE_S
    alive = run.seen
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if "ray" in processes.command(pid)}
        time.sleep(0.5)
    if alive:
        run.problems.append(f"{len(alive)} processes of dead jobs live on")
    return len(alive)


def compare(run: Run, whole: Run, num_steps: int) -> dict[str, object]:
    found, want = run.tensors(), whole.tensors()
    same = [name for name in want if found.get(name) == want[name]]
    equal = found.keys() == want.keys() and len(same) == len(want)
    steps = [step for step, _, _ in run.losses()]
    if not equal:
        run.problems.append(f"{len(want) - len(same)} of {len(want)} files differ")
    if steps != list(range(1, num_steps + 1)):
        run.problems.append("events.jsonl does not have each step once")
    if run.losses() != whole.losses():
        run.problems.append("losses or learning rates differ")
    return {"files": len(want), "files_equal_bit_for_bit": len(same), "steps": len(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--short", action="store_true", help="3 kills over 100 steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kills, num_steps = (3, 100) if args.short else (20, 800)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="medv-kill-") as name,
        tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as ray,
    ):
        rng = random.Random(args.seed)
        whole = Run(Path(name) / "whole", rng, Path(ray))
        whole.folder.mkdir()
        prepare(whole.folder, num_steps)
        run = Run(Path(name) / "killed", rng, Path(ray))
        shutil.copytree(whole.folder, run.folder)
        prepare(run.folder, num_steps)
        whole.end()
        uninterrupted_s = time.monotonic() - started
        for number in range(kills):
            if not run.kill(*KINDS[number % len(KINDS)]):
                run.problems.append(f"the run ended before kill {number + 1}: too few steps")
                break
        at = run.saved()
        run.end()
        figures: dict[str, object] = {
            "chaos": "kill_train", "seed": args.seed, "kills": run.killed.total(),
            "killed": dict(run.killed), "saves_left_half_written": run.torn,
            "last_kill_after_step": at, "uninterrupted_s": round(uninterrupted_s),
        }  # fmt: skip
        figures |= compare(run, whole, num_steps)
        figures["processes_left"] = leftovers(run)
    problems = whole.problems + run.problems
    figures |= {"seconds": round(time.monotonic() - started), "problems": problems}
    print(json.dumps(figures))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
