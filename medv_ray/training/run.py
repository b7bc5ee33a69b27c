"""A stage of training: its run folder, and what each worker does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from medv_ray.data.dataset import Dataset
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.disk import disk_errors
from medv_ray.errors import RunError
from medv_ray.files import write_atomic
from medv_ray.model import lora, weights
from medv_ray.model.medv import Medv
from medv_ray.model.vision import VisionTower
from medv_ray.settings import identity_digest
from medv_ray.training.best import best_step, has_ended
from medv_ray.training.check import stage_config
from medv_ray.training.checkpoint import Checkpoints
from medv_ray.training.engine import Engine, PlainEngine
from medv_ray.training.events import Events
from medv_ray.training.job import DTYPES, MANIFEST, NOTE, TrainSettings
from medv_ray.training.loop import Report, Saving, Verdict, fit
from medv_ray.training.objective import Objective, Padding
from medv_ray.training.optim import choose_trainable
from medv_ray.training.order import worker_positions
from medv_ray.training.remedies import memory_errors
from medv_ray.training.samples import Samples
from medv_ray.training.stages import StageSettings
from medv_ray.training.start_over import remove_run
from medv_ray.training.validation import Validator
from medv_ray.training.watch import Watch


def begin(settings: TrainSettings, identity: dict[str, Any], new_run: bool = False) -> Path:
    """The run folder, made or found to be of the same run; `new_run` removes a run's files first.

    Raises RunError E1604 for another run, E1506 and E1507 for a manifest that is damaged or cannot
    be read, E1507 for files of others in `model/`, E1503 and E1511 where the disk does not take it.
    """
    out = Path(settings.out)
    manifest = out / MANIFEST
    if new_run and manifest.is_file():
        remove_run(out)
    if is_run(out, identity):
        return out
    out.mkdir(parents=True, exist_ok=True)
    stored = settings.model_dump(mode="json", exclude={"out"})
    record: dict[str, Any] = {"identity": identity, "settings": stored}
    record["sha256"] = identity_digest(json.loads(json.dumps(record)))  # keys as they are read
    with disk_errors("run.json"):
        write_atomic(manifest, (json.dumps(record, indent=1) + "\n").encode())
    return out


def is_run(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder is of this run; False where it is of none.

    Raises RunError E1604 for another run, E1506 and E1507 for a manifest that is damaged or cannot
    be read.
    """
    if not (out / MANIFEST).is_file():
        return False
    before, _ = read_run(out)
    changed = changed_fields(before, json.loads(json.dumps(identity)))
    if changed:
        raise RunError("E1604", f"the run folder was made with another {', '.join(changed)}.")
    return True


