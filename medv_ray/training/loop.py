"""The loop of a stage: which rows, forward and backward, update, look, save. It knows no engine.

A step is a function of weights, moments, seed and step number alone, so that a run that was cut and
resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from medv_ray.errors import RunError, SettingsError
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.engine import Engine
from medv_ray.training.meters import LossByNoise, peak_memory_bytes
from medv_ray.training.objective import Outcome, Sample
from medv_ray.training.optim import schedule
from medv_ray.training.order import micro_batches, noise_seed, positions
from medv_ray.training.stages import StageSettings

SHOWN_ROWS = 8
LOOK_S = 5.0
"""Between two looks for a node that is about to be taken away; each waits for all workers."""


class Report(NamedTuple):
    """What a step did, over all workers."""

    step: int
    """Updates done, this one included."""
    loss: float
    loss_by_noise: tuple[float | None, ...]
    """See LossByNoise."""
    grad_norm: float
    lr_factor: float
    num_tokens: int
    """Positions that the language towers worked on, image tokens included."""
    num_masked: int
    num_tiles: int
    """Tiles that went through a vision tower that learns."""
    memory_bytes: int
    """Peak, of the worker that has the highest."""
    seconds: float


class Verdict(NamedTuple):
    """What a validation means for the stage."""

    best: bool
    """Its checkpoint is to be kept."""
    ended: bool


@dataclass(frozen=True)
class Saving:
    """When and where the state is saved."""

    checkpoints: Checkpoints
    every: int
    about: Mapping[str, Any]
    """Of the run; stands in each manifest, as it is when that is saved."""


def check_batch(stage: StageSettings, num_workers: int) -> None:
    """Raises SettingsError E1601 where the batch does not divide among the workers."""
    share = stage.micro_batch_size * num_workers
    if stage.batch_size % share:
        fitting = [n for n in range(1, stage.batch_size + 1) if stage.batch_size % n == 0]
        raise SettingsError(
            "E1601",
            f"batch_size={stage.batch_size} is no multiple of micro_batch_size="
            f"{stage.micro_batch_size} x {num_workers} workers. Workers x micro_batch_size may be "
            f"{', '.join(map(str, fitting[:12]))}.",
        )


def fit(
    engine: Engine,
    sample: Callable[[int], Sample],
    stage: StageSettings,
    num_steps: int,
    saving: Saving,
    start: int = 0,
    stop: Callable[[], bool] = lambda: False,
    row_of: Callable[[int], int] | None = None,
    leaving: Callable[[], bool] | None = None,
    validate: Callable[[int], Verdict | None] | None = None,
) -> Iterator[Report]:
    """Train from update `start` to `num_steps`; every step's report.

    Args:
        sample: the row at a position of the run, with the seed of its noise.
        stop: whether this worker was asked to end. When any was, all save after their step and end
            early.
        row_of: the dataset's row at a position, for messages; None names positions.
        leaving: whether a worker's node is about to be taken away. All workers ask together and get
            the same; then they save once and go on until it is.
        validate: called after each update, when its report is out and before it is saved; None
            where it does not look at this one. It changes nothing of the engine.

    The state is saved every `saving.every` updates, at a validation's best value and at the end.
    Raises RunError E1602 on all workers within the step that is not finite; what was saved before
    is whole.
    """
    check_batch(stage, engine.num_workers)
    looked, warned = time.monotonic(), False
    for step in range(start, num_steps):
        began = time.perf_counter()
        span = positions(step, stage.batch_size, engine.rank, engine.num_workers)
        # of LoRA's dropout, if there is any: the only thing that depends on how rows are shared
        torch.manual_seed(noise_seed(stage.seed, -1 - span.start))
        tally = Tally(stage.batch_size, span)
        for piece in micro_batches(span, stage.micro_batch_size):
            rows = [sample(position) for position in piece]
            tally.add(rows, engine.micro_step(rows, len(piece) / len(span)))
        due = leaving is not None and time.monotonic() - looked >= LOOK_S
        total = tally.over_all(engine, stop(), due)
        factor = schedule(step, num_steps, stage)
        norm = engine.step(factor) if math.isfinite(total.loss) else math.nan
        if not math.isfinite(norm):
            raise not_finite(step, stage, total.losses, row_of)
        done, asked = step + 1, total.asked
        # reported before it is saved: a run that goes on cuts reports of later steps, and has no
        # way to make those of earlier ones
        yield Report(
            done, total.loss, total.by_noise, norm, factor, *total.counts, total.memory_bytes,
            time.perf_counter() - began,
        )  # fmt: skip
        # before it is saved: a run that goes on from here has this validation behind it
        verdict = (validate and validate(done)) or Verdict(False, False)
        save = asked or any(verdict) or done == num_steps or done % saving.every == 0
        if leaving is not None and total.due:
            before, warned, looked = warned, leaving(), time.monotonic()
            save |= warned and not before
        if save:
            saving.checkpoints.save(engine, done, saving.about)
        if asked or verdict.ended:
            return


class Total(NamedTuple):
    """Sums of a step over all workers."""

    losses: list[float]
    """Of each row, in the batch's order."""
    by_noise: tuple[float | None, ...]
    counts: tuple[int, int, int]
    """Tokens, masked tokens, tiles."""
    memory_bytes: int
    asked: bool
    """Whether any worker is to stop."""
    due: bool = False
    """Whether any worker wants to look for a node that is about to be taken away."""

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class Tally:
    """Counts what a worker's micro-batches say; nothing waits for the GPU before `over_all`."""

    def __init__(self, batch_size: int, span: range) -> None:
        """`span`: the worker's positions in the run."""
        self._batch_size, self._first = batch_size, span.start % batch_size
        self._outcomes: list[Outcome] = []
        self._num_tiles = 0

    def add(self, rows: Sequence[Sample], outcome: Outcome) -> None:
        """Count the next micro-batch, in the order of the positions."""
        self._outcomes.append(outcome)
        tiles = [picture.tiles for row in rows for picture in row.pictures]
        self._num_tiles += sum(len(one) for one in tiles if one is not None)

    def over_all(self, engine: Engine, stop: bool, due: bool = False) -> Total:
        """All workers call it together; one exchange."""
        mine = torch.cat([outcome.by_row for outcome in self._outcomes])
        noise = LossByNoise(device=mine.device)
        noise.add(torch.cat([outcome.t for outcome in self._outcomes]), mine)
        losses = torch.zeros(self._batch_size, dtype=torch.float64)
        losses[self._first : self._first + len(mine)] = mine.double().cpu()
        tokens = sum(outcome.num_tokens for outcome in self._outcomes)
        masked = sum(outcome.num_masked for outcome in self._outcomes)
        counts = torch.tensor([tokens, masked, self._num_tiles, stop, due], dtype=torch.float64)
        # an engine adds up only: the maximum is looked for among all workers' own
        memory = torch.zeros(engine.num_workers, dtype=torch.float64)
        memory[engine.rank] = peak_memory_bytes(mine.device)
        parts = (losses, noise.flat.cpu(), counts, memory)
        summed = torch.split(engine.sum(torch.cat(parts)), [len(part) for part in parts])
        noise.flat = summed[1]
        *numbers, asked, wanted = (int(count) for count in summed[2])
        return Total(
            summed[0].tolist(), noise.means(), (numbers[0], numbers[1], numbers[2]),
            int(summed[3].max()), bool(asked), bool(wanted),
        )  # fmt: skip


def not_finite(
    step: int, stage: StageSettings, losses: Sequence[float], row_of: Callable[[int], int] | None
) -> RunError:
    """E1602 with the rows whose loss is not finite; with all of the step for a gradient."""
    slots = [slot for slot, loss in enumerate(losses) if not math.isfinite(loss)]
    what = "loss" if slots else "gradient"
    at = [step * stage.batch_size + slot for slot in slots or range(stage.batch_size)]
    kind = "positions of the run" if row_of is None else "rows of the dataset"
    numbers = [str(one if row_of is None else row_of(one)) for one in at[:SHOWN_ROWS]]
    more = ", ..." if len(at) > SHOWN_ROWS else ""
    text = f"the {what} of step {step + 1} is not finite; {kind}: {', '.join(numbers)}{more}"
    return RunError("E1602", f"{text}. Nothing of the step was saved.")
