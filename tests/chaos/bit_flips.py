"""Flip single bits of what jobs write: each flip is noticed, or nothing that is loaded differs.

    python -m tests.chaos.bit_flips [--flips 300] [--cuts 100] [--seed 0] [--short]

Kinds: a parquet file of `rows/`, the ledger, `run.json` of a scoring run and of a training run, a
training checkpoint, a LoRA adapter. So many bits at random places of each, one at a time, then the
file cut at random lengths. Each time the folder is loaded as the product does: `read_run` and a
resume to the end; `latest` and `restore`; `load_adapter`. What comes of it:

noticed       refused with a code of the catalogue, or passed over and named (an older checkpoint)
scored_again  the damaged place was no commit yet: its rows are scored again, and all are right
harmless      what is loaded is equal, bit by bit
silent        what is loaded differs and nothing was said

In process and without Ray. The last line is one JSON object; exit code 1 for a silent flip, an
exception that is none of ours, a message with an address, a path or a stack, and where a refusal
costs what is sound: once the damaged file is restored, everything must be there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from medv_ray.archive.compact import merge, small_parts
from medv_ray.archive.manifest import read_manifest
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.store import Store
from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.errors import CATALOGUE, MedvError
from medv_ray.model import lora
from medv_ray.settings import LoraSettings, identity_digest
from medv_ray.training import run as training
from medv_ray.training.check import check
from medv_ray.training.checkpoint import Checkpoints
from tests.corpus.measures import leaks
from tests.unit.archive.conftest import IDENTITY, Make
from tests.unit.model.conftest import make_model
from tests.unit.training import tiny

WORDS = ("noticed", "scored_again", "harmless", "silent")
BASE = "ab" * 32


@dataclass
class Kind:
    """Something that is loaded from a folder of files."""

    name: str
    home: Path
    """The folder as it was written; each flip is made in a copy of it."""
    files: list[str]
    """Those of which bits are flipped."""
    load: Callable[[Path], str]
    """Load a copy; `noticed`, `scored_again`, `harmless` or `silent`. Raises what the product
    raises."""


@dataclass
class Tally:
    """What became of a kind's damages."""

    restore_every: int = 1
    """Of so many refusals, after one the file is restored and all must be there."""
    words: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--flips", type=int, default=300, help="of each kind")
    parser.add_argument("--cuts", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="30 flips and 10 cuts of each kind")
    args = parser.parse_args()
    flips, cuts = (30, 10) if args.short else (args.flips, args.cuts)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medv-flips-") as name:
        figures = damage(Path(name), flips, cuts, args.seed)
    figures = {"chaos": "bit_flips", "seed": args.seed, **figures}
    figures["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(figures))
    sys.exit(1 if figures["problems"] else 0)


def damage(
    folder: Path, flips: int, cuts: int, seed: int, makers: Sequence[Maker] | None = None
) -> dict[str, Any]:
    """Figures by kind, and what is not as it is promised."""
    figures: dict[str, Any] = {}
    problems: list[str] = []
    with mock.patch.object(os, "fsync", os.fstat):  # nobody cuts the power here
        for kind in kinds(folder, MAKERS if makers is None else makers):
            rng = random.Random(f"{seed} {kind.name}")
            if kind.load(copy_of(kind)) != "harmless":
                raise SystemExit(f"{kind.name}: what is undamaged does not load")
            flipped, cut = Tally(restore_every=5), Tally()
            for _ in range(flips):
                try_one(kind, flipped, flip(kind, rng))
            for _ in range(cuts):
                try_one(kind, cut, shorten(kind, rng))
            figures[kind.name] = {
                "flips": flips,
                **{word: flipped.words[word] for word in WORDS},
                "codes": dict(sorted(flipped.codes.items())),
                "cuts": {
                    "cuts": cuts,
                    **{word: cut.words[word] for word in WORDS if cut.words[word]},
                },
            }
            problems += [f"{kind.name}: {said}" for said in (*flipped.problems, *cut.problems)]
    return {"kinds": figures, "problems": problems[:20]}


def copy_of(kind: Kind) -> Path:
    work = kind.home.with_name(f"{kind.home.name}-work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(kind.home, work)
    return work


def pick(kind: Kind, rng: random.Random) -> tuple[str, int]:
    """A file, and a byte of it: a small file is as likely as a large one."""
    name = rng.choice(kind.files)
    return name, rng.randrange((kind.home / name).stat().st_size)


def flip(kind: Kind, rng: random.Random) -> tuple[str, bytes, str]:
    """The file's name, its content with one bit flipped, and which bit."""
    name, place = pick(kind, rng)
    data, bit = bytearray((kind.home / name).read_bytes()), rng.randrange(8)
    data[place] ^= 1 << bit
    return name, bytes(data), f"bit {bit} of byte {place} of {len(data)}"


def shorten(kind: Kind, rng: random.Random) -> tuple[str, bytes, str]:
    """The same for a file that is cut short."""
    name, size = pick(kind, rng)
    data = (kind.home / name).read_bytes()
    return name, data[:size], f"{size} of {len(data)} bytes"


def try_one(kind: Kind, tally: Tally, made: tuple[str, bytes, str]) -> None:
    name, data, what = made
    work = copy_of(kind)
    (work / name).write_bytes(data)
    where = f"{Path(name).name}, {what}"
    try:
        word = kind.load(work)
    except MedvError as error:
        word = "noticed"
        tally.codes[error.code] += 1
        if error.code not in CATALOGUE:
            tally.problems.append(f"{where}: {error.code} is no code of the catalogue")
        tally.problems += [
            f"{where}: the message holds {found}" for found in leaks(str(error), work)
        ]
        if tally.words["noticed"] % tally.restore_every == 0:
            (work / name).write_bytes((kind.home / name).read_bytes())
            try:
                restored = kind.load(work)
            except MedvError as after:
                restored = after.code
            if restored != "harmless":
                tally.problems.append(f"{where}: restored after it was refused, it is {restored}")
    except Exception as error:
        word = "uncaught"
        tally.problems.append(f"{where}: {type(error).__name__} came out of it")
    if word == "silent":
        tally.problems.append(f"{where}: silent")
    tally.words[word] += 1


def kinds(folder: Path, makers: Sequence[Maker]) -> Iterator[Kind]:
    for make in makers:
        yield from make(folder / make.__name__)


def scoring(folder: Path) -> Iterator[Kind]:
    """A run of seven chunks: three merged into one file, two in files of their own, two to do."""
    folder.mkdir(parents=True)
    make = Make(folder)
    odd = [None if row == 5 else f"what is {row}?" for row in range(28)]
    make.parquet(rows=28, question=odd)  # one row is quarantined
    planned, out = make.plan(), folder / "run"
    with Run.open(str(out), planned, IDENTITY) as run:
        for done, chunk in enumerate(run.todo()[:5]):
            run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
            if done == 2:
                merge(run.store, run.ledger, small_parts(run.ledger))
    with_all = folder / "whole"
    shutil.copytree(out, with_all)
    make.job(planned, with_all)
    partial, whole = rows_in(out), rows_in(with_all)
    begun = json.dumps(read_manifest(Store(str(out))), sort_keys=True)

    def load(work: Path) -> str:
        manifest = json.dumps(read_manifest(Store(str(work))), sort_keys=True)
        refused, seen = None, {}
        try:
            seen = rows_in(work)
        except MedvError as error:
            refused = error
        with Run.open(str(work), planned, IDENTITY) as run:
            todo = run.todo()
            for chunk in todo:
                run.commit(write_part(run.store, chunk, make.records(planned, chunk)))
            run.finish()
        if rows_in(work) != whole or manifest != begun:
            return "silent"
        if refused is not None:
            raise refused
        if len(todo) <= 2 and all(seen.get(row) == partial[row] for row in partial):
            return "harmless"
        # a reader saw less meanwhile, as of a run that goes on
        return "scored_again" if all(seen[row] == whole[row] for row in seen) else "silent"

    parts = [f"rows/{file.name}" for file in (out / "rows").iterdir()]
    yield Kind("rows", out, parts, load)
    yield Kind("ledger", out, ["ledger.jsonl"], load)
    yield Kind("run_json", out, ["run.json"], load)


def rows_in(run: Path) -> dict[int, dict[str, Any]]:
    """By number; columns that are new with each attempt are left out."""
    return {
        row["row"]: {name: value for name, value in row.items() if name != "chunk"}
        for table in read_run(str(run))
        for row in table.to_pylist()
    }


def training_run(folder: Path) -> Iterator[Kind]:
    """Four updates, checkpoints of two and of four; the newest one is damaged."""
    folder.mkdir(parents=True)
    settings = tiny.settings(folder, max_steps=4, trainable=("projector",))
    identity = check(settings)
    out = training.begin(settings, identity)
    for _ in training.train_worker(settings, identity):
        pass
    model = training.build_model(settings, "cpu")
    special = SpecialIds.of(load_tokenizer(settings.model))
    engine = training.make_engine(training.make_objective(model, special, settings.stage), settings)

    def restored(work: Path) -> tuple[int, str, str, list[int]]:
        """Step, digest of the state, and which steps were said to be damaged."""
        checkpoints = Checkpoints(work / "checkpoints", settings.keep)
        found = checkpoints.latest(engine)
        assert found is not None
        step, manifest, damaged = found
        assert manifest["identity"] == identity_digest(identity)
        checkpoints.restore(engine, step, manifest)
        digest = hashlib.sha256()
        for held in engine.slices():
            for kind, value in sorted(held.values.items()):
                digest.update(f"{held.name} {kind} {held.shape}".encode())
                digest.update(value.numpy().tobytes())
        return step, digest.hexdigest(), json.dumps(manifest, sort_keys=True), damaged

    newest = restored(out)
    earlier = folder / "earlier"
    shutil.copytree(out, earlier)
    shutil.rmtree(earlier / "checkpoints" / "step-00000004")
    before = restored(earlier)

    def load(work: Path) -> str:
        loaded = restored(work)
        if loaded == newest:
            return "harmless"
        return "noticed" if loaded == (*before[:3], [4]) else "silent"

    step = out / "checkpoints" / "step-00000004"
    yield Kind("checkpoint", out, [str(f.relative_to(out)) for f in step.iterdir()], load)
    alone = [
        str((earlier / "checkpoints" / "step-00000002" / f.name).relative_to(earlier))
        for f in step.iterdir()
    ]

    def load_only(work: Path) -> str:
        return "harmless" if restored(work) == before else "silent"

    yield Kind("only_checkpoint", earlier, alone, load_only)
    known = training.read_run(out)

    def load_record(work: Path) -> str:
        found, values = training.read_run(work)
        training.is_run(work, identity)
        return "harmless" if (found, {**values, "out": str(out)}) == known else "silent"

    yield Kind("train_run_json", out, ["run.json"], load_record)


def adapter(folder: Path) -> Iterator[Kind]:
    """An adapter of the toy, and the projector that was trained beside it."""
    folder.mkdir(parents=True)
    settings = LoraSettings(rank=2, alpha=8.0, dropout=0.25, targets=("q_proj", "down_proj"))
    model = make_model()
    model.model.mm_projector.requires_grad_(True)
    lora.add_lora(model, settings)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.01 * (number + 1))
    home = folder / "saved"
    lora.save_adapter(model, home, BASE, settings)

    def loaded(work: Path) -> list[Any]:
        target = make_model()
        lora.load_adapter(target, work, BASE)
        layers = {n: m for n, m in target.named_modules() if hasattr(m, "lora_A")}
        scales = {n: (m.scaling, m.r, m.lora_alpha, str(m.lora_dropout)) for n, m in layers.items()}
        return [scales, {name: bytes_of(value) for name, value in target.state_dict().items()}]

    want = loaded(home)
    names = [file.name for file in home.iterdir() if file.name != "README.md"]
    yield Kind(
        "adapter", home, names, lambda work: "harmless" if loaded(work) == want else "silent"
    )


def bytes_of(value: Tensor) -> bytes:
    return value.contiguous().numpy().tobytes()


Maker = Callable[[Path], Iterator[Kind]]
MAKERS: tuple[Maker, ...] = (scoring, training_run, adapter)


if __name__ == "__main__":
    main()
