"""What a training job is asked to do, and the names in its run folder.

run.json        what made these weights: settings, digests, versions
checkpoints/    see `checkpoint`
events.jsonl    one line a step and one a validation; TensorBoard's files beside it
curves.svg      loss and accuracy, drawn from it
model/          the checkpoint folder once the stage is done, its model card in README.md
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from medv_ray.settings import SamplerSettings, Settings
from medv_ray.training.stages import ShardSettings, StageSettings

MANIFEST, PARTIAL, MODEL = "run.json", "run.json.tmp", "model"
LOCK = "lock"
"""The driver's (`archive.lock`): no sign of a run, and left alone when one starts over."""
NOTE = "note"
"""What a worker has to say to whoever started the job."""
CURVES = "curves.svg"
STOP, FAILED = "stop", "failed.json"
"""That the workers are to stop, and why they did."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WorkerSettings(Settings):
    """How many workers, and what each takes of the cluster."""

    num_workers: PositiveInt = 1
    """Processes that train together."""
    min_workers: PositiveInt | None = None
    """Elastic: go on with as few as this when nodes are lost. None: not elastic."""
    num_gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of a worker: 1, or 0 on CPUs."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores of each worker."""
    max_failures: NonNegativeInt = 3
    """Deaths of workers after which the job ends; it goes on from the last checkpoint."""

    @model_validator(mode="after")
    def _elastic(self) -> Self:
        if (self.min_workers or 1) > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} must be at most num_workers={self.num_workers}"
            )
        return self


class ValidationSettings(Settings):
    """What is looked at while a stage trains. It changes no weight; a run that goes on may have
    other values."""

    every: PositiveInt | None = None
    """Updates between two validations; the end of the stage has one too. None: there is none."""
    split: str = "validation"
    """Of the prepared dataset."""
    rows: PositiveInt = 200
    """Rows of the split, spread evenly over it, the same each time; at most all."""
    batch_size: PositiveInt = 8
    """Rows that a worker computes at a time."""
    answers: bool = True
    """Answer the rows' questions and count what is right, besides the loss. Of template=llada
    alone, which is the one that is asked later."""
    sampler: SamplerSettings | None = None
    """Of the answers. None: what the base recommends (`medv_defaults`), else preset=fast. All is
    computed in full, without a cache."""
    samples: Annotated[int, Field(ge=0, le=100)] = 4
    """Answers that events.jsonl and TensorBoard show, with row number and reference; each text is
    cut behind 200 characters."""
    best: Literal["loss", "accuracy", "none"] = "loss"
    """Whose best value has its checkpoint kept beside the `keep` newest."""
    patience: PositiveInt | None = None
    """Validations in a row without a better value after which the stage ends, for good. None: it
    goes on."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes `model/`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best == "none" and (self.patience or self.export == "best"):
            name = f"patience={self.patience}" if self.patience else "export=best"
            raise ValueError(f"{name} goes by best=loss or best=accuracy, not by none")
        if self.best == "accuracy" and not self.answers:
            raise ValueError("best=accuracy needs answers=true")
        if self.every is None and (self.patience or self.export == "best"):
            name = f"patience={self.patience}" if self.patience else "export=best"
            raise ValueError(f"{name} needs validations: set every too (--validate-every)")
        return self


class TrainSettings(Settings):
    """One stage of a training job."""

    model: str
    """Folder that the stage begins with."""
    data: str
    """Prepared dataset (`jobs/prepare_vqa.py`)."""
    split: str = "train"
    """Of the prepared dataset."""
    out: str
    """Run folder, on storage that all workers see."""
    stage: StageSettings
    shard: ShardSettings = ShardSettings()
    workers: WorkerSettings = WorkerSettings()
    validation: ValidationSettings = ValidationSettings()
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
    """Where events go besides events.jsonl."""
