"""ZeRO-3 over one and two workers against the mathematics, and over cuts and changes of the number
of workers. The workers are plain processes; Ray has no part."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.model.weights import load
from medv_ray.training import objective, run
from medv_ray.training.checkpoint import Checkpoints, SavedState, read_manifest
from medv_ray.training.export import export
from medv_ray.training.job import TrainSettings
from medv_ray.training.samples import Samples
from tests.integration import zero_worker
from tests.integration.processes import ROOT
from tests.unit.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test waits for all groups
NUM_STEPS, CUT, CUT_AGAIN = 50, 44, 47
GRADIENT, LOSS = 1e-6, {"sgd": 1e-5, "adamw": 1e-3}
SHARD = ("engine", "dtype", "offload_optimizer", "offload_params")
RATES = {"sgd": 0.05, "adamw": 2e-3}


def job(home: Path, name: str, **values: Any) -> TrainSettings:
    """A job whose model and data are shared by all tests of this file."""
    values = {"optimizer": "sgd", "max_steps": NUM_STEPS, "batch_size": 8} | values
    values |= {"lr": RATES[values["optimizer"]], "projector_lr": 1e-3, "weight_decay": 0.01}
    shard = {"engine": "zero3"} | {name: values.pop(name) for name in SHARD if name in values}
    made = tiny.settings(home, **values)
    changed = {"out": str(home / name), "save_every": 4, "keep": 9}
    return made.model_copy(update={**changed, "shard": made.shard.model_copy(update=shard)})


def do(folder: Path, num_workers: int, jobs: list[tuple[TrainSettings, int | None]]) -> None:
    """Jobs in one process group; what a job did lies beside its run folder."""
    said = [
        {"name": Path(s.out).name, "settings": s.model_dump(mode="json"), "num_steps": num_steps}
        for s, num_steps in jobs
    ]
    (folder / "jobs.json").write_text(json.dumps(said))
    (folder / zero_worker.MEETING).unlink(missing_ok=True)
    env = {**os.environ, "WORLD_SIZE": str(num_workers), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank-{rank}.log" for rank in range(num_workers)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.zero_worker", str(folder)],
            cwd=ROOT,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + 250  # a slow machine
    try:
        while None in (codes := [worker.poll() for worker in workers]):
            if any(codes) or time.monotonic() > deadline:
                break  # the others would wait for one that is gone
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
    assert not any(code is None or code for code in codes), logs[first_failed(codes)].read_text()


def first_failed(codes: list[int | None]) -> int:
    return next((rank for rank, code in enumerate(codes) if code), 0)


def said(folder: Path, name: str, num_workers: int) -> dict[str, Any]:
    """What a job did, its rows in the order of the batch."""
    parts = [
        json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(num_workers)
    ]
    rows = [sum(of_ranks, []) for of_ranks in zip(*(p["rows"] for p in parts), strict=True)]
    assert all(part["losses"] == parts[0]["losses"] for part in parts)
    return parts[0] | {"rows": rows, "gradients": load_file(folder / f"{name}-0.safetensors")}


def formula(settings: TrainSettings) -> dict[str, Any]:
    """The stage from the paper's formulas: one row at a time, every logit, torch's optimizer."""
    stage = settings.stage
    tokenizer = load_tokenizer(settings.model)
    model = run.build_model(settings, "cpu")
    samples = Samples(run.Dataset.open(settings.data), tokenizer, stage, model, 2**30)
    learn = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p], "weight_decay": stage.weight_decay * (p.dim() > 1),
         "peak": stage.projector_lr if "mm_projector" in name else stage.lr}
        for name, p in learn.items()
    ]  # fmt: skip
    optimizer = OPTIMIZERS[stage.optimizer](groups, lr=stage.lr)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        places = range(step * stage.batch_size, (step + 1) * stage.batch_size)
        rows = [tiny.plain_loss(model, SpecialIds.of(tokenizer).mask, samples(p)) for p in places]
        loss = torch.stack(rows).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = gradients or {name: p.grad.clone() for name, p in learn.items()}
        norm = torch.stack([p.grad.norm() for p in learn.values()]).norm()
        for parameter in learn.values():
            parameter.grad.mul_(min(1.0, stage.clip / float(norm)))
        warm_up = math.ceil(0.03 * NUM_STEPS)
        done = (step - warm_up) / (NUM_STEPS - warm_up)
        factor = step / warm_up if step < warm_up else (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        losses.append(float(loss.detach()))
    samples.close()
    return {"losses": losses, "gradients": gradients}


OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers did: whole runs, runs that went on from the middle of one of them, and three
    steps of each variant. Workers of the least number of process groups: each imports for seconds.
    """
    home = tmp_path_factory.mktemp("zero")
    do(home, 2, [(job(home, f"{kind}-2", optimizer=kind), None) for kind in OPTIMIZERS])
    for kind in OPTIMIZERS:
        for name in ("same", "moved"):
            shutil.copytree(home / f"{kind}-2", home / f"{kind}-{name}")
            cut(home / f"{kind}-{name}" / "checkpoints", CUT)
    moved = [job(home, f"{kind}-moved", optimizer=kind) for kind in OPTIMIZERS]
    whole = [job(home, f"{kind}-1", optimizer=kind) for kind in OPTIMIZERS]
    do(home, 1, [*((s, None) for s in whole), *((s, CUT_AGAIN - CUT) for s in moved)])
    for kind in OPTIMIZERS:
        for file in home.glob(f"{kind}-moved-0.*"):
            file.rename(file.with_stem(f"{kind}-alone-0"))
    same = [job(home, f"{kind}-same", optimizer=kind) for kind in OPTIMIZERS]
    others = [variant(home, name) for name in VARIANTS]
    do(home, 2, [(settings, None) for settings in same + moved + others])
    return home


