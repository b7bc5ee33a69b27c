"""A stage of training from settings to a folder: what the driver checks, and what each worker does.

run.json        what made these weights: settings, digests, versions
checkpoints/    see `checkpoint`
events.jsonl    one line a step; TensorBoard's files beside it
model/          the checkpoint folder, or the adapter, once the stage is done
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from medv_ray import __version__
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.errors import RunError, SettingsError
from medv_ray.model import lora, weights
from medv_ray.model.medv import Medv
from medv_ray.settings import Settings
from medv_ray.training.checkpoint import Checkpoints, SavedState, read_manifest
from medv_ray.training.engine import Engine, PlainEngine
from medv_ray.training.loop import Report, Saving, check_batch, fit
from medv_ray.training.objective import Objective
from medv_ray.training.optim import choose_trainable, schedule
from medv_ray.training.samples import Samples
from medv_ray.training.stages import ShardSettings, StageSettings
from medv_ray.training.watch import StepEvent, Watch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WorkerSettings(Settings):
    """How many workers, and what each takes of the cluster."""

    num_workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Elastic: go on with as few as this when nodes are lost. None: not elastic."""
    num_gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of a worker: 1, or 0 on CPUs."""
    cpus_per_worker: PositiveInt = 1
    max_failures: NonNegativeInt = 3
    """Deaths of workers after which the job ends; it goes on from the last checkpoint."""

    @model_validator(mode="after")
    def _elastic(self) -> Self:
        if (self.min_workers or 1) > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} must be at most num_workers={self.num_workers}"
            )
        return self


class TrainSettings(Settings):
    """One stage of a training job."""

    model: str
    """Folder that the stage begins with."""
    data: str
    """Prepared dataset (`jobs/prepare_vqa.py`)."""
    split: str = "train"
    out: str
    """Run folder, on storage that all workers see."""
    stage: StageSettings
    shard: ShardSettings = ShardSettings()
    workers: WorkerSettings = WorkerSettings()
    save_every: PositiveInt = 500
    """Steps between checkpoints; the last step has one too."""
    keep: PositiveInt = 2
    """Checkpoints that are kept."""
    logit_size: Literal["checkpoint", "tokenizer"] = "tokenizer"
    """See ModelSettings."""
    picture_cache_bytes: NonNegativeInt = 2**30
    """Features (or tiles) of pictures that each worker keeps over the epochs."""
    watch: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)


def check(settings: TrainSettings) -> dict[str, Any]:
    """Everything that can be known before the first step; what must be equal for a resume.

    Raises SettingsError, DataError or CheckpointError.
    """
    stage = settings.stage
    if settings.shard.engine == "plain" and settings.workers.num_workers > 1:
        raise SettingsError("E1001", "shard.engine=plain is for one worker; use zero3.")
    most = settings.workers.num_workers
    for count in range(settings.workers.min_workers or most, most + 1):
        check_batch(stage, count)
    dataset = Dataset.open(settings.data, settings.split)
    if not stage.steps(len(dataset)):
        raise SettingsError(
            "E1001",
            f"{len(dataset)} rows x {stage.epochs:g} epochs are fewer than stage.batch_size="
            f"{stage.batch_size}.",
        )
    return {
        "stage": stage.model_dump(mode="json"),
        "dtype": settings.shard.dtype,
        "engine": settings.shard.engine,
        "logit_size": settings.logit_size,
        "base_sha256": weights.digest(settings.model),
        "data_sha256": dataset.digest,
        "code": {"medv_ray": __version__, "torch": version("torch")},
    }


def begin(settings: TrainSettings, identity: dict[str, Any], new_run: bool = False) -> Path:
    """The run folder, made or found to be of the same run. Raises RunError E1604 for another."""
    out = Path(settings.out)
    manifest = out / "run.json"
    if new_run and manifest.is_file():
        shutil.rmtree(out)
    if manifest.is_file():
        before = json.loads(manifest.read_text()).get("identity", {})
        changed = sorted(
            k for k in identity.keys() | before.keys() if identity.get(k) != before.get(k)
        )
        if changed:
            raise RunError("E1604", f"the run folder was made with another {', '.join(changed)}.")
        return out
    if out.is_dir() and any(out.iterdir()):
        raise RunError("E1507", "the output folder is not empty and holds no training run.")
    out.mkdir(parents=True, exist_ok=True)
    told = {"identity": identity, "settings": settings.model_dump(mode="json", exclude={"out"})}
    partial = manifest.with_suffix(".tmp")
    partial.write_text(json.dumps(told, indent=1) + "\n")
    os.replace(partial, manifest)
    return out


def build_model(settings: TrainSettings, device: str) -> Medv:
    """The base model as the stage sees it, its trainable parts switched on."""
    stage = settings.stage
    tokenizer = load_tokenizer(settings.model)
    plain = settings.shard.engine == "plain"
    dtype = torch.float32 if plain else DTYPES[settings.shard.dtype]
    size = len(tokenizer) if settings.logit_size == "tokenizer" else None
    model = weights.load(settings.model, dtype, device, size)
    merge = model.config.mm_patch_merge_type if stage.merge == "checkpoint" else stage.merge
    if merge == "spatial_unpad" and not hasattr(model.model, "image_newline"):
        raise SettingsError("E1001", "stage.merge=spatial_unpad: the model has no image_newline.")
    model.config = replace(model.config, attention=stage.attention, mm_patch_merge_type=merge)
    model.train()
    choose_trainable(model, stage)
    if stage.lora is not None:
        lora.add_lora(model, stage.lora, stage.seed)
    model.model.gradient_checkpointing = stage.gradient_checkpointing
    return model


def train_worker(
    settings: TrainSettings,
    identity: dict[str, Any],
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Report]:
    """What each worker does: build, restore, train, save. Ends early when any is asked to `stop`.

    A process group is there for ZeRO-3. Raises RunError E1602 (not finite), E1603 (no whole
    checkpoint), E1605 (out of memory).
    """
    stage, out = settings.stage, Path(settings.out)
    dataset = Dataset.open(settings.data, settings.split)
    tokenizer = load_tokenizer(settings.model)
    model = build_model(settings, device)
    samples = Samples(dataset, tokenizer, stage, model, settings.picture_cache_bytes)
    objective = Objective(model, SpecialIds.of(tokenizer).mask)
    engine = make_engine(objective, settings)
    checkpoints = Checkpoints(out / "checkpoints", settings.keep)
    num_steps = stage.steps(len(dataset))
    about = {"identity": identity_digest(identity), "num_steps": num_steps}
    start = 0
    found = checkpoints.latest(engine)
    if found is not None:
        start, manifest, _ = found
        if manifest.get("identity") != about["identity"]:
            raise RunError("E1604", "the checkpoints are of another run.")
        checkpoints.restore(engine, start, manifest)
    saving = Saving(checkpoints, settings.save_every, about)
    epoch_steps = len(dataset) / stage.batch_size
    with (
        closing(samples),
        Watch(out, settings.watch, rank=engine.rank, resumed_step=start) as watch,
    ):
        try:
            for report in fit(engine, samples, stage, num_steps, saving, start, stop):
                watch.write(event_of(report, num_steps, epoch_steps, stage))
                yield report
        except (torch.OutOfMemoryError, MemoryError):
            raise RunError("E1605", "out of memory in a training step.") from None


def make_engine(objective: Objective, settings: TrainSettings) -> Engine:
    if settings.shard.engine == "plain":
        return PlainEngine(objective, settings.stage, DTYPES[settings.shard.dtype])
    from medv_ray.training.zero import ZeroEngine

    return ZeroEngine(objective, settings.stage, settings.shard)


def event_of(report: Report, num_steps: int, epoch_steps: float, stage: StageSettings) -> StepEvent:
    """A step's report as the watchers want it."""
    return StepEvent(
        step=report.step,
        total_steps=num_steps,
        epoch=report.step / epoch_steps,
        loss=report.loss,
        lr=stage.lr * schedule(report.step - 1, num_steps, stage),
        grad_norm=report.grad_norm,
        loss_by_noise=report.loss_by_noise,
        tokens_per_s=report.num_tokens / report.seconds,
        eta_s=(num_steps - report.step) * report.seconds,
    )


