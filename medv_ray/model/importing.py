"""Folders of torch pickles (`.bin`, `.pt`, `.pth`) into safetensors, offline, nothing of them run.

Names, shapes and dtypes are compared with config.json before a tensor is read; tensors then go from
file to file one shard at a time, in their own dtype and under their own names (`weights.load` knows
both layouts). The new folder appears under its name when it is whole and checked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from medv_ray import __version__
from medv_ray.errors import CheckpointError, SettingsError
from medv_ray.files import file_sha256
from medv_ray.model import weights
from medv_ray.model.config import ModelConfig
from medv_ray.model.new_folder import check_free, new_folder
from medv_ray.model.pickles import Pickled, check_storages, contents, read_tensor
from medv_ray.model.shards import (
    DTYPES,
    PICKLES,
    inside,
    join,
    published_name,
    read_json,
    require,
    weight_map,
)

INDEX = "pytorch_model.bin.index.json"
PROJECTOR = "mm_projector.bin"
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
# what trainers leave beside weights
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")
_NUMBERED = re.compile(r".+-(\d{5})-of-(\d{5})\.\w+")
# one shard and a copy of it are in memory at a time
SHARD_BYTES = 2 * 10**9
LICENCE_BYTES = 2**16
KNOWN_LICENCES = (
    "LLaDA-MedV: ASU Non-Commercial License (academic, non-commercial use; finetuned weights stay "
    "under it). LLaDA-V: Apache-2.0. LLaDA-8B: its model card says MIT."
)


@dataclass(frozen=True)
class Imported:
    """What came out. `note` is import.json."""

    note: dict[str, Any]
    num_tensors: int
    num_bytes: int


def import_folder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    licence: str | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Imported:
    """Write `out`, a folder that `weights.load` reads.

    Args:
        source: folder with config.json, pickled weights and, if it has any, tokenizer files.
        out: must not exist, or be empty.
        licence: of the weights. None: what the source folder says.
        max_shard_bytes: of an output file.

    Raises SettingsError E1001 (nothing to import, `out` in use), RunError E1503 and E1511 (not
    written), and CheckpointError E1401 (file missing), E1402 .. E1404 (not what config.json needs),
    E1405 (not finite), E1407 (damaged), E1409, E1410, E1412 (more than dense tensors), E1413
    (limits passed).
    """
    folder, target = Path(source).absolute(), Path(out).absolute()
    check_free(target)
    raw = read_json(folder, "config.json")
    files = weight_files(folder)
    entries, left_out = _collect(folder, files)
    stored = {published_name(name): entry for name, entry in entries.items()}
    config = ModelConfig.from_json(raw, {name: entry.shape for name, entry in stored.items()})
    weights.compare(config, stored)
    check_storages(entries.values())
    note = {
        "sources": {name: file_sha256(folder / name) for name in files},
        "left_out": left_out,
        "licence": licence_of(folder, licence),
        "versions": {"medv_ray": __version__, "torch": version("torch")},
    }
    size = sum(entry.num_bytes for entry in entries.values())
    with new_folder(target, size) as partial:
        _write(folder, partial, raw, entries, note, max_shard_bytes)
    return Imported(note, len(entries), size)


def weight_files(folder: Path) -> list[str]:
    """Names of the files to import; optimizer states and the like are passed over.

    Raises SettingsError E1001 without a pickle, CheckpointError E1401 and E1409.
    """
    require(folder, ["config.json"])
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    if any(name.endswith(".safetensors") for name in names):
        raise SettingsError(
            "E1001", f"{folder.name!r} holds safetensors already: nothing to import."
        )
    pickled = [n for n in names if n.endswith(PICKLES) and not _NO_WEIGHTS.fullmatch(n)]
    if INDEX in names:
        listed = sorted({str(file) for file in weight_map(folder, INDEX).values()})
        for name in listed:
            inside(name, PICKLES, INDEX)
        require(folder, listed)
        return listed + [name for name in (PROJECTOR,) if name in names and name not in listed]
    parts = [name for name in pickled if name.startswith("pytorch_model")]
    if parts:
        pickled = parts + [name for name in (PROJECTOR,) if name in names]
    if not pickled:
        raise SettingsError("E1001", f"{folder.name!r} holds no .bin, .pt or .pth weights.")
    for name in pickled:
        if match := _NUMBERED.fullmatch(name):
            require(folder, _siblings(name, int(match[2])))
    return pickled


def _siblings(name: str, count: int) -> list[str]:
    """All numbered shards of the set that one of them belongs to."""
    if not 0 < count < 10_000:
        raise CheckpointError("E1401", f"{name[:120]} names {count} shards.")
    return [
        re.sub(r"-\d{5}-of-", lambda _, n=number: f"-{n:05d}-of-", name)  # type: ignore[misc]
        for number in range(1, count + 1)
    ]


def _collect(folder: Path, files: list[str]) -> tuple[dict[str, Pickled], list[str]]:
    """Every tensor of the files by name. One that two files hold alike counts once.

    Raises CheckpointError E1403 for an adapter, or a tensor that is stored twice with two contents.
    """
    found: dict[str, Pickled] = {}
    left_out: list[str] = []
    for file in files:
        tensors, others = contents(folder / file)
        left_out += [f"{file}: {name}" for name in others]
        if all(name.startswith("module.") for name in tensors):  # torch's data-parallel wrappers
            tensors = {name.removeprefix("module."): entry for name, entry in tensors.items()}
        adapter = [name for name in tensors if name.startswith("base_model.")]
        if adapter:
            raise CheckpointError(
                "E1403",
                f"{file} is of a LoRA adapter ({join(adapter)}): merge it with its base "
                "where it was trained.",
            )
        for name, entry in tensors.items():
            if name.endswith("rotary_emb.inv_freq"):
                left_out.append(f"{file}: {name}")
                continue
            before = found.setdefault(name, entry)
            if before is not entry and not _same(before, entry):
                raise CheckpointError(
                    "E1403", f"{name[:120]} is stored twice: {before.file.name} and {file} differ."
                )
    twice = {published_name(name) for name in found}
    if len(twice) < len(found):
        raise CheckpointError("E1403", "tensors are stored under both naming layouts.")
    return found, left_out


def _same(a: Pickled, b: Pickled) -> bool:
    alike = (a.dtype, a.shape) == (b.dtype, b.shape)
    return alike and a.dtype in DTYPES and torch.equal(read_tensor(a), read_tensor(b))


def _write(
    source: Path,
    partial: Path,
    raw: dict[str, Any],
    entries: dict[str, Pickled],
    note: dict[str, Any],
    max_shard_bytes: int,
) -> None:
    """Fill a folder and check it. Completes `note`."""
    sizes = {name: entries[name].num_bytes for name in sorted(entries)}
    weights.write_shards(partial, sizes, lambda name: read_tensor(entries[name]), max_shard_bytes)
    weights.copy_files(source, partial, (*weights.TOKENIZER_FILES, *LICENCES))
    # what auto_map names is code that does not come along
    config = {name: value for name, value in raw.items() if name != "auto_map"}
    weights.write_json(partial / "config.json", config)
    weights.check(partial)
    note["sha256"] = weights.digest(partial)
    weights.write_json(partial / weights.IMPORT_NOTE, note)


def licence_of(folder: Path, given: str | None) -> dict[str, str | None]:
    """The text of the weights' licence, and who says so: the user, a file, or nobody (None)."""
    if given:
        return {"text": given, "from": "--licence"}
    for name in LICENCES:
        if (folder / name).is_file():
            return {"text": _text(folder / name), "from": name}
    said = _text(folder / "README.md") if (folder / "README.md").is_file() else ""
    if found := card_value(said, "license"):
        return {"text": found, "from": "README.md"}
    return {"text": None, "from": None}


def card_value(card: str, name: str) -> str | None:
    """What a model card's YAML says of a name, of a list the first; None for nothing."""
    match = re.search(rf"^{name}:[ \t]*(?:\n[ \t]*-[ \t]+)?(\S.*)$", card, re.MULTILINE)
    if match is None:
        return None
    try:
        value = yaml.safe_load(match[1])
    except yaml.YAMLError:
        value = match[1]
    return value if isinstance(value, str | None) else match[1].strip()


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(LICENCE_BYTES).decode(errors="replace")
