"""Training checkpoints that a kill cannot harm and that any number of workers can read.

    checkpoints/step-00000120/manifest.json              what it is, and sha256 of each file
                              rank-00000-000.safetensors that worker's slices, flattened
                              rank-00000.json            its files and their digests

Each worker writes its own slices under `step-....tmp` and forces them to disk; rank 0 gathers the
lists into the manifest and renames the folder. What has its name is complete. There is no pickle in
it, and DeepSpeed's own `latest` plays no part.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medv_ray.disk import is_full
from medv_ray.errors import RunError
from medv_ray.files import file_sha256, put_in_place, sync, write_atomic
from medv_ray.training.engine import Engine, Slice

FORMAT = 1
MANIFEST = "manifest.json"
FILE_BYTES = 2**30
"""Slices are written once about this much has come together; so much host memory it takes."""


class Checkpoints:
    """The checkpoints of a run, in a folder that all workers see."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep
        self.best: int | None = None
        """Step whose checkpoint stays, however old it is."""

    def save(self, engine: Engine, step: int, about: Mapping[str, Any]) -> None:
        """Write and publish the state after `step` updates; the oldest beyond `keep` go.

        All workers call it. Raises RunError E1503 or E1511 where the disk does not take it: on all
        of them; nothing of it is kept, and what was published before is whole.
        """
        partial = self.folder / f"step-{step:08d}.tmp"
        try:
            self._save(engine, step, about, partial)
        except RunError:
            if engine.rank == 0:  # all have written what they could
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _save(self, engine: Engine, step: int, about: Mapping[str, Any], partial: Path) -> None:
        def begin() -> None:
            # of saves that were killed, whose step may never be saved again
            for left in self.folder.glob("step-*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)

        self._together(engine, begin if engine.rank == 0 else None)
        self._together(engine, lambda: write_slices(engine, partial))
        if engine.rank == 0:

            def publish() -> None:
                manifest = {"format": FORMAT, "step": step, **about, **_gather(partial, engine)}
                manifest["digest"] = _digest_of(manifest)
                write_atomic(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
                _publish(partial, self.at(step))

            self._together(engine, publish)
            # later ones are damaged: the run went on from an earlier step
            for old in [known for known in self.steps() if known <= step][: -self._keep]:
                if old != self.best:
                    shutil.rmtree(self.at(old), ignore_errors=True)
        else:
            self._together(engine, None)

    def _together(self, engine: Engine, write: Callable[[], None] | None) -> None:
        """Wait until each worker has written; an error on one is one on all, who would wait for it
        else."""
        failed: Exception | None = None
        try:
            if write is not None:
                write()
        except (OSError, SafetensorError) as error:
            failed = error
        mine = [float(failed is not None), float(is_full(failed))]
        any_failed, any_full = engine.sum(torch.tensor(mine)).tolist()
        if any_full:
            raise RunError("E1503", "the disk is full; the checkpoint was not published.")
        if any_failed:
            code = errno.errorcode.get(getattr(failed, "errno", None) or 0, type(failed).__name__)
            kind = "by another worker" if failed is None else f"({code})"
            raise RunError("E1511", f"a checkpoint could not be written {kind}.")

    def at(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that were published, ascending; whether they are whole is not looked at."""
        found = self.folder.glob("step-" + "[0-9]" * 8)
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def latest(self, engine: Engine) -> tuple[int, dict[str, Any], list[int]] | None:
        """Step and manifest of the last whole checkpoint, and the steps that are not whole; None
        where there is none to begin with.

        All workers call it and get the same; each reads its share of the files. Raises RunError
        E1603 when there are checkpoints and none is whole.
        """
        damaged: list[int] = []
        mine = self.steps() if engine.rank == 0 else []
        while True:
            # the first worker proposes: on a network share the others may see other folders
            proposed = 1 + mine.pop() if mine else 0
            step = int(engine.sum(torch.tensor([float(proposed)]))[0]) - 1
            if step < 0:
                break
            manifest = read_manifest(self.at(step))
            good = manifest is not None and self._whole(engine, step, manifest)
            if float(engine.sum(torch.tensor([float(not good)]))[0]) == 0 and manifest is not None:
                return step, manifest, damaged
            damaged.append(step)
        if damaged:
            raise RunError("E1603", f"none of {len(damaged)} checkpoints is whole.")
        return None

    def _whole(self, engine: Engine, step: int, manifest: dict[str, Any]) -> bool:
        """Whether this worker's share of the files is as it was written."""
        folder = self.at(step)
        mine = sorted(manifest["files"])[engine.rank :: engine.num_workers]
        return all(_matches(folder / name, manifest["files"][name]) for name in mine)

    def restore(self, engine: Engine, step: int, manifest: dict[str, Any]) -> None:
        """Put a checkpoint's weights and moments into the engine.

        Raises RunError E1603 where it has other parameters than the engine.
        """
        state = SavedState(self.at(step), manifest)

        def read(held: Slice) -> dict[str, Tensor]:
            if tuple(state.shapes.get(held.name, ())) != held.shape:
                raise RunError("E1603", f"{held.name} of step {step} is missing or of other shape.")
            length = len(held.values["weight"])
            return {
                kind: state.read(held.name, kind, held.offset, held.offset + length)
                for kind in held.values
            }

        engine.restore(read, step)


class SavedState:
    """A published checkpoint, read by ranges of its parameters."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.shapes: dict[str, list[int]] = manifest["shapes"]
        names = sorted(manifest["files"])
        self._files: list[Any] = [safe_open(folder / name, framework="pt") for name in names]
        self._offsets = [json.loads(file.metadata()["offsets"]) for file in self._files]

    def whole(self, name: str) -> Tensor:
        """float32[numel], the weight of a parameter."""
        return self.read(name, "weight", 0, math.prod(self.shapes[name]))

    def read(self, name: str, kind: str, first: int, stop: int) -> Tensor:
        """float32[stop - first] of a flattened parameter's `weight` or moment."""
        pieces = []
        for file, offsets in zip(self._files, self._offsets, strict=True):
            start = offsets.get(name)
            if start is None:
                continue
            values = file.get_slice(f"{name}/{kind}")
            low, high = max(first, start), min(stop, start + values.get_shape()[0])
            if low < high:
                pieces.append(values[low - start : high - start])
        found = torch.cat(pieces) if pieces else torch.empty(0)
        if len(found) != stop - first:
            raise RunError("E1603", f"{name}/{kind} is not whole in the checkpoint.")
        return found


def write_slices(engine: Engine, folder: Path) -> None:
    """This worker's slices into files of about FILE_BYTES, and the list of them; all on disk."""
    files: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, int] = {}

    def flush() -> None:
        file = folder / f"rank-{engine.rank:05d}-{len(files):03d}.safetensors"
        save_file(tensors, file, metadata={"offsets": json.dumps(offsets)})
        sync(file)
        files[file.name] = file_sha256(file)
        tensors.clear()
        offsets.clear()

    for held in engine.slices():
        shapes[held.name] = list(held.shape)
        if not len(held.values["weight"]):
            continue
        offsets[held.name] = held.offset
        for kind, value in held.values.items():
            tensors[f"{held.name}/{kind}"] = value.detach().cpu().contiguous()
        if sum(value.nbytes for value in tensors.values()) > FILE_BYTES:
            flush()
    flush()
    record = {"files": files, "shapes": shapes}
    write_atomic(folder / f"rank-{engine.rank:05d}.json", json.dumps(record).encode())


def _gather(folder: Path, engine: Engine) -> dict[str, Any]:
    """Files and shapes of all workers' lists."""
    files: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    for rank in range(engine.num_workers):
        record = json.loads((folder / f"rank-{rank:05d}.json").read_bytes())
        files |= record["files"]
        shapes |= record["shapes"]
    return {"files": files, "shapes": shapes}


def _digest_of(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """None where it is missing, torn, edited or of another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("digest") != _digest_of(manifest):
        return None
    named = f"step-{manifest.get('step', 0):08d}" == folder.name
    return manifest if manifest.get("format") == FORMAT and named else None


def _matches(file: Path, digest: str) -> bool:
    try:
        return file_sha256(file) == digest
    except OSError:
        return False


def _publish(partial: Path, final: Path) -> None:
    """Rename a complete folder, and force names to disk before and after."""
    sync(partial)
    if final.exists():  # a damaged one of the same step
        shutil.rmtree(final)
    put_in_place(partial, final)
