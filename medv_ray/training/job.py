"""What a training job is asked to do, and the names in its run folder.

run.json        what made these weights: settings, digests, versions
checkpoints/    see `checkpoint`
events.jsonl    one line a step; TensorBoard's files beside it
model/          the checkpoint folder, or the adapter, once the stage is done
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from medv_ray.settings import Settings
from medv_ray.training.stages import ShardSettings, StageSettings

MANIFEST, PARTIAL, MODEL = "run.json", "run.json.tmp", "model"
LOCK = "lock"
"""The driver's (`archive.lock`): no sign of a run, and left alone when one starts over."""
NOTE = "note"
"""What a worker has to say to whoever started the job."""
STOP, FAILED = "stop", "failed.json"
"""That the workers are to stop, and why they did."""
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
    """Features (or tiles) of pictures that each worker keeps over the epochs, in host memory."""
    device_cache_bytes: NonNegativeInt = 2**29
    """Features of a frozen vision tower that each worker leaves on its GPU besides; none on a
    CPU."""
    prefetch_rows: NonNegativeInt = 16
    """Rows that a thread of each worker reads, decodes and takes through a frozen vision tower
    before they are needed; 0: in the step's own time."""
    watch: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