def export(settings: TrainSettings, folder: Path, dtype: str | None = None) -> int:
    """Write the last checkpoint as a folder that scoring loads; returns its step.

    The base folder's weights with what was trained put over them; an adapter is merged. Loaded back
    to see that it is whole. Raises RunError E1603 without a whole checkpoint.
    """
    out, stage = Path(settings.out), settings.stage
    checkpoints = Checkpoints(out / "checkpoints", settings.keep)
    steps = [s for s in checkpoints.steps() if read_manifest(checkpoints.at(s)) is not None]
    if not steps:
        raise RunError("E1603", "there is no whole checkpoint to export.")
    manifest = read_manifest(checkpoints.at(steps[-1]))
    assert manifest is not None
    state = SavedState(checkpoints.at(steps[-1]), manifest)
    model = weights.load(settings.model, DTYPES[dtype or settings.shard.dtype])
    if stage.lora is not None:
        lora.add_lora(model, stage.lora)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, shape in state.shapes.items():
            parameters[name].copy_(state.whole(name).reshape(shape))
    if stage.lora is not None:
        lora.merge_lora(model)
    model.config = replace(model.config, attention=stage.attention)
    weights.save(model, folder, settings.model)
    keep_defaults(Path(settings.model), folder)
    weights.load(folder, model.dtype)
    return steps[-1]


def keep_defaults(base: Path, folder: Path) -> None:
    """Carry the sampler settings that the base recommends over."""
    found = json.loads((base / "config.json").read_text()).get("medv_defaults")
    if found is not None:
        path = folder / "config.json"
        raw = json.loads(path.read_text()) | {"medv_defaults": found}
        path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def identity_digest(identity: dict[str, Any]) -> str:
    """64 hex digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
