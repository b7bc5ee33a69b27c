"""Low-rank adapters on the language tower, through peft: y = W x + (alpha / rank) B A x.

An adapter folder is peft's own (adapter_config.json, adapter_model.safetensors) and adapter.json,
which says what it was trained on. Loading goes by adapter.json and the tensors; of peft's config it
is only asked whether it agrees, as its other fields can name code. A projector or vision tower that
was trained beside the adapter lies in the same file, whole (peft's `modules_to_save`).

peft is imported when an adapter is made or loaded. Shapes: A [rank, in], B [out, rank].
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medv_ray import __version__
from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.files import file_sha256
from medv_ray.model.llada import Linear
from medv_ray.model.medv import Medv
from medv_ray.model.shards import (
    DTYPES,
    Stored,
    files_sha256,
    join,
    open_shard,
    read_json,
    require,
)
from medv_ray.model.weights import write_json
from medv_ray.settings import LoraSettings, build

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
NOTE = "adapter.json"
WHOLE = ("model.mm_projector", "model.vision_tower")
"""Modules that may have been trained whole beside the adapter."""
_PREFIX = "base_model.model."  # before each name in peft's files
_ADAPTER = "default"  # peft's name for an only adapter, inside the model


def add_lora(model: Medv, settings: LoraSettings, seed: int = 0) -> None:
    """Put fresh adapters into the language tower's layers and freeze all else of that tower.

    B is zero, so that the model computes what it did. A is uniform in +-1 / sqrt(in), peft's own
    choice, drawn from the seed and the matrix's name. Projector and vision tower stay as trainable
    as they were. Adapters of a model in half precision are float32. Before parameters are
    partitioned (ZeRO-3). Raises SettingsError E1003 without peft.
    """
    trained = [p for name in WHOLE for p in _parameters(model, name) if p.requires_grad]
    layers = _inject(model, settings)
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for name, layer in layers.items():
        drawn_from = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(drawn_from))
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        drawn = torch.rand(down.shape, generator=generator) * 2 - 1
        with torch.no_grad():
            down.copy_(drawn / math.sqrt(down.shape[1]))
            up.zero_()
        down.requires_grad_(True)
        up.requires_grad_(True)


def save_adapter(
    model: Medv,
    folder: str | os.PathLike[str],
    base_digest: str,
    settings: LoraSettings,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter, and with it what else was trainable.

    Args:
        model: with adapters.
        folder: created if needed; must hold no adapter yet.
        base_digest: `weights.digest` of the folder that the model was loaded from.
        settings: that the adapters were made with.
        state: tensors, any[...], by the names of `model.state_dict()`, where the model's own are
            partitioned.

    Raises SettingsError E1001 for a folder in use, CheckpointError E1405 for NaN or Inf.
    """
    out = Path(folder).absolute()
    if any((out / name).exists() for name in (CONFIG, TENSORS, NOTE)):
        raise SettingsError("E1001", f"folder {out.name!r} already holds an adapter; take another.")
    state = model.state_dict() if state is None else state
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    whole = [name for name in trained if ".lora_" not in name]
    # of one that was loaded it is not known what was trained beside it
    assert len(whole) < len(trained), "this adapter was not trained here: copy its folder"
    assert all(name.startswith(WHOLE) for name in whole), "the language tower is not frozen"
    tensors = {_PREFIX + name: state[name] for name in whole}
    for name in _adapted(model):
        for half in ("lora_A", "lora_B"):
            tensors[f"{_PREFIX}{name}.{half}.weight"] = state[f"{name}.{half}.{_ADAPTER}.weight"]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError("E1405", f"not finite, so not saved: {join(bad)}.")
    out.mkdir(parents=True, exist_ok=True)
    config = _config(settings)
    config.modules_to_save = [part for part in WHOLE if any(n.startswith(part) for n in whole)]
    config.save_pretrained(str(out))
    save_file(tensors, out / TENSORS, metadata={"format": "pt"})
    os.chmod(out / TENSORS, 0o644)  # safetensors lets nobody but the owner read
    note = {
        "base_sha256": base_digest,
        "settings": settings.model_dump(mode="json"),
        "files": {name: file_sha256(out / name) for name in (CONFIG, TENSORS)},
        "versions": {"medv_ray": __version__, "peft": version("peft")},
    }
    write_json(out / NOTE, note)  # last: without it, a save that was cut short is refused


