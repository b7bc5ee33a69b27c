"""What a stage of training takes: steps, tokens, time and memory, before anything is allocated.

Time is FLOPs over the GPU's peak times a utilisation that counts recomputation; how far a machine
gets is an assumption (45 % by default) until a run of its own says better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from medv_ray.errors import SettingsError
from medv_ray.model.config import ModelConfig
from medv_ray.settings import Settings, build, override
from medv_ray.training.flops import (
    RowFlops,
    RowShape,
    count_parameters,
    row_flops,
    trained_parameters,
)
from medv_ray.training.gpus import GPUS, Gpu, GpuName
from medv_ray.training.memory import Memory, plan_memory
from medv_ray.training.stages import RECIPES, ShardSettings, StageSettings

Head = Literal["masked", "all"]


class RowsSettings(Settings):
    """The data of a stage, by its sizes."""

    num_rows: PositiveInt
    """Conversations."""
    text_tokens: PositiveInt
    """Prompt and answer of a mean row."""
    targets: NonNegativeInt | None = None
    """Tokens of a row that can be masked; None takes text_tokens, which is at least as many."""
    tiles: PositiveInt = 1
    """Runs of the vision tower for a picture: 1 for square and pad; anyres takes 5 for most."""
    image_tokens: NonNegativeInt | None = None
    """None: tiles times the patches of a tile."""

    @property
    def num_targets(self) -> int:
        return self.text_tokens if self.targets is None else self.targets


class HardwareSettings(Settings):
    """What the stage runs on."""

    gpus: PositiveInt = 4
    """How many, all of one kind."""
    gpu: GpuName = "a100-80gb"
    """Their kind."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the peak that is reached, recomputation counted as work."""


class PlanSettings(Settings):
    """A stage on its data and hardware."""

    stage: StageSettings
    rows: RowsSettings
    hardware: HardwareSettings = HardwareSettings()
    shard: ShardSettings = ShardSettings()
    head: Head = "masked"
    """Rows of the language head: those of masked positions, or all, as LLaDA-V computes it."""


# Rows: LLaDA-MedV's supplement, Table 1. It names no text lengths; these are assumed: a caption, an
# instruction dialogue, a short question with its answer, beside 729 image tokens.
ASSUMED_ROWS = {
    "alignment": RowsSettings(num_rows=600_000, text_tokens=90),
    "md_sft": RowsSettings(num_rows=60_000, text_tokens=350),
    "sd_sft_vqa_rad": RowsSettings(num_rows=1_797, text_tokens=50),
    "sd_sft_slake": RowsSettings(num_rows=4_919, text_tokens=50),
    "sd_sft_pathvqa": RowsSettings(num_rows=19_755, text_tokens=50),
}


@dataclass(frozen=True)
class Cost:
    """Work and time with one choice of the head's rows."""

    flops: RowFlops
    """Of a row."""
    step_s: float
    hours: float
    """Of the whole stage."""


@dataclass(frozen=True)
class Plan:
    """What `plan` found; times for the GPU of the settings."""

    settings: PlanSettings
    steps: int
    row_tokens: int
    parameters: int
    trained: int
    costs: dict[Head, Cost]
    hours_by_gpu: dict[GpuName, float]
    fits_by_gpu: dict[GpuName, bool]
    memory: Memory
    traffic_bytes: float
    """What a GPU receives in one micro-step: weights twice, gradients once."""

    @property
    def tokens(self) -> int:
        """Of the whole stage."""
        return self.row_tokens * self.settings.stage.batch_size * self.steps

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.settings.hardware.gpu]

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.gpu.memory_gb * 1e9


def plan_settings(stage: str, given: dict[str, Any], assignments: list[str]) -> PlanSettings:
    """A recipe with what is known of its data, under `given` values and `a.b=c` assignments.

    Raises SettingsError for an unknown recipe, or one whose data is not known and not given.
    """
    if stage not in RECIPES:
        raise SettingsError(
            "E1001", f"--stage: {stage[:40]!r} is none of {', '.join(sorted(RECIPES))}."
        )
    known, tiled = ASSUMED_ROWS.get(stage), RECIPES[stage].aspect == "anyres_max"
    unknown = {"text_tokens": 350, "tiles": 5 if tiled else 1}
    values: dict[str, Any] = {
        "stage": RECIPES[stage].model_dump(mode="json", exclude_none=True),
        "rows": unknown if known is None else known.model_dump(exclude_none=True),
        "hardware": {},
        "shard": {},
    }
    for group, found in given.items():
        values[group].update({name: value for name, value in found.items() if value is not None})
    values = override(values, assignments)
    if known is None and "num_rows" not in values["rows"]:
        raise SettingsError("E1001", f"--rows is missing: nothing is known of {stage}'s data.")
    return build(PlanSettings, values)


