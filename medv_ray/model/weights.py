"""Checkpoint folders: safetensors and config.json in, a `Medv` out, and back.

Tensors are read through memory maps into a model built on the meta device. A tensor of the wanted
dtype stays a (private) map of the file, so processes of one machine share its pages; others are
converted one by one, largest first, each through a map of its own that ends with it. Host memory
thus stays within a tenth of the loaded weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.model.config import ModelConfig
from medv_ray.model.medv import Medv
from medv_ray.model.shards import (
    INDEX,
    SINGLE,
    Stored,
    headers,
    join,
    open_shard,
    read_json,
    require,
)

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
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


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
    with torch.device("meta"), _NoInit():
        model = Medv(config, logit_size)
    _compare(model, stored)
    model.load_state_dict(dict(_tensors(stored, dtype, torch.device(device))), assign=True)
    return model.eval().requires_grad_(False)


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
    max_shard_bytes: int = 5 * 10**9,
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
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    shards = _split(state, max_shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        shard = {name: state[name].cpu() for name in names}
        save_file(shard, folder / f"{file}.tmp", metadata={"format": "pt"})
        os.chmod(folder / f"{file}.tmp", 0o644)  # safetensors lets nobody but the owner read
        os.replace(folder / f"{file}.tmp", folder / file)
    if len(shards) > 1:
        owner = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        size = sum(tensor.nbytes for tensor in state.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": owner})
    if tokenizer_files_from is not None:
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_files_from) / name).is_file():
                shutil.copyfile(Path(tokenizer_files_from) / name, folder / name)
    dtype = str(model.dtype).removeprefix("torch.")
    # last: a folder without config.json is refused, so a save that was cut short is never loaded
    _write_json(folder / "config.json", model.config.to_json() | {"torch_dtype": dtype})


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 over name and content of every weight, config and tokenizer file, 64 hex digits.

    Raises CheckpointError E1401 when there is no config.json.
    """
    folder = Path(path).absolute()  # "." has no name to show
    require(folder, ["config.json"])
    kinds = {".safetensors", ".json", ".jinja", ".txt"}
    files = sorted(f for f in folder.iterdir() if f.suffix in kinds and f.is_file())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        sums = list(pool.map(_file_sha256, files))
    lines = [f"{file.name} {value}\n" for file, value in zip(files, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_json(file: Path, value: dict[str, Any]) -> None:
    partial = file.with_name(file.name + ".tmp")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    os.replace(partial, file)


def _compare(model: Medv, stored: dict[str, Stored]) -> None:
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
        f"{name} is {entry.dtype}" for name, entry in stored.items() if entry.dtype not in _DTYPES
    ]
    if packed:
        raise CheckpointError("E1410", f"weights must be {', '.join(_DTYPES)}: {join(packed)}.")


def _tensors(
    stored: dict[str, Stored], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the wanted dtype and place, checked to be finite there."""
    shared: dict[Path, Any] = {}
    # largest first: the source of a conversion is then small beside what is already converted
    for name, entry in sorted(stored.items(), key=lambda item: -math.prod(item[1].shape)):
        if _DTYPES[entry.dtype] == dtype and device.type == "cpu":
            handle = shared.get(entry.file) or shared.setdefault(entry.file, open_shard(entry.file))
        else:
            handle = open_shard(entry.file)
        tensor = handle.get_tensor(entry.name).to(device=device, dtype=dtype)
        # smallest and largest value are NaN if any is; float16 overflows to inf; no copy is made
        if not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
            raise CheckpointError("E1405", f"{entry.name} is not finite as {dtype}.")
        yield name, tensor


def _split(state: dict[str, Tensor], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, cut where a shard would grow past the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