def cut(checkpoints: Path, step: int) -> None:
    """As if the run had been killed before the next checkpoint."""
    for folder in checkpoints.iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def far(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    assert found.keys() == want.keys()
    difference = sum(float((found[n] - want[n]).double().square().sum()) for n in want)
    return math.sqrt(difference / sum(float(t.double().square().sum()) for t in want.values()))


def worst(found: list[float], want: list[float]) -> float:
    assert len(found) == len(want) == NUM_STEPS
    return max(abs(f - w) / abs(w) for f, w in zip(found, want, strict=True))


def arms(home: Path, kind: str) -> dict[str, dict[str, Any]]:
    plain = zero_worker.do(job(home, f"{kind}-plain", optimizer=kind, engine="plain"))
    return {"two": said(home, f"{kind}-2", 2), "one": said(home, f"{kind}-1", 1), "plain": plain}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_engine_computes_the_formulas(home: Path, kind: str) -> None:
    want = formula(job(home, "formula", optimizer=kind))
    figures: dict[str, Any] = {"loss": [want["losses"][0], want["losses"][-1]]}
    for name, arm in arms(home, kind).items():
        found, right = arm["gradients"], want["gradients"]
        figures[name] = {
            "gradient": far(found, right),
            "worst tensor": max(far({n: found[n]}, {n: right[n]}) for n in right),
            "losses": worst(arm["losses"], want["losses"]),
        }
    print(json.dumps({kind: figures}))
    for name in ("two", "one", "plain"):
        assert figures[name]["gradient"] < GRADIENT
        assert figures[name]["losses"] < LOSS[kind]


def test_without_the_weight_1_over_p_it_is_not_the_formula(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the comparison above would see it."""
    noise = objective.forward_noise

    def unweighted(*args: Any) -> Any:
        return noise(*args)._replace(p_mask=torch.ones(1))

    monkeypatch.setattr(objective, "forward_noise", unweighted)
    short = zero_worker.do(job(home, "unweighted", engine="plain"), num_steps=2)
    want = said(home, "sgd-2", 2)
    assert far(short["gradients"], want["gradients"]) > 1000 * GRADIENT
    assert abs(short["losses"][0] / want["losses"][0] - 1) > 1000 * LOSS["sgd"]


def weights(settings: TrainSettings) -> dict[str, Tensor]:
    """Of the checkpoint after the last step."""
    folder = Checkpoints(Path(settings.out) / "checkpoints", 1).at(NUM_STEPS)
    manifest = read_manifest(folder)
    assert manifest is not None
    state = SavedState(folder, manifest)
    return {name: state.whole(name) for name in state.shapes}


def files(settings: TrainSettings) -> dict[str, bytes]:
    """The same checkpoint's tensors, moments among them, as they lie on disk."""
    folder = Checkpoints(Path(settings.out) / "checkpoints", 1).at(NUM_STEPS)
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_that_goes_on_equals_the_whole_one(home: Path, kind: str) -> None:
    whole, part = said(home, f"{kind}-2", 2), said(home, f"{kind}-same", 2)
    assert part["steps"] == list(range(CUT + 1, NUM_STEPS + 1))
    for what in ("losses", "rows", "rates"):
        assert part[what] == whole[what][CUT:]
    found = files(job(home, f"{kind}-same", optimizer=kind))
    assert len(found) == 2
    assert found == files(job(home, f"{kind}-2", optimizer=kind))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_two_workers_then_one_then_two(home: Path, kind: str) -> None:
    whole = said(home, f"{kind}-2", 2)
    one, two = said(home, f"{kind}-alone", 1), said(home, f"{kind}-moved", 2)
    assert one["steps"] + two["steps"] == list(range(CUT + 1, NUM_STEPS + 1))
    for what in ("rows", "rates"):
        assert one[what] + two[what] == whole[what][CUT:]
    seen = [row for step in whole["rows"] for row in step]
    assert len({noise for _, noise, _ in seen}) == len(seen)
    moved = weights(job(home, f"{kind}-moved", optimizer=kind))
    distance = far(moved, weights(job(home, f"{kind}-2", optimizer=kind)))
    print(json.dumps({kind: {"2 -> 1 -> 2 weights": distance}}))
    assert distance < {"sgd": 1e-6, "adamw": 1e-3}[kind]


VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "one row at a time": {"micro_batch_size": 1},
    "four rows at a time": {"micro_batch_size": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "optimizer on the host": {"offload_optimizer": True},
    "all on the host": {"offload_optimizer": True, "offload_params": True},
    "bfloat16": {"dtype": "bfloat16"},
    "adapter": {"lora": {"rank": 2}},
    zero_worker.BAD_GRADIENT: {"micro_batch_size": 4},  # one pass a step
    "bfloat16 adapter": {"dtype": "bfloat16", "lora": {"rank": 2}},
    "vision": {"trainable": ("projector", "language", "vision")},
    "vision, checkpointing": {
        "trainable": ("projector", "language", "vision"),
        "gradient_checkpointing": True,
    },
}


def variant(home: Path, name: str, **values: Any) -> TrainSettings:
    return job(home, name, optimizer="adamw", max_steps=3, **VARIANTS[name], **values)


@pytest.fixture(scope="module")
def variants(home: Path) -> dict[str, list[float]]:
    """Losses of three steps on two workers."""
    return {name: said(home, name, 2)["losses"] for name in VARIANTS}


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("one row at a time", 1e-5),
        ("four rows at a time", 1e-5),
        ("checkpointing", 1e-6),
        ("optimizer on the host", 1e-5),
        ("all on the host", 1e-5),
        ("bfloat16", 0.05),
    ],
)
def test_settings_that_change_no_loss(
    variants: dict[str, list[float]], name: str, tolerance: float
) -> None:
    assert variants[name] == pytest.approx(variants["float32"], rel=tolerance)