def plan(settings: PlanSettings, model: ModelConfig) -> Plan:
    """Steps, tokens, time and memory of a stage.

    Raises SettingsError for a batch that does not divide over the GPUs, a row longer than the
    model's or the stage's limit, and data that makes no step.
    """
    stage, rows, hardware = settings.stage, settings.rows, settings.hardware
    row_tokens = _row_tokens(settings, model)
    _check(settings, row_tokens, model.max_length)
    steps = stage.steps(rows.num_rows)
    costs: dict[Head, Cost] = {
        head: _cost(settings, model, row_tokens, head, steps, GPUS[hardware.gpu])
        for head in ("all", "masked")
    }
    memory = _memory(settings, model, row_tokens)
    hours = {
        name: _cost(settings, model, row_tokens, settings.head, steps, gpu).hours
        for name, gpu in GPUS.items()
    }
    weights, trained = count_parameters(model).total, trained_parameters(model, stage)
    others = (hardware.gpus - 1) / hardware.gpus
    return Plan(
        settings=settings,
        steps=steps,
        row_tokens=row_tokens,
        parameters=weights,
        trained=trained,
        costs=costs,
        hours_by_gpu=hours,
        fits_by_gpu={name: memory.peak <= gpu.memory_gb * 1e9 for name, gpu in GPUS.items()},
        memory=memory,
        traffic_bytes=2 * (2 * weights + trained) * others,
    )


def _row_tokens(settings: PlanSettings, model: ModelConfig) -> int:
    rows, vision = settings.rows, model.vision
    patches = 0 if vision is None else vision.side**2
    image = rows.tiles * patches if rows.image_tokens is None else rows.image_tokens
    return image + rows.text_tokens


def _check(settings: PlanSettings, row_tokens: int, max_length: int) -> None:
    stage, hardware, rows = settings.stage, settings.hardware, settings.rows
    together = stage.micro_batch_size * hardware.gpus
    limit = min(stage.max_length, max_length)
    if stage.batch_size % together:
        each, rest = divmod(stage.batch_size, hardware.gpus)
        way = f"stage.micro_batch_size={math.gcd(stage.micro_batch_size, each)} would be"
        rule = (
            f"stage.batch_size={stage.batch_size} must be a multiple of stage.micro_batch_size="
            f"{stage.micro_batch_size} times {hardware.gpus} GPUs (hardware.gpus); "
            + ("no micro-batch is" if rest else way)
        )
    elif settings.shard.engine == "plain" and hardware.gpus > 1:
        rule = f"shard.engine=plain is one process: hardware.gpus must be 1, not {hardware.gpus}"
    elif settings.shard.dtype != "bfloat16":
        rule = f"shard.dtype={settings.shard.dtype} is for CPUs; only bfloat16 is planned"
    elif row_tokens > limit:
        rule = (
            f"a row of {row_tokens} tokens is longer than {limit} (stage.max_length, the model's)"
        )
    elif not stage.steps(rows.num_rows):
        rule = (
            f"{rows.num_rows} rows x {stage.epochs:g} epochs are less than one batch of "
            f"{stage.batch_size} (stage.batch_size)"
        )
    else:
        return
    raise SettingsError("E1001", f"{rule}.")


def _cost(
    settings: PlanSettings, model: ModelConfig, row_tokens: int, head: Head, steps: int, gpu: Gpu
) -> Cost:
    rows, hardware = settings.rows, settings.hardware
    # t is uniform: half of the targets are masked on average
    head_rows = row_tokens if head == "all" else rows.num_targets / 2
    flops = row_flops(model, settings.stage, RowShape(row_tokens, rows.tiles, head_rows))
    rate = hardware.gpus * gpu.peak_tflops * 1e12 * hardware.utilisation
    step_s = settings.stage.batch_size * flops.total / rate
    return Cost(flops, step_s, steps * step_s / 3600)


def _memory(settings: PlanSettings, model: ModelConfig, row_tokens: int) -> Memory:
    hardware, rows = settings.hardware, settings.rows
    return plan_memory(
        model,
        settings.stage,
        settings.shard,
        gpus=hardware.gpus,
        length=row_tokens,
        tiles=rows.tiles,
        head_rows=row_tokens if settings.head == "all" else rows.num_targets,
    )
