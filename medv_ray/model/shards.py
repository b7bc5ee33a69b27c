"""What a checkpoint folder holds, by its index, its files' headers and their digests.

Only safetensors and JSON are opened: a pickle can run code, and so can what `auto_map` names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from medv_ray.errors import CheckpointError
from medv_ray.files import file_sha256

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What weights may be stored as, by safetensors' names."""
# OLMo spelling, below `model.transformer.`, of the published LLaMA-style names.
_OLMO = {
    "wte": "model.embed_tokens",
    "ln_f": "model.norm",
    "ff_out": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "blocks.ff_out": "mlp.down_proj",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def published_name(name: str) -> str:
    """The LLaMA-style name of a tensor; names of the OLMo layout are translated, others kept."""
    match = re.fullmatch(r"model\.transformer\.(?:blocks\.(\d+)\.)?(\w+)\.weight", name)
    if not match:
        return name
    layer, part = match.groups()
    if layer is None:
        return f"{_OLMO[part]}.weight" if part in ("wte", "ln_f", "ff_out") else name
    part = _OLMO.get(f"blocks.{part}") or _OLMO.get(part, "?")
    return name if part == "?" else f"model.layers.{layer}.{part}.weight"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError E1401 without the file, E1410 for anything else."""
    require(folder, [name])
    try:
        raw = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise CheckpointError("E1410", f"{name} is not a JSON object.")
    return raw


def require(folder: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError E1401 naming the files that are not there."""
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        what = f"folder {folder.name!r} lacks"
        if not folder.is_dir():
            held = f"{folder.name!r} is a file" if folder.exists() else f"no folder {folder.name!r}"
            what = f"{held}: it would be a folder with"
        raise CheckpointError("E1401", f"{what} {join(absent)}.")


def join(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(name[:120] for name in ordered[:5]) + more


def files_sha256(files: Iterable[Path]) -> str:
    """64 hex digits over name and content of some files, whatever their order."""
    ordered = sorted(files)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        sums = list(pool.map(file_sha256, ordered))
    lines = [f"{file.name} {value}\n" for file, value in zip(ordered, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shards(folder: Path) -> list[str]:
    """Names of the weight files, all present, none outside the folder, none a pickle."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / INDEX).is_file():
        names = sorted({str(file) for file in weight_map(folder).values()})
        for name in names:
            if Path(name).suffix in PICKLES:
                raise CheckpointError("E1406", f"{INDEX} names {name[:120]!r}.")
            inside(name, (".safetensors",), INDEX)
        require(folder, names)
        return names
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
    if not names and pickles:
        raise CheckpointError("E1406", f"the weights are {join(pickles)}.")
    if len(names) != 1:
        raise CheckpointError(
            "E1401", f"folder {folder.name!r} lacks {SINGLE if not names else INDEX}."
        )
    return names


def inside(name: str, suffixes: tuple[str, ...], index: str) -> None:
    """Raises CheckpointError E1409 unless the name is of a file of this kind in the folder."""
    if Path(name).name != name or "\\" in name or Path(name).suffix not in suffixes:
        raise CheckpointError("E1409", f"{index} names {name[:120]!r}.")


def weight_map(folder: Path, index: str = INDEX) -> dict[str, Any]:
    """Tensor -> file by an index. Raises CheckpointError E1401, E1407, E1410."""
    found = read_json(folder, index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError("E1407", f"{index} has no weight_map.")
    return found


def headers(folder: Path) -> dict[str, Stored]:
    """Every tensor by its published name.

    Raises CheckpointError E1401, E1403 (stored twice), E1406, E1407 or E1409.
    """
    found: dict[str, Stored] = {}
    for file in _shards(folder):
        with open_shard(folder / file) as handle:
            for name in handle.keys():  # noqa: SIM118  # the handle is no dict
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # old exports store the RoPE table; it follows from the config
                part = handle.get_slice(name)
                entry = Stored(folder / file, name, tuple(part.get_shape()), part.get_dtype())
                if published_name(name) in found:
                    raise CheckpointError("E1403", f"{name} is stored twice.")
                found[published_name(name)] = entry
    return found


def open_shard(file: Path) -> Any:
    """safetensors' handle, a memory map. Raises CheckpointError E1407."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError("E1407", f"{file.name}: {str(why)[:120]}.") from None
