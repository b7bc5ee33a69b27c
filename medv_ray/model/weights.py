"""Checkpoint folders: safetensors and config.json in, a `Medv` out, and back.

Tensors are read through memory maps into a model built on the meta device. A tensor of the wanted
dtype stays a (private) map of the file, so processes of one machine share its pages; others are
converted one by one, largest first, each through a map of its own that ends with it. Host memory
thus stays within a tenth of the loaded weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.files import put_in_place, sync, write_atomic
from medv_ray.model.config import ModelConfig
from medv_ray.model.medv import Medv
from medv_ray.model.shards import (
    DTYPES,
    INDEX,
    SINGLE,
    Stored,
    files_sha256,
    headers,
    join,
    open_shard,
    read_json,
    require,
)
from medv_ray.settings import CALIBRATION

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
SHARD_BYTES = 5 * 10**9
IMPORT_NOTE = "import.json"
"""Says where imported weights come from; no answer depends on it."""
NOTES = (IMPORT_NOTE, CALIBRATION)
"""What is written beside weights about them; their digest leaves it out."""


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    logit_size: int | None = None,
) -> Medv:
    """A model in evaluation mode, without gradients.

    Args:
        path: folder with config.json and safetensors, of either key layout, in one file or sharded.
        dtype: of the weights in memory.
        device: where they go, tensor by tensor.
        logit_size: rows of the head that take part; None takes all.

    Raises CheckpointError E1401 (file missing), E1402 (tensor missing), E1403 (unexpected),
    E1404 (shape), E1405 (not finite), E1406 (pickle), E1407 (corrupt file), E1408 (more logits
    than the head has), E1409 (index leaves the folder), E1410 (another kind of model).
    """
    folder = Path(path).absolute()  # "." has no name to show
    raw = read_json(folder, "config.json")
    stored = headers(folder)
    config = ModelConfig.from_json(raw, {name: entry.shape for name, entry in stored.items()})
    vocab_size = config.language.vocab_size
    if logit_size is not None and not 0 < logit_size <= vocab_size:
        raise CheckpointError("E1408", f"{logit_size} logits asked of a head of {vocab_size} rows.")
    model = without_weights(config, logit_size)
    _compare(model, stored)
    model.load_state_dict(dict(_tensors(stored, dtype, torch.device(device))), assign=True)
    return model.eval().requires_grad_(False)


def compare(config: ModelConfig, stored: Mapping[str, Stored]) -> None:
    """Raises CheckpointError E1402, E1403, E1404, E1410 unless `stored` is what `config` needs."""
    _compare(without_weights(config), stored)


def read_headers(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Stored]]:
    """Config and tensors of a folder, no data read. Raises as `load`, but for what data show."""
    folder = Path(path).absolute()
    raw, stored = read_json(folder, "config.json"), headers(folder)
    config = ModelConfig.from_json(raw, {name: entry.shape for name, entry in stored.items()})
    compare(config, stored)
    return config, stored


def check(path: str | os.PathLike[str]) -> None:
    """Whatever `load` would refuse, without a model in memory. Raises as `load`."""
    for name, entry in read_headers(path)[1].items():
        for _ in _tensors({name: entry}, DTYPES[entry.dtype], torch.device("cpu")):
            pass


def without_weights(config: ModelConfig, logit_size: int | None = None) -> Medv:
    """A model whose tensors have shapes and no memory; for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"), _NoInit():
        return Medv(config, logit_size)