def test_an_adapter_in_half_precision(variants: dict[str, list[float]]) -> None:
    assert variants["bfloat16 adapter"] == pytest.approx(variants["adapter"], rel=0.05)


@pytest.mark.parametrize("name", ["adapter", "vision", "vision, checkpointing"])
def test_other_parts_that_learn(home: Path, variants: dict[str, list[float]], name: str) -> None:
    settings = variant(home, name, engine="plain")
    plain = zero_worker.do(settings.model_copy(update={"out": str(home / f"{name} plain")}))
    assert variants[name] == pytest.approx(plain["losses"], rel=1e-5)


def test_a_gradient_that_is_not_finite_on_one_worker_stops_both(
    home: Path, variants: dict[str, list[float]]
) -> None:
    name = zero_worker.BAD_GRADIENT
    for rank in (0, 1):
        done = json.loads((home / f"{name}-{rank}.json").read_text())
        assert done["steps"] == [1, 2]
        assert done["error"].startswith("RunError E1602: the gradient of step 3 ")
    assert Checkpoints(Path(variant(home, name).out) / "checkpoints", 2).steps() == []


def test_an_adapter_is_merged_into_the_exported_folder(
    home: Path, variants: dict[str, list[float]], tmp_path: Path
) -> None:
    settings = variant(home, "adapter")
    assert export(settings, tmp_path / "model") == 3
    model, base = load(tmp_path / "model").state_dict(), load(settings.model).state_dict()
    assert model.keys() == base.keys()
    changed = {name for name in base if not torch.equal(model[name], base[name])}
    adapted = {name for name in base if "_proj." in name and ".layers." in name}
    assert changed == {n for n in adapted if "vision" not in n} | {
        name for name in base if "mm_projector" in name
    }
