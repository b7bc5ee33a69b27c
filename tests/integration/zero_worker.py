"""A worker of a process group, without Ray: `python -m tests.integration.zero_worker FOLDER`.

It does the jobs of FOLDER/jobs.json one after the other and leaves FOLDER/NAME-RANK.json of each,
and FOLDER/NAME.safetensors with the gradient of the first step. RANK, LOCAL_RANK and
WORLD_SIZE are set.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from medv_ray.errors import MedvError
from medv_ray.on_ray.validation import spec_of
from medv_ray.training import run
from medv_ray.training.check import check
from medv_ray.training.engine import PlainEngine
from medv_ray.training.job import TrainSettings
from medv_ray.training.objective import Objective, Sample
from medv_ray.training.zero import ZeroEngine

BAD_GRADIENT = "bad gradient"
"""Name of the job in which one worker's gradient is not finite."""
MEETING = "meeting"
"""The file by which the workers of a group find each other."""


class Record:
    """What a job did, as engine and objective were called. It takes their place while it is on."""

    def __init__(self) -> None:
        self.rows: list[list[list[Any]]] = [[]]
        """Of each step, of this worker: digest of the tokens, digest of the noise, t."""
        self.rates: list[list[float]] = []
        """Of each step: the optimizer's learning rates."""
        self.gradients: dict[str, Tensor] = {}
        """Of the first step, whole, before clipping."""

    def __enter__(self) -> Record:
        self._kept = [(kind, name, kind.__dict__[name]) for kind, name in CALLS]
        for kind, name, call in self._kept:
            setattr(kind, name, self._noise(call) if name == "_noise" else self._step(call))
        return self

    def __exit__(self, *error: object) -> None:
        for kind, name, call in self._kept:
            setattr(kind, name, call)

    def _noise(self, call: Any) -> Any:
        def noise(objective: Objective, sample: Sample, labels: Tensor) -> Any:
            masked, p_mask, t = call(objective, sample, labels)
            said = [digest(sample.ids, sample.labels), digest(masked, p_mask), float(t)]
            self.rows[-1].append(said)
            return masked, p_mask, t

        return noise

    def _step(self, call: Any) -> Any:
        def step(engine: Any, factor: float) -> float:
            if not self.rates:
                self.gradients = gradients_of(engine)
            norm = call(engine, factor)
            inner = engine._optimizer if type(engine) is PlainEngine else engine._engine.optimizer
            self.rates.append([group["lr"] for group in inner.param_groups])
            self.rows.append([])
            return float(norm)

        return step


CALLS: tuple[tuple[type, str], ...] = (
    (Objective, "_noise"),
    (ZeroEngine, "step"),
    (PlainEngine, "step"),
)


def digest(*values: Tensor) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()[:16]


def gradients_of(engine: Any) -> dict[str, Tensor]:
    """The gradient of each parameter that learns, on every worker."""
    from deepspeed.utils import safe_get_full_grad

    named = engine._objective.model.named_parameters()
    whole = (lambda p: p.grad) if type(engine) is PlainEngine else safe_get_full_grad
    return {name: whole(p).float().clone() for name, p in named if p.requires_grad}


def do(settings: TrainSettings, first: bool = True, num_steps: int | None = None) -> dict[str, Any]:
    """Run a stage to its end, or to a checkpoint `num_steps` from here; what was done."""
    left = num_steps or sys.maxsize

    def stop() -> bool:  # asked once a step
        nonlocal left
        left -= 1
        return left == 0

    said: dict[str, Any] = {"error": None, "steps": [], "losses": []}
    with Record() as record:
        try:
            identity = check(settings)
            if first:
                run.begin(settings, identity)
            if dist.is_initialized():
                dist.barrier()
            spec = spec_of(settings)
            for report in run.train_worker(settings, identity, "cpu", stop, None, spec):
                said["steps"].append(report.step)
                said["losses"].append(report.loss)
        except MedvError as error:
            said["error"] = str(error)
    return said | {"rows": record.rows[:-1], "rates": record.rates, "gradients": record.gradients}


@contextmanager
def bad_gradient(there: bool) -> Iterator[None]:
    """On the worker where it is wanted: loss as it is, gradient 0 / 0, from its third pass on."""
    real, passes = Objective.forward, count(1)

    def poisoned(self: Objective, samples: list[Sample]) -> tuple[Any, ...]:
        loss, *others = real(self, samples)
        return (loss + (loss * 0).sqrt() if next(passes) > 2 else loss, *others)

    if there:
        Objective.forward = poisoned  # type: ignore[method-assign, assignment]
    yield
    Objective.forward = real  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank, num_workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # not by a port, which may be another process's after the seconds that imports take
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / MEETING}", rank=rank, world_size=num_workers
    )
    for job in json.loads((folder / "jobs.json").read_text()):
        settings = TrainSettings.model_validate(job["settings"])
        with bad_gradient(job["name"] == BAD_GRADIENT and rank == 1):
            said = do(settings, rank == 0, job["num_steps"])
        save_file(said.pop("gradients"), folder / f"{job['name']}-{rank}.safetensors")
        (folder / f"{job['name']}-{rank}.json").write_text(json.dumps(said))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
