"""What to change in a stage that does not fit its GPUs: settings by name, mildest first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medv_ray.errors import RunError, SettingsError, is_out_of_memory
from medv_ray.model.config import ModelConfig
from medv_ray.settings import build, override
from medv_ray.training.job import TrainSettings
from medv_ray.training.plan import Plan, PlanSettings, plan
from medv_ray.training.stages import ShardSettings, StageSettings

MOST_GPUS = 1024
LORA = "stage.lora.rank=16"


@dataclass(frozen=True)
class Remedy:
    """Assignments for `--set` under which the stage fits."""

    assignments: tuple[str, ...]
    plan: Plan

    def __str__(self) -> str:
        sets = " ".join(f"--set {assignment}" for assignment in self.assignments)
        memory = self.plan.memory
        host = f", {memory.host / 1e9:.0f} GB of host memory" if memory.host else ""
        return f"{sets} ({memory.peak / 1e9:.1f} GB a GPU{host})"


def remedies(settings: PlanSettings, model: ModelConfig) -> list[Remedy]:
    """Each fits by itself; several settings stand together where no single one is enough."""
    found = [r for r in _tried(settings, model, _single(settings)) if r.plan.fits]
    if not found:
        together = list(_single(settings))
        sums = [sum(together[:n], ()) for n in range(2, len(together) + 1)]
        found = [r for r in _tried(settings, model, iter(sums)) if r.plan.fits][:1]
    if LORA in savings(settings.stage, settings.shard):
        found += [r for r in _tried(settings, model, iter([(LORA,)])) if r.plan.fits]
    more = _tried(settings, model, _more_gpus(settings))
    return found + [r for r in more if r.plan.fits][:1]


def _single(settings: PlanSettings) -> Iterator[tuple[str, ...]]:
    if settings.head == "all":
        yield ("head=masked",)
    for assignment in savings(settings.stage, settings.shard):
        if assignment != LORA:
            yield (assignment,)


def savings(stage: StageSettings, shard: ShardSettings) -> Iterator[str]:
    """Settings of a stage that take less memory, mildest first. All but LoRA train the same."""
    if not stage.gradient_checkpointing:
        yield "stage.gradient_checkpointing=true"
    if stage.micro_batch_size > 1 and stage.padding == "hidden":
        yield "stage.micro_batch_size=1"
    if shard.engine == "plain":
        yield "shard.engine=zero3"
    if not shard.offload_optimizer:
        yield "shard.offload_optimizer=true"
    if not shard.offload_params:
        yield "shard.offload_params=true"
    if "language" in stage.trainable and stage.lora is None:
        yield LORA


def _more_gpus(settings: PlanSettings) -> Iterator[tuple[str, ...]]:
    """Twice as many GPUs, and again; each must get a row of the batch."""
    stage, gpus = settings.stage, settings.hardware.gpus * 2
    while gpus <= MOST_GPUS and stage.batch_size % gpus == 0:
        each = min(stage.micro_batch_size, stage.batch_size // gpus)
        if each < stage.micro_batch_size and stage.padding != "hidden":
            return  # other rows would stand together
        smaller = (f"stage.micro_batch_size={each}",) if each < stage.micro_batch_size else ()
        yield (f"hardware.gpus={gpus}", *smaller)
        gpus *= 2


def _tried(
    settings: PlanSettings, model: ModelConfig, choices: Iterator[tuple[str, ...]]
) -> Iterator[Remedy]:
    values = settings.model_dump(mode="json", exclude_none=True)
    for assignments in choices:
        try:
            changed = build(PlanSettings, override(values, assignments))
            yield Remedy(assignments, plan(changed, model))
        except SettingsError:  # a batch that does not divide, say: no way out
            continue


@contextmanager
def memory_errors(settings: TrainSettings) -> Iterator[None]:
    """Turn a lack of memory into RunError E1605 with the settings that take less."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return
    stage, plain = settings.stage, settings.shard.engine == "plain"
    found = [s for s in savings(stage, settings.shard) if not (plain and "offload" in s)]
    if (
        settings.workers.num_gpus
        and settings.device_cache_bytes
        and "vision" not in stage.trainable
    ):
        found.insert(0, "device_cache_bytes=0")
    text = f"a worker ran out of memory with stage.micro_batch_size={stage.micro_batch_size}"
    ways = f"Use more workers, or one or several of: --set {', --set '.join(found)}."
    raise RunError("E1605", f"{text}. {ways if found else 'Use more workers or shorter rows.'}")
