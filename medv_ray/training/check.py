"""Everything that can be known of a training job before its first step."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medv_ray import __version__
from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import load_tokenizer
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import CheckpointError, DataError, RunError, SettingsError
from medv_ray.model import weights
from medv_ray.model.config import ModelConfig
from medv_ray.training.job import LOCK, MANIFEST, PARTIAL, TrainSettings
from medv_ray.training.loop import check_batch
from medv_ray.training.stages import StageSettings
from medv_ray.training.survey import survey_stage
from medv_ray.training.validation_rows import check_validation
from medv_ray.training.writers import check_writers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def rounding(stage: StageSettings) -> set[str]:
    """Settings of a stage that change rounding alone: a run that lacks memory may go on with
    others. So may `shard`, but for its dtype."""
    # end-of-text padding depends on which rows stand together
    together = {"micro_batch_size"} if stage.padding == "hidden" else set()
    return {"gradient_checkpointing", *together}


def check(settings: TrainSettings, spec: SampleSpec | None = None) -> dict[str, Any]:
    """Everything that can be known before the first step; what must be equal for a resume.

    Args:
        spec: how validation is to answer, whose canvas must fit too; None: it does not.

    Raises SettingsError, DataError or CheckpointError, E1405 for a weight that is not finite too,
    which takes a pass over the base; RunError E1507 for an output folder of
    something else.
    """
    stage, workers = settings.stage, settings.workers
    check_free_or_run(Path(settings.out))
    if settings.shard.engine == "plain" and workers.num_workers > 1:
        text = f"shard.engine=plain is one process, not {workers.num_workers} workers"
        raise SettingsError("E1001", f"{text}: use shard.engine=zero3, or --num-workers 1.")
    most = workers.num_workers
    for count in range(workers.min_workers or most, most + 1):
        check_batch(stage, count)
    check_packages(settings)
    config, tokenizer = check_base(settings)
    weights.check(settings.model)
    try:
        dataset = Dataset.open(settings.data, settings.split)
        data_sha256 = dataset.digest
        found = survey_stage(dataset, tokenizer, stage, config)
        check_validation(settings, tokenizer, config, spec)
    except DataError as error:
        error.exit_code = SettingsError.exit_code  # nothing was started
        raise
    return {
        "stage": stage.model_dump(mode="json", exclude=rounding(stage)),
        "dtype": settings.shard.dtype,
        "logit_size": settings.logit_size,
        "base_sha256": weights.digest(settings.model),
        "data_sha256": data_sha256,
        "survey": found._asdict(),
        "code": {"medv_ray": __version__, "torch": version("torch")},
    }


def check_free_or_run(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError("E1507", "the output is a file; a folder is needed.")
    held = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if held - {LOCK, PARTIAL} and MANIFEST not in held:
        raise RunError("E1507", "the output folder is not empty and holds no training run.")


def check_packages(settings: TrainSettings) -> None:
    """Raises SettingsError E1003 and E1001 for what is not installed."""
    wanted = {
        "deepspeed": settings.shard.engine == "zero3",
        "peft": settings.stage.lora is not None,
    }
    missing = [name for name, needed in wanted.items() if needed and find_spec(name) is None]
    if missing:
        text = f"this training needs {' and '.join(missing)}: pip install 'medv-ray[train]'."
        raise SettingsError("E1003", text)
    check_writers(settings.watch)


def check_base(settings: TrainSettings) -> tuple[ModelConfig, PreTrainedTokenizerFast]:
    """The base model's config as the stage sees it, and its tokenizer; no weight's value is read.

    Raises as `weights.read_headers`, `load_tokenizer` and `stage_config`.
    """
    config, _ = weights.read_headers(settings.model)
    tokenizer = load_tokenizer(settings.model)
    vocab_size = config.language.vocab_size
    if settings.logit_size == "tokenizer" and len(tokenizer) > vocab_size:
        text = f"the tokenizer has {len(tokenizer)} tokens, the head {vocab_size} rows."
        raise CheckpointError("E1408", text)
    return stage_config(config, settings.stage), tokenizer


def stage_config(config: ModelConfig, stage: StageSettings) -> ModelConfig:
    """A checkpoint's config with the stage's attention and merge. Raises SettingsError E1001."""
    if config.vision is None and "language" not in stage.trainable:
        parts = ", ".join(stage.trainable)
        raise SettingsError("E1001", f"stage.trainable={parts}: the model is language alone.")
    merge = config.mm_patch_merge_type if stage.merge == "checkpoint" else stage.merge
    if merge == "spatial_unpad" and "unpad" not in config.mm_patch_merge_type:
        text = "stage.merge=spatial_unpad: the model has no image_newline; use flat or checkpoint."
        raise SettingsError("E1001", text)
    return replace(config, attention=stage.attention, mm_patch_merge_type=merge)
