"""From a training checkpoint to a folder that scoring loads: the base's weights with what was
trained in their place, an adapter merged; or the adapter's own folder.

Tensors go from file to file, one shard in memory at a time.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medv_ray.errors import RunError, SettingsError
from medv_ray.files import file_sha256
from medv_ray.model import lora, weights
from medv_ray.model.importing import LICENCES
from medv_ray.model.new_folder import check_free, new_folder
from medv_ray.model.shards import DTYPES as STORED_DTYPES
from medv_ray.model.shards import Stored, open_shard
from medv_ray.settings import identity_digest
from medv_ray.training.best import best_step, has_ended
from medv_ray.training.card import CARD, card
from medv_ray.training.checkpoint import Checkpoints, SavedState, read_manifest
from medv_ray.training.job import DTYPES, TrainSettings
from medv_ray.training.optim import choose_trainable
from medv_ray.training.run import read_run
from medv_ray.training.stages import StageSettings

SHOWN_STEPS = 12


def export(
    settings: TrainSettings,
    folder: Path,
    dtype: str | None = None,
    step: int | None = None,
    adapter: bool = False,
    best: bool = False,
) -> int:
    """Write a checkpoint of a run as a folder that scoring loads; returns its step.

    Args:
        settings: of the run.
        folder: must not exist, or be empty; it appears when it is whole.
        dtype: of the weights; None: the run's.
        step: None: the end of the stage.
        adapter: the adapter's folder alone, instead of merging it.
        best: the checkpoint of the best validation so far, instead of `step`.

    Raises RunError E1503 and E1511 (not written), E1507 (no run), E1603 (no whole checkpoint of
    that step), E1604 (the base has changed); SettingsError E1001 for a folder in use, a stage that
    is not done, no adapter, or no validation.
    """
    check_free(folder)
    identity, _ = read_run(Path(settings.out))
    checkpoints = Checkpoints(Path(settings.out) / "checkpoints", settings.keep)
    manifest = pick_best(checkpoints) if best else pick(checkpoints, step)
    if manifest["identity"] != identity_digest(identity):
        raise RunError("E1604", "the checkpoints are of another run.")
    base = Path(settings.model)
    if not base.is_dir():
        text = f"base {base.name!r} is not where the run began with it. Name where it lies"
        raise RunError("E1604", f"{text} with --model.")
    base_sha256 = weights.digest(base)
    if base_sha256 != identity["base_sha256"]:
        text = f"base {base.name!r} has digest {base_sha256[:12]}; the run began with "
        text += f"{identity['base_sha256'][:12]}"
        raise RunError("E1604", f"{text}. Put it back, or name where it lies with --model.")
    number: int = manifest["step"]
    state = SavedState(checkpoints.at(number), manifest)
    dtype = "float32" if adapter else dtype or settings.shard.dtype
    text = card(settings, identity, manifest, dtype)
    if adapter:
        write_adapter(state, base, base_sha256, settings.stage, folder, text)
    else:
        write_model(state, base, settings.stage, DTYPES[dtype], folder, text)
    return number


def pick(checkpoints: Checkpoints, step: int | None) -> dict[str, Any]:
    """Manifest of the checkpoint of a step; None: of the last whole one, which must be the end.

    Raises RunError E1603 (not there, or not whole), SettingsError E1001 for a stage that is not
    done.
    """
    there = checkpoints.steps()
    if step is not None and step not in there:
        shown = ", ".join(map(str, there[-SHOWN_STEPS:])) or "none"
        raise RunError("E1603", f"there is no checkpoint of step {step}; there are: {shown}.")
    for number in [step] if step is not None else there[::-1]:
        manifest = read_manifest(checkpoints.at(number))
        if manifest is not None and is_whole(checkpoints.at(number), manifest):
            break
    else:
        text = f"none of {len(there)} checkpoints is whole."
        if step is not None:
            text = f"the checkpoint of step {step} is not whole; leave --step out, or take another."
        raise RunError("E1603", text if there else "there is no checkpoint yet.")
    done = number == manifest["num_steps"] or has_ended(manifest.get("validation"))
    if step is None and not done:
        text = f"the stage is not done: step {number} of {manifest['num_steps']}"
        ways = f"The job's own command goes on; --step {number} exports it as it is."
        raise SettingsError("E1001", f"{text}. {ways}")
    return manifest


def pick_best(checkpoints: Checkpoints) -> dict[str, Any]:
    """Manifest of the checkpoint of the best validation, by what the last readable one knows; the
    stage need not be done.

    Raises RunError E1603 (not there, or not whole), SettingsError E1001 where none was best.
    """
    there = [read_manifest(checkpoints.at(number)) for number in checkpoints.steps()[::-1]]
    known = [manifest for manifest in there if manifest is not None]
    step = best_step(known[0].get("validation")) if known else None
    if step is None:
        text = "the run has no best validation yet; --validate-every of its job makes some"
        raise SettingsError("E1001", f"--best: {text}. Leave --best out, or name a --step.")
    return pick(checkpoints, step)


def is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether each file of a checkpoint is as it was written."""
    try:
        return all(file_sha256(folder / n) == digest for n, digest in manifest["files"].items())
    except OSError:
        return False


