"""Kinds 89 to 98: folders of weights that hold more, or less, or something else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from medv_ray.model import lora, weights
from medv_ray.settings import TOY, LoraSettings
from tests.corpus.kinds import Kind

WEIGHTS, INDEX = "model.safetensors", weights.INDEX
SPRUNG = "sprung"
"""What a payload writes, beside the folder of its checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that is loaded, and what else a path is asked to take."""

    model: Path | None = None
    source: Path | None = None
    """Pickles, for jobs/import_checkpoint.py."""
    adapter: Path | None = None
    run: Path | None = None
    """Of a training that is to go on."""

    @property
    def sprung(self) -> bool:
        """Whether a payload has run."""
        folders = (self.model, self.source, self.run)
        return any(one is not None and (one.parent / SPRUNG).exists() for one in folders)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / SPRUNG}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def toy(folder: Path, name: str = "model", *left_out: str) -> Path:
    """A copy of the toy."""
    made = folder / name
    shutil.copytree(TOY, made, ignore=shutil.ignore_patterns("README.md", *left_out))
    return made


@cache
def tensors() -> dict[str, torch.Tensor]:
    return dict(load_file(TOY / WEIGHTS))


def edited(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], Checkpoint]:
    """The toy with other tensors, as safetensors and as a pickle."""

    def make(folder: Path) -> Checkpoint:
        held = dict(tensors())
        change(held)
        model, source = toy(folder), toy(folder, "source", WEIGHTS)
        save_file(held, model / WEIGHTS, metadata={"format": "pt"})
        torch.save(held, source / "pytorch_model.bin")
        return Checkpoint(model, source)

    return make


def some(held: Mapping[str, torch.Tensor]) -> str:
    """A tensor that stands in any such model."""
    return next(name for name in held if name.endswith("norm.weight"))


def with_value(value: float) -> Callable[[Path], Checkpoint]:
    def change(held: dict[str, torch.Tensor]) -> None:
        changed = held[some(held)].clone()
        changed[3] = value
        held[some(held)] = changed

    return edited(change)


def cut(rows: bool) -> Callable[[Path], Checkpoint]:
    """A norm that is too short, or an embedding of fewer tokens."""

    def change(held: dict[str, torch.Tensor]) -> None:
        name = next(n for n in held if "embed_tokens" in n or "wte" in n) if rows else some(held)
        held[name] = held[name][:-1].clone()

    return edited(change)


def pickled(file: str) -> Callable[[Path], Checkpoint]:
    """A payload for weights, with weights of the same names around it."""

    def make(folder: Path) -> Checkpoint:
        model = toy(folder, "model", WEIGHTS)
        torch.save({**tensors(), "x": Payload(model)}, model / file)
        return Checkpoint(model, model)

    return make


def bare_pickle(folder: Path) -> Checkpoint:
    model = toy(folder, "model", WEIGHTS)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(model)))
    return Checkpoint(model, model)


def beside(file: str) -> Callable[[Path], Checkpoint]:
    """A payload beside sound weights."""

    def make(folder: Path) -> Checkpoint:
        model, source = toy(folder), toy(folder, "source", WEIGHTS)
        torch.save(tensors(), source / "pytorch_model.bin")
        for one in (model, source):
            (one / file).write_bytes(pickle.dumps(Payload(model)))
        return Checkpoint(model, source)

    return make


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], Checkpoint]:
    def make(folder: Path) -> Checkpoint:
        model = toy(folder)
        (model / WEIGHTS).write_bytes(change((TOY / WEIGHTS).read_bytes()))
        return Checkpoint(model)

    return make


def large_header(folder: Path) -> Checkpoint:
    """Of 200 MB, which the file has: a hole."""
    model = toy(folder)
    with (model / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 200 * 10**6) + b"{")
        file.truncate(201 * 10**6)
    return Checkpoint(model)


def overlapping(data: bytes) -> bytes:
    """Two tensors in one place."""
    (size,) = struct.unpack("<Q", data[:8])
    listed = json.loads(data[8 : 8 + size])
    second = [name for name in listed if name != "__metadata__"][1]
    start, end = listed[second]["data_offsets"]
    listed[second]["data_offsets"] = [max(0, start - 8), max(0, end - 8)]
    text = json.dumps(listed).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def indexed(file: str) -> Callable[[Path], Checkpoint]:
    """An index that names this file for one tensor, of safetensors and of pickles."""

    def make(folder: Path) -> Checkpoint:
        model, source = toy(folder), toy(folder, "source", WEIGHTS)
        (folder / WEIGHTS).write_bytes((TOY / WEIGHTS).read_bytes())  # what ../ leads to
        (model / WEIGHTS).rename(model / "model-1.safetensors")
        torch.save(tensors(), source / "pytorch_model-1.bin")
        torch.save(tensors(), folder / "pytorch_model.bin")
        places = dict.fromkeys(tensors(), "model-1.safetensors")
        places[some(tensors())] = f"{file}.safetensors"
        (model / INDEX).write_text(json.dumps({"weight_map": places}))
        places = {
            n: p.replace("model-1.safetensors", "pytorch_model-1.bin") for n, p in places.items()
        }
        places[some(tensors())] = f"{file.replace('model', 'pytorch_model')}.bin"
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        return Checkpoint(model, source)

    return make


def auto_map(folder: Path) -> Checkpoint:
    made = edited(lambda held: None)(folder)
    for one in (made.model, made.source):
        assert one is not None
        (one / "evil.py").write_text(f"open({str(folder / SPRUNG)!r}, 'w')")
        config = json.loads((one / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
        config["trust_remote_code"] = True
        (one / "config.json").write_text(json.dumps(config))
    return made


def adapter(folder: Path) -> Checkpoint:
    model, settings = weights.load(TOY), LoraSettings(rank=2)
    lora.add_lora(model, settings)
    lora.save_adapter(model, folder / "adapter", "ab" * 32, settings)
    return Checkpoint(toy(folder), adapter=folder / "adapter")


def run_with(*files: tuple[str, bytes]) -> Callable[[Path], Checkpoint]:
    """A run folder of a training with these files under checkpoints/."""

    def make(folder: Path) -> Checkpoint:
        run = folder / "run"
        for name, data in files:
            path = run / "checkpoints" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return Checkpoint(run=run)

    return make


def shard_payload(folder: Path) -> Checkpoint:
    """DeepSpeed's own files, named by its `latest`."""
    run = folder / "run"
    data = pickle.dumps(Payload(run))
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    files = [(f"global_step5/{name}", data) for name in names]
    return run_with(("latest", b"global_step5"), *files)(folder)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Checkpoint]:
    def make(folder: Path) -> Checkpoint:
        made = edited(lambda held: None)(folder)
        for one in (made.model, made.source):
            assert one is not None
            file = one / "tokenizer.json"
            held = json.loads(file.read_text())
            change(held)
            file.write_text(json.dumps(held))
        return Checkpoint(made.model)

    return make