def load_adapter(
    model: Medv, folder: str | os.PathLike[str], base_digest: str, merge: bool = False
) -> None:
    """Put a saved adapter into its base model, beside the weights or merged into them.

    A refused adapter leaves the model as it was, but for a sum that is not finite once merged.

    Raises SettingsError E1003 without peft, and CheckpointError E1401 (file missing), E1402 and
    E1403 (tensors that the settings do or do not call for), E1404 (shape, rank), E1405 (not
    finite), E1407 (damaged), E1410 (no such adapter), E1411 (trained on another base).
    """
    home = Path(folder).absolute()
    settings = _read_settings(home, base_digest)
    found = _read_tensors(model, home, settings)
    layers = _inject(model, settings)
    for name, layer in layers.items():
        for half in ("lora_A", "lora_B"):
            tensor = found.pop(f"{name}.{half}.weight")
            # as peft does: half precision is too coarse for a product of two matrices
            wide = tensor.to(model.device, torch.promote_types(tensor.dtype, torch.float32))
            getattr(layer, half)[_ADAPTER].weight = nn.Parameter(wide, requires_grad=False)
    for name, tensor in found.items():
        module, _, leaf = name.rpartition(".")
        before = model.get_parameter(name)
        made = tensor.to(before.device, before.dtype)
        setattr(model.get_submodule(module), leaf, nn.Parameter(made, requires_grad=False))
    if merge:
        merge_lora(model)


def sharing_copy(model: Medv) -> Medv:
    """A model of its own modules that holds the same tensors, for another adapter."""
    held: list[Any] = [*model.parameters(), *model.buffers()]
    held += [m.packed for m in model.modules() if isinstance(m, Linear) and m.packed is not None]
    return copy.deepcopy(model, {id(one): one for one in held})


@torch.no_grad()
def merge_lora(model: Medv) -> None:
    """Add each adapter to its matrix, in float32, and take it out: a plain Medv again.

    Raises CheckpointError E1405 when a sum is not finite in the model's dtype.
    """
    for name, layer in _adapted(model).items():
        base: Linear = layer.get_base_layer()
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        total = merged(base.weight, down, up, layer.scaling[_ADAPTER]).to(base.weight.dtype)
        if not bool(total.isfinite().all()):
            raise CheckpointError("E1405", f"{name} is not finite once its adapter is merged.")
        # a new tensor: the old one may be a map of the file
        base.weight = nn.Parameter(total, requires_grad=base.weight.requires_grad)
        base.packed = None
        model.set_submodule(name, base)


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A, float[out, in] in float32 or wider; A is `down`, float[r, in], and B `up`,
    float[out, r]."""
    wide = torch.promote_types(down.dtype, torch.float32)
    return weight.to(wide) + scale * (up.to(wide) @ down.to(wide))


def halves_of(name: str) -> tuple[str, str]:
    """Names that A and B of a matrix have in a model with adapters."""
    stem = name.removesuffix(".weight")
    return f"{stem}.lora_A.{_ADAPTER}.weight", f"{stem}.lora_B.{_ADAPTER}.weight"


def adapter_digest(folder: str | os.PathLike[str]) -> str:
    """sha256 over the adapter's three files, 64 hex digits. Raises CheckpointError E1401."""
    home = Path(folder).absolute()
    require(home, [NOTE, CONFIG, TENSORS])
    return files_sha256(home / name for name in (NOTE, CONFIG, TENSORS))


def check_base(folder: str | os.PathLike[str], base_digest: str) -> None:
    """Raises CheckpointError E1401 without an adapter, E1411 for one of another base."""
    home = Path(folder).absolute()
    trained_on = str(read_json(home, NOTE).get("base_sha256"))
    if trained_on != base_digest:
        raise CheckpointError(
            "E1411",
            f"adapter {home.name!r} was trained on weights {trained_on[:12]}, the model folder "
            f"has {base_digest[:12]}.",
        )


