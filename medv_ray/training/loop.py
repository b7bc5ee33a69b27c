"""The loop of a stage: which rows, forward and backward, update, look, save. It knows no engine.

A step is a function of weights, moments, seed and step number alone, so that a run that was cut and
resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from medv_ray.errors import RunError, SettingsError
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.engine import Engine
from medv_ray.training.objective import Outcome, Sample
from medv_ray.training.optim import schedule
from medv_ray.training.order import micro_batches, noise_seed, positions
from medv_ray.training.stages import StageSettings

NOISE_BINS = 5


class Report(NamedTuple):
    """What a step did, over all workers."""

    step: int
    """Updates done, this one included."""
    loss: float
    loss_by_noise: tuple[float | None, ...]
    """Mean loss of the rows whose t lay in each fifth of 0..1; None without such a row."""
    grad_norm: float
    lr_factor: float
    num_tokens: int
    """Positions that the language towers worked on, image tokens included."""
    num_masked: int
    seconds: float


@dataclass(frozen=True)
class Saving:
    """When and where the state is saved."""

    checkpoints: Checkpoints
    every: int
    about: Mapping[str, Any]
    """Of the run; stands in each manifest."""


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
) -> Iterator[Report]:
    """Train from update `start` to `num_steps`; every step's report.

    Args:
        sample: the row at a position of the run, with the seed of its noise.
        stop: whether this worker was asked to end. When any was, all save after their step and end
            early.

    The state is saved every `saving.every` updates and at the end. Raises RunError E1602 on all
    workers within the step that is not finite; what was saved before is whole.
    """
    check_batch(stage, engine.num_workers)
    for step in range(start, num_steps):
        began = time.perf_counter()
        torch.manual_seed(noise_seed(stage.seed, -1 - step))  # of dropout, if there is any
        places = positions(step, stage.batch_size, engine.rank, engine.num_workers)
        tally = torch.zeros(2 * NOISE_BINS + 4, dtype=torch.float64)
        for piece in micro_batches(places, stage.micro_batch_size):
            outcome = engine.micro_step(
                [sample(place) for place in piece], len(piece) / len(places)
            )
            tally += counts_of(outcome)
        tally[-1] += float(stop())
        tally = engine.sum(tally)
        loss = float(tally[:NOISE_BINS].sum()) / stage.batch_size
        factor = schedule(step, num_steps, stage)
        norm = engine.step(factor) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            raise not_finite(step, stage, loss)
        done, asked = step + 1, bool(tally[-1])
        # told before it is saved: a run that goes on cuts what was told of later steps, and has
        # no way to tell of earlier ones
        yield report_of(done, loss, tally, norm, factor, time.perf_counter() - began)
        if asked or done == num_steps or done % saving.every == 0:
            saving.checkpoints.save(engine, done, saving.about)
        if asked:
            return


def counts_of(outcome: Outcome) -> torch.Tensor:
    """float64[2 x NOISE_BINS + 4]: sums of loss and numbers of rows by noise level; tokens, masked
    tokens, 0, 0."""
    bins = (outcome.t * NOISE_BINS).long().clamp(max=NOISE_BINS - 1)
    tally = torch.zeros(2 * NOISE_BINS + 4, dtype=torch.float64)
    tally.index_add_(0, bins, outcome.by_row.double().cpu())
    tally.index_add_(0, bins + NOISE_BINS, torch.ones(len(bins), dtype=torch.float64))
    tally[-4], tally[-3] = outcome.num_tokens, outcome.num_masked
    return tally


def report_of(
    step: int, loss: float, tally: torch.Tensor, norm: float, factor: float, seconds: float
) -> Report:
    sums, rows = tally[:NOISE_BINS].tolist(), tally[NOISE_BINS : 2 * NOISE_BINS].tolist()
    by_noise = tuple(s / n if n else None for s, n in zip(sums, rows, strict=True))
    return Report(step, loss, by_noise, norm, factor, int(tally[-4]), int(tally[-3]), seconds)


def not_finite(step: int, stage: StageSettings, loss: float) -> RunError:
    """E1602 with the step's place in the run, from which its rows follow."""
    what = "gradient" if math.isfinite(loss) else "loss"
    first = step * stage.batch_size
    return RunError(
        "E1602",
        f"the {what} of step {step + 1} is not finite (positions {first} to "
        f"{first + stage.batch_size - 1} of the run).",
    )