def changed_fields(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of the values that differ; of settings both values too: `stage.lr (0.1, now 1)`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        parts = [changed_fields(before.get(k), now.get(k), f"{name}.{k}".strip(".")) for k in names]
        return [part for found in parts for part in found]
    if before == now:
        return []
    shown = name.startswith("stage.")
    return [f"{name} ({before}, now {now})" if shown else name]


def build_model(settings: TrainSettings, device: str) -> Medv:
    """The base model as the stage sees it, its trainable parts switched on."""
    stage = settings.stage
    tokenizer = load_tokenizer(settings.model)
    plain = settings.shard.engine == "plain"
    dtype = torch.float32 if plain else DTYPES[settings.shard.dtype]
    size = len(tokenizer) if settings.logit_size == "tokenizer" else None
    model = weights.load(settings.model, dtype, device, size)
    model.config = stage_config(model.config, stage)
    model.train()
    choose_trainable(model, stage)
    if stage.lora is not None:
        lora.add_lora(model, stage.lora, stage.seed)
    model.model.gradient_checkpointing = stage.gradient_checkpointing
    if model.config.vision is not None:
        tower = model.model.get_submodule("vision_tower.vision_tower.vision_model")
        assert isinstance(tower, VisionTower)
        tower.gradient_checkpointing = stage.gradient_checkpointing
    return model


def train_worker(
    settings: TrainSettings,
    identity: dict[str, Any],
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    leaving: Callable[[], bool] | None = None,
    spec: SampleSpec | None = None,
) -> Iterator[Report]:
    """What each worker does: build, restore, train, validate, save. `stop` and `leaving`: see
    `fit`; `spec`: see `Validator`.

    A process group is there for ZeRO-3. Raises RunError E1602 (not finite), E1603 (no whole
    checkpoint), E1605 (out of memory).
    """
    stage, out = settings.stage, Path(settings.out)
    dataset = Dataset.open(settings.data, settings.split)
    tokenizer = load_tokenizer(settings.model)
    with memory_errors(settings):
        model = build_model(settings, device)
        samples = Samples(
            dataset, tokenizer, stage, model,
            settings.picture_cache_bytes, settings.device_cache_bytes,
        )  # fmt: skip
        engine = make_engine(make_objective(model, SpecialIds.of(tokenizer), stage), settings)
    checkpoints = Checkpoints(out / "checkpoints", settings.keep)
    num_steps = stage.steps(len(dataset))
    digest = identity_digest(identity)
    about: dict[str, Any] = {"identity": digest, "num_steps": num_steps}
    start, before = 0, None
    found = checkpoints.latest(engine)
    if found is not None:
        start, manifest, damaged = found
        if manifest.get("identity") != digest:
            raise RunError("E1604", "the checkpoints are of another run.")
        before = manifest.get("validation")
        checkpoints.restore(engine, start, manifest)
        if engine.rank == 0:
            text = f"checkpoints of steps {damaged} are not whole; " if damaged else ""
            # the driver reads it meanwhile
            write_atomic(out / NOTE, f"{text}going on from step {start}".encode())
    saving = Saving(checkpoints, settings.save_every, about)
    events = Events(model.config, stage, len(dataset), model.device, engine.num_workers)
    with ExitStack() as stack:
        stack.enter_context(closing(samples))
        watch = stack.enter_context(
            Watch(
                out,
                settings.watch,
                rank=engine.rank,
                resumed_step=start,
                run_name=f"{stage.name}-{digest[:6]}",
                settings=settings.model_dump(mode="json", exclude={"model", "data", "out"}),
            )
        )
        stack.enter_context(memory_errors(settings))
        if has_ended(before):
            return
        validate = None
        if settings.validation.every is not None:
            validator = Validator(
                settings, engine, tokenizer, model, samples.tower, len(dataset), spec, before
            )
            stack.enter_context(closing(validator))
            validate = validating(validator, num_steps, watch, checkpoints, about)
        elif before is not None:  # what was best stays kept and known
            about["validation"], checkpoints.best = before, best_step(before)
        due = worker_positions(
            range(start, num_steps), stage.batch_size, engine.rank, engine.num_workers
        )
        samples.prefetch(due, settings.prefetch_rows)
        for report in fit(
            engine, samples, stage, num_steps, saving, start, stop, samples.row, leaving, validate
        ):
            watch.write(events(report))
            yield report


def validating(
    validator: Validator,
    num_steps: int,
    watch: Watch,
    checkpoints: Checkpoints,
    about: dict[str, Any],
) -> Callable[[int], Verdict | None]:
    """A `validate` for `fit`: its events are written, and `about` and `checkpoints` know what was
    best."""

    def know() -> None:
        about["validation"] = validator.progress.to_json()
        checkpoints.best = best_step(about["validation"])

    def validate(step: int) -> Verdict | None:
        if not validator.due(step, num_steps):
            return None
        event = validator(step, num_steps)
        watch.write(event)
        know()
        return Verdict(event.best, event.ended)

    know()
    return validate


def make_objective(model: Medv, special: SpecialIds, stage: StageSettings) -> Objective:
    """The stage's loss on a model whose config is the stage's."""
    if stage.padding == "hidden":
        return Objective(model, special.mask)
    limit = min(stage.max_length, model.config.max_length)
    return Objective(model, special.mask, Padding(special.eos, limit))


def make_engine(objective: Objective, settings: TrainSettings) -> Engine:
    if settings.shard.engine == "plain":
        return PlainEngine(objective, settings.stage, DTYPES[settings.shard.dtype])
    from medv_ray.training.zero import ZeroEngine

    return ZeroEngine(objective, settings.stage, settings.shard)


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity and settings of a run folder.

    Raises RunError E1507 for what is none, E1506 for one that does not match its checksum.
    """
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
        sha256 = record.pop("sha256", None)  # runs of earlier versions have none
        found = dict(record["identity"]), {**record["settings"], "out": str(folder)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError("E1507", f"{folder.name!r} holds no readable run.json.") from None
    # a checksum whose own name was hit is none that was never there
    if len(record) > 2 or (sha256 is not None and sha256 != identity_digest(record)):
        raise RunError("E1506", f"{MANIFEST} does not match its own checksum.")
    return found
