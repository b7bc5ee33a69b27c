"""Settings side by side over the same rows, in one process; the same call goes on. No Ray here.

OUT/trials.json     what must be equal to go on
OUT/trials.jsonl    a line a trial, on disk before the next row is asked
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.archive.strict import is_right
from medv_ray.disk import disk_errors, output_folder
from medv_ray.engine import Answer, Request
from medv_ray.errors import DataError, RunError
from medv_ray.evaluation.grids import Arm
from medv_ray.evaluation.trials import Trial
from medv_ray.files import write_atomic
from medv_ray.on_ray.options import ScoreSettings, model_digests
from medv_ray.on_ray.predictor import Failed, ReloadingPredictor, load_predictor, processor
from medv_ray.on_ray.sampled_rows import AskedRow, Rows, sample
from medv_ray.settings import identity_digest

IDENTITY, JOURNAL = "trials.json", "trials.jsonl"
GPU_ROWS = 8

Tell = Callable[[int], None]
"""Called with the number of rows that are through."""


class Asker(NamedTuple):
    """Who answers, and how many rows at once."""

    predictor: ReloadingPredictor
    together: int


Answers = Callable[[ScoreSettings], Asker]


def asker(settings: ScoreSettings) -> Asker:
    """The model of a job, in this process."""
    device = settings.device
    together = settings.engine.slots or (1 if device == "cpu" else GPU_ROWS)
    return Asker(ReloadingPredictor(lambda: load_predictor(settings)), together)


class TrialRun:
    """Trials in a folder, by arm and by row of the sample."""

    def __init__(
        self, out: Path, settings: ScoreSettings, rows: Rows, seed: int, answers: Answers
    ) -> None:
        """`answers` is called once the folder is known to be right: to load a model takes minutes.

        Raises RunError E1501 where another process tries, E1502 for a folder of other trials, E1506
        for a damaged one, E1507 for one of something else, E1511, and what `answers` raises.
        """
        self._rows, self._path = rows, out / JOURNAL
        self._order = sample(len(rows), seed)
        self._numbers: list[int] = []
        self._warm: set[str] = set()
        self.done: dict[str, dict[int, Trial]] = {}
        identity = identity_of(settings, rows, seed)
        own_folder(out, IDENTITY, JOURNAL)
        with ExitStack() as on_error:
            with disk_errors("the output folder"):
                self._file = on_error.enter_context(self._path.open("ab"))
                self._lock()
                self._check(out / IDENTITY, identity)
                for trial in read_trials(self._path):
                    self.done.setdefault(trial.arm, {})[trial.row] = trial
            self._asker = answers(settings)
            on_error.pop_all()
        self._visit = 1 + max(
            (t.visit for of in self.done.values() for t in of.values()), default=-1
        )

    def of(self, arm: Arm) -> dict[int, Trial]:
        """What is known of an arm."""
        return self.done.setdefault(arm.name, {})

    def missing(self, arms: Sequence[Arm], rows: range) -> list[int]:
        """Rows of the sample that one of the arms has not tried."""
        return [row for row in rows if any(row not in self.of(arm) for arm in arms)]

    def run(self, arms: Sequence[Arm], rows: Sequence[int], tell: Tell | None = None) -> None:
        """Try what is missing. At each row the arms follow one another, in an order that turns from
        row to row, so that what else the machine does falls on all of them. An arm that is new to
        this process has one try that is not counted: the first pays for compilation."""
        for start in range(0, len(rows), self._asker.together):
            part = rows[start : start + self._asker.together]
            asked = {row: self._rows.read(self._number(row)) for row in part}
            turn = self._visit % len(arms)
            made = []
            for arm in (*arms[turn:], *arms[:turn]):
                todo = {row: asked[row] for row in part if row not in self.of(arm)}
                self._warm_up(arm, todo)
                made += self._try(arm, todo)
            self._keep(made)
            self._visit += 1
            if tell is not None:
                tell(len(part))

    def close(self) -> None:
        """Let the folder go, and end the image decoder's processes."""
        self._file.close()
        self._asker.predictor.close()

    def _number(self, row: int) -> int:
        self._numbers += islice(self._order, max(0, row + 1 - len(self._numbers)))
        return self._numbers[row]

    def _warm_up(self, arm: Arm, asked: dict[int, AskedRow]) -> None:
        requests = requests_of(arm, asked)
        if not requests or arm.name in self._warm:
            return
        ended = self._asked_together(requests)
        if ended is None or any(isinstance(one, Answer) for one in ended):
            self._warm.add(arm.name)

    def _try(self, arm: Arm, asked: dict[int, AskedRow]) -> list[Trial]:
        """One arm, on rows that run together."""
        requests = requests_of(arm, asked)
        began_s = time.perf_counter()
        ended = self._asked_together(requests)
        took_s = time.perf_counter() - began_s
        seconds = 0.0
        if ended is None:  # loading the model again is no time of the arm's
            alone = self._asker.predictor.answer_alone
            ended = [alone(request) for request in requests.values()]
        else:
            good = [one for one in ended if isinstance(one, Answer)]
            # the arm that comes first at a picture would pay for all of them
            seconds = (took_s - sum(one.vision_s for one in good)) / max(1, len(good))
        answers = dict(zip(requests, ended, strict=True))
        found = []
        for row, one in asked.items():
            end = answers.get(row, one.request)
            assert not isinstance(end, Request)
            found.append(trial_of(arm, row, one, end, max(seconds, 0.0), self._visit))
        return found

    def _asked_together(self, requests: dict[int, Request]) -> Sequence[Answer | DataError] | None:
        """None: the predictor failed, and a new one is there."""
        ended = self._asker.predictor.answer(list(requests.values()))
        if isinstance(ended, Failed):
            self._warm.clear()
            return None
        return ended

    def _keep(self, made: Sequence[Trial]) -> None:
        with disk_errors("trials.jsonl"):
            self._file.write(b"".join(json.dumps(one).encode() + b"\n" for one in made))
            self._file.flush()
            os.fsync(self._file.fileno())
        for one in made:
            self.done[one.arm][one.row] = one

    def _lock(self) -> None:
        """Before anything is read or written there; the open journal holds it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError("E1501", "another process tries settings in this folder.") from None

    def _check(self, path: Path, mine: dict[str, Any]) -> None:
        if not path.exists():
            if self._path.stat().st_size:
                raise RunError("E1506", f"{JOURNAL} has no {IDENTITY} beside it.")
            write_atomic(path, json.dumps(mine, indent=1).encode())
        try:
            theirs = json.loads(path.read_bytes())
            changed = [name for name in mine if theirs.get(name) != mine[name]]
        except (ValueError, AttributeError):
            raise RunError("E1506", f"{IDENTITY} is damaged.") from None
        if changed:
            raise RunError("E1502", f"the trials there are of another {', '.join(changed)}.")


def requests_of(arm: Arm, asked: dict[int, AskedRow]) -> dict[int, Request]:
    """What the arm asks of the engine, by row; not for bad rows."""
    return {
        row: dataclasses.replace(one.request, sampler=arm.sampler)
        for row, one in asked.items()
        if isinstance(one.request, Request)
    }


def identity_of(settings: ScoreSettings, rows: Rows, seed: int) -> dict[str, Any]:
    """Answers and times depend on it; not how many rows there are, nor which arms."""
    own = settings.identity(*model_digests(settings.model))
    mine = {**own, "input": identity_digest(rows.identity()), "sample_seed": seed}
    return {**mine, "processor": processor(settings.device)}


def own_folder(out: Path, *marks: str) -> None:
    """Make a folder, or take one that is empty or holds one of `marks`. Raises RunError E1507,
    E1511."""
    output_folder(out)
    with disk_errors("the output folder"):
        names = set(os.listdir(out))
    if names and not names & set(marks):
        raise RunError("E1507", f"{out.name} holds other files; choose an empty folder.")


def trial_of(
    arm: Arm, row: int, asked: AskedRow, ended: Answer | DataError, seconds: float, visit: int
) -> Trial:
    """What an arm did with a row."""
    if isinstance(ended, DataError):
        return Trial(arm.name, row, asked.id, None, ended.code, asked.kind, None, 0, 0.0, visit)
    right = None
    if asked.reference is not None and asked.kind is not None:
        right = is_right(ended.text, asked.reference, asked.kind)
    return Trial(
        arm.name, row, asked.id, ended.text, None, asked.kind, right, ended.forward_passes,
        round(seconds, 6), visit,
    )  # fmt: skip


def read_trials(path: Path) -> Iterator[Trial]:
    """Of a journal; the piece of a line that a crash has left at its end is cut off. Raises
    RunError E1506."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    try:
        for line in data[:whole].splitlines():
            yield Trial(*json.loads(line))
    except (ValueError, TypeError):
        raise RunError("E1506", f"{path.name} is damaged.") from None