MASK = "<|mdm_mask|>"


def without_mask(held: dict[str, Any]) -> None:
    held["added_tokens"] = [one for one in held["added_tokens"] if one["content"] != MASK]


def mask_as_word(held: dict[str, Any]) -> None:
    """A word like others, and no special token."""
    without_mask(held)
    held["model"]["vocab"][MASK] = len(held["model"]["vocab"])


def mask_with_a_word(held: dict[str, Any]) -> None:
    """A special token that has the id of a word."""
    held["model"]["vocab"][MASK] = 40


def kinds() -> Iterator[Kind]:
    def several(number: int, name: str, want: str, note: str = "", **cases: Any) -> Kind:
        made = {case.replace("_", " "): make for case, make in cases.items()}
        if len(made) == 1:
            made = {"": next(iter(made.values()))}
        return Kind(number, name, want, made, note=note)

    yield Kind(
        89,
        "pickle that runs a command, for weights",
        "E1406",
        {".bin": pickled("pytorch_model.bin"), ".pt": pickled("model.pt"), "bare": bare_pickle},
        {"import": "E1412 E1407"},
    )
    yield several(
        89,
        "the same beside sound weights",
        "ok",
        "Such files are never opened: no outcome depends on them.",
        optimizer=beside("optimizer.bin"),
        training_args=beside("training_args.bin"),
    )
    yield Kind(
        89,
        "the same as DeepSpeed's shards, named by `latest`",
        "ok",
        {"": shard_payload},
        note="`latest` plays no part, and no pickle of a run folder is opened.",
    )
    yield several(
        90,
        "safetensors header: 2^63 bytes, 200 MB, overlapping, short",
        "E1407",
        **{
            "2^63": header(lambda data: struct.pack("<Q", 2**63) + data[8:]),
            "200 MB": large_header,
            "overlapping": header(overlapping),
            "short": header(lambda data: data[:-7]),
        },
    )
    yield several(
        91,
        "weight NaN, infinite",
        "E1405",
        NaN=with_value(float("nan")),
        infinite=with_value(float("inf")),
    )
    yield several(
        92, "other shape, other vocabulary", "E1404 E1410", shape=cut(False), vocabulary=cut(True)
    )
    yield several(93, "shard of the index missing", "E1401", one=indexed("model-2"))
    yield several(94, "index that names ../", "E1409", one=indexed("../model"))
    yield several(
        95, "`auto_map` with code beside it", "ok", "The code is never looked at.", one=auto_map
    )
    yield several(96, "adapter of another base", "E1411", one=adapter)
    torn, manifest = b'{"format": 1, "step": 5, "digest": "x', "step-00000005/manifest.json"
    yield Kind(
        97,
        "run whose only checkpoint is torn, with `latest` to it",
        "E1603",
        {
            "torn manifest": run_with(("latest", b"step-00000005"), (manifest, torn)),
            "no manifest": run_with(("latest", b""), ("step-00000005/rank-00000.json", b"{}")),
        },
    )
    yield Kind(
        97,
        "`latest` of nothing, Ray's torn snapshot",
        "ok",
        {
            "missing tag": run_with(("latest", b"global_step9")),
            "empty": run_with(("latest", b"")),
            "half-written": run_with(("step-00000005.tmp/manifest.json", torn)),
            "snapshot": run_with(("checkpoint_manager_snapshot.json", b'{"a')),
        },
        note="Neither is read: what was published under its own name counts, and here is none.",
    )
    yield several(
        98,
        "tokenizer without the mask, with the mask as a word, with a word's id for it",
        "E1408",
        without=tokenizer(without_mask),
        word=tokenizer(mask_as_word),
        shared=tokenizer(mask_with_a_word),
    )