def write_model(
    state: SavedState,
    base: Path,
    stage: StageSettings,
    dtype: torch.dtype,
    folder: Path,
    card: str = "",
) -> None:
    """A checkpoint folder in one dtype, read back by `weights.load` before it has its name.

    Args:
        card: text of its README.md; empty: it has none.

    Raises RunError E1503 and E1511, CheckpointError E1405 for what is not finite in `dtype`.
    """
    config, stored = weights.read_headers(base)
    sizes = {name: math.prod(entry.shape) * dtype.itemsize for name, entry in stored.items()}
    raw = replace(config, attention=stage.attention).to_json()
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    defaults = json.loads((base / "config.json").read_bytes()).get("medv_defaults")
    if defaults is not None:
        raw["medv_defaults"] = defaults
    with new_folder(folder, sum(sizes.values())) as partial:
        weights.write_shards(
            partial, sizes, lambda name: tensor_of(state, stored, name, stage).to(dtype)
        )
        weights.copy_files(base, partial, (*weights.TOKENIZER_FILES, *LICENCES))
        weights.write_json(partial / "config.json", raw)
        if card:
            (partial / CARD).write_text(card, encoding="utf-8")
        weights.load(partial, dtype)


def tensor_of(
    state: SavedState, stored: dict[str, Stored], name: str, stage: StageSettings
) -> Tensor:
    """A tensor of the trained model: float32[...] where it was trained, else as the base has it."""
    entry = stored[name]
    if name in state.shapes:
        return state.whole(name).reshape(entry.shape)
    tensor: Tensor = open_shard(entry.file).get_tensor(entry.name)
    down, up = lora.halves_of(name)
    if stage.lora is None or down not in state.shapes:
        return tensor
    scale = stage.lora.alpha / stage.lora.rank
    return lora.merged(tensor, _whole(state, down), _whole(state, up), scale)


def write_adapter(
    state: SavedState,
    base: Path,
    base_sha256: str,
    stage: StageSettings,
    folder: Path,
    card: str = "",
) -> None:
    """The adapter's own folder, loaded once before it has its name. `card`: see `write_model`.

    Raises RunError E1503 and E1511, SettingsError E1001 without an adapter, or for one whose
    attention the base does not have.
    """
    if stage.lora is None:
        raise SettingsError("E1001", "--adapter: the stage trained none; leave it out.")
    config, stored = weights.read_headers(base)
    if stage.attention != config.attention:
        text = f"it was trained with attention={stage.attention}, its base has {config.attention}"
        raise SettingsError("E1001", f"--adapter: {text}; without --adapter it is merged.")
    dtype = STORED_DTYPES[next(iter(stored.values())).dtype]  # no copy is made
    model = weights.load(base, dtype)
    choose_trainable(model, stage)
    lora.add_lora(model, stage.lora)
    tensors = {name: _whole(state, name) for name in state.shapes}
    with new_folder(folder, sum(tensor.nbytes for tensor in tensors.values())) as partial:
        lora.save_adapter(model, partial, base_sha256, stage.lora, tensors)
        if card:
            (partial / CARD).write_text(card, encoding="utf-8")
        lora.load_adapter(weights.load(base, dtype), partial, base_sha256)


def _whole(state: SavedState, name: str) -> Tensor:
    return state.whole(name).reshape(state.shapes[name])