def _read_settings(folder: Path, base_digest: str) -> LoraSettings:
    """Of an undamaged adapter of this base."""
    check_base(folder, base_digest)
    note, config = read_json(folder, NOTE), read_json(folder, CONFIG)
    require(folder, [TENSORS])
    for name in (CONFIG, TENSORS):
        sums = note.get("files")
        if not isinstance(sums, dict) or sums.get(name) != file_sha256(folder / name):
            raise CheckpointError("E1407", f"{name} does not match the checksum in {NOTE}.")
    try:
        settings = build(LoraSettings, note.get("settings"))  # type: ignore[arg-type]
    except SettingsError as error:
        raise CheckpointError("E1410", f"{NOTE}: {error.detail}") from None
    want = {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": _pattern(settings),
    }
    wrong = [name for name, value in want.items() if config.get(name) != value]
    if wrong:
        raise CheckpointError("E1407", f"{NOTE} and {CONFIG} do not agree on {join(wrong)}.")
    return settings


def _read_tensors(model: Medv, folder: Path, settings: LoraSettings) -> dict[str, Tensor]:
    """By name without peft's prefix, each of the shape that the model calls for, and finite."""
    handle = open_shard(folder / TENSORS)
    stored: dict[str, Stored] = {}
    for name in handle.keys():  # noqa: SIM118  # the handle is no dict
        part = handle.get_slice(name)
        short = name.removeprefix(_PREFIX)
        stored[short] = Stored(folder / TENSORS, name, tuple(part.get_shape()), part.get_dtype())
    wanted: dict[str, tuple[int, ...]] = {}
    for name, module in _targets(model, settings).items():
        wanted[f"{name}.lora_A.weight"] = (settings.rank, module.in_features)
        wanted[f"{name}.lora_B.weight"] = (module.out_features, settings.rank)
    whole = {n: tuple(t.shape) for n, t in model.state_dict().items() if n.startswith(WHOLE)}
    wanted |= {name: shape for name, shape in whole.items() if name in stored}
    if missing := wanted.keys() - stored.keys():
        raise CheckpointError("E1402", f"the adapter lacks {join(missing)}.")
    if unexpected := stored.keys() - wanted.keys():
        raise CheckpointError("E1403", f"the adapter holds {join(unexpected)}.")
    wrong = [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if stored[name].shape != shape or stored[name].dtype not in DTYPES
    ]
    if wrong:
        raise CheckpointError("E1404", f"adapter of rank {settings.rank}: {join(wrong)}.")
    tensors: dict[str, Tensor] = {n: handle.get_tensor(e.name) for n, e in stored.items()}
    bad = [n for n, t in tensors.items() if not bool(t.to(_dtype(model, n)).isfinite().all())]
    if bad:
        raise CheckpointError("E1405", f"{join(bad)}: not finite.")
    return tensors


def _dtype(model: Medv, name: str) -> torch.dtype:
    """In which a tensor of an adapter is used."""
    return model.dtype if name.startswith(WHOLE) else torch.float32


def _targets(model: Medv, settings: LoraSettings) -> dict[str, Linear]:
    """The matrices that get an adapter, by name."""
    return {
        f"model.layers.{name}": module
        for name, module in model.model.layers.named_modules()
        if isinstance(module, Linear) and name.rpartition(".")[2] in settings.targets
    }


def _pattern(settings: LoraSettings) -> str:
    """The same for peft. The vision tower has a `q_proj` too, hence whole names."""
    return rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(settings.targets)})"


def _inject(model: Medv, settings: LoraSettings) -> dict[str, Any]:
    """Replace the matrices by peft's layers around them; those by name."""
    config = _config(settings)
    import peft

    assert not _adapted(model), "merge the adapter before another one is added"
    with torch.random.fork_rng(devices=[]):  # peft draws weights that are overwritten
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    layers = _adapted(model)
    for layer in layers.values():
        layer.train(model.training)
    return layers


def _config(settings: LoraSettings) -> Any:
    """peft's own settings object. Raises SettingsError E1003."""
    try:
        import peft
    except ImportError:
        raise SettingsError(
            "E1003", "LoRA adapters need the package peft: pip install 'medv-ray[train]'."
        ) from None
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_pattern(settings),
    )


def _adapted(model: Medv) -> dict[str, Any]:
    """peft's layers by the name of the matrix inside; none where there is no peft."""
    return {n: module for n, module in model.named_modules() if hasattr(module, "lora_A")}


def _parameters(model: Medv, name: str) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if n.startswith(name + ".")]