class _NoInit(TorchFunctionMode):
    """Modules get no random weights: on meta the first draw would import torch's compiler."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def save(
    model: Medv,
    path: str | os.PathLike[str],
    tokenizer_files_from: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder in LLaDA-V's layout that `load` reads back to the bit.

    Args:
        model: its dtype is written too.
        path: created if needed; must not hold weights yet.
        tokenizer_files_from: folder whose tokenizer files are copied along.
        max_shard_bytes: shards are filled up to here; a larger tensor gets one of its own.

    Raises SettingsError E1001 when the folder already holds weights.
    """
    folder = Path(path).absolute()  # "." has no name to show
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors*")):
        raise SettingsError("E1001", f"folder {folder.name!r} already holds weights; take another.")
    state = model.state_dict()
    assert not any(".base_layer." in name for name in state), "merge the adapter before saving"
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    write_shards(folder, sizes, lambda name: state[name].detach(), max_shard_bytes)
    if tokenizer_files_from is not None:
        copy_files(tokenizer_files_from, folder, TOKENIZER_FILES)
    dtype = str(model.dtype).removeprefix("torch.")
    # last: a folder without config.json is refused, so a save that was cut short is never loaded
    write_json(folder / "config.json", model.config.to_json() | {"torch_dtype": dtype})


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    tensor: Callable[[str], Tensor],
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Weights and, for more than one file, their index.

    Args:
        folder: exists, without weights.
        sizes: bytes of each tensor, in the order of the files.
        tensor: gives a tensor, any[...], when its file is written; one file's tensors are held at a
            time.
        max_shard_bytes: shards are filled up to here; a larger tensor gets one of its own.
    """
    shards = _split(sizes, max_shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        shard = {name: tensor(name).contiguous().cpu() for name in names}
        hidden = folder / f"{file}.tmp"
        save_file(shard, hidden, metadata={"format": "pt"})
        os.chmod(hidden, 0o644)  # safetensors lets nobody but the owner read
        sync(hidden)
        put_in_place(hidden, folder / file)
    if len(shards) > 1:
        owner = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": total, "weight_map": owner})


def copy_files(source: str | os.PathLike[str], folder: Path, names: Iterable[str]) -> list[str]:
    """Copy those of the named files that are there; their names."""
    found = [name for name in names if (Path(source) / name).is_file()]
    for name in found:
        shutil.copyfile(Path(source) / name, folder / name)
    return found


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 over name and content of every weight, config and tokenizer file, 64 hex digits.

    Raises CheckpointError E1401 when there is no config.json.
    """
    folder = Path(path).absolute()  # "." has no name to show
    require(folder, ["config.json"])
    kinds = {".safetensors", ".json", ".jinja", ".txt"}
    return files_sha256(
        file
        for file in folder.iterdir()
        if file.suffix in kinds and file.name not in NOTES and file.is_file()
    )


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Replace the file in one step."""
    write_atomic(file, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _compare(model: Medv, stored: Mapping[str, Stored]) -> None:
    """Names, shapes and dtypes before any data: nothing is filled in, cut or left over."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing:
        also = f" Not asked for: {join(unexpected)}." if unexpected else ""
        raise CheckpointError("E1402", f"missing: {join(missing)}.{also}")
    if unexpected:
        raise CheckpointError("E1403", f"unexpected: {join(unexpected)}.")
    wrong = [
        f"{name} is {list(stored[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if stored[name].shape != shape
    ]
    if wrong:
        raise CheckpointError("E1404", f"{join(wrong)}.")
    packed = [
        f"{name} is {entry.dtype}" for name, entry in stored.items() if entry.dtype not in DTYPES
    ]
    if packed:
        raise CheckpointError("E1410", f"weights must be {', '.join(DTYPES)}: {join(packed)}.")


def _tensors(
    stored: dict[str, Stored], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the wanted dtype and on the wanted device, checked to be finite there."""
    shared: dict[Path, Any] = {}
    # largest first: the source of a conversion is then small beside what is already converted
    for name, entry in sorted(stored.items(), key=lambda item: -math.prod(item[1].shape)):
        if DTYPES[entry.dtype] == dtype and device.type == "cpu":
            handle = shared.get(entry.file) or shared.setdefault(entry.file, open_shard(entry.file))
        else:
            handle = open_shard(entry.file)
        tensor = handle.get_tensor(entry.name).to(device=device, dtype=dtype)
        # smallest and largest value are NaN if any is; float16 overflows to inf; no copy is made
        if not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
            raise CheckpointError("E1405", f"{entry.name} is not finite as {dtype}.")
        yield name, tensor


def _split(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, cut where a shard would grow past the limit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
