"""What a run writes for those who watch it: `events.jsonl` always; TensorBoard, Weights & Biases
and MLflow, through their own packages, when asked. Rank 0 writes; the other ranks write nothing.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from medv_ray.training.writers import Writer, WriterName, check_writers, open_writer

EVENTS = "events.jsonl"


@dataclass(frozen=True)
class StepEvent:
    """One logged step; None where there is no value."""

    step: int
    """Steps done, this one included."""
    total_steps: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float | None = None
    """Before clipping."""
    loss_by_noise: tuple[float | None, ...] = ()
    """In equal bins of t; see LossByNoise."""
    tokens_per_s: float | None = None
    mfu: float | None = None
    memory_bytes: int | None = None
    """Peak."""
    eta_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Fields of a line of events.jsonl; a value that is not finite is null."""
        fields = asdict(self)
        fields["loss_by_noise"] = [_finite(value) for value in self.loss_by_noise]
        return {
            name: _finite(value) if isinstance(value, float) else value
            for name, value in fields.items()
        }

    def scalars(self) -> dict[str, float]:
        """Curves by name, what has no value left out."""
        named: dict[str, float | None] = {
            f"train/{name}": getattr(self, name)
            for name in ("loss", "lr", "epoch", "grad_norm", "tokens_per_s", "mfu", "memory_bytes")
        }
        bins = len(self.loss_by_noise)
        for i, mean in enumerate(self.loss_by_noise):
            named[f"loss_by_noise/{i / bins:.2f}-{(i + 1) / bins:.2f}"] = mean
        return {name: float(value) for name, value in named.items() if value is not None}

    def progress(self) -> dict[str, Any]:
        """Fields of a progress line for a log."""
        shown = {"progress": self.step / self.total_steps, **self.to_json()}
        for name in ("grad_norm", "loss_by_noise", "memory_bytes"):
            del shown[name]
        return {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in shown.items()}

    def __str__(self) -> str:
        """A progress line for a terminal."""
        parts = [
            f"step {self.step}/{self.total_steps}",
            f"epoch {self.epoch:.2f}",
            f"loss {self.loss:.4f}",
            f"lr {self.lr:.2e}",
        ]
        if self.grad_norm is not None:
            parts.append(f"gradient {self.grad_norm:.3g}")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.mfu is not None:
            parts.append(f"MFU {self.mfu:.0%}")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 1e9:.1f} GB")
        if self.eta_s is not None:
            parts.append(f"{timedelta(seconds=round(self.eta_s))} left")
        return "  ".join(parts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def keep_until(path: Path, step: int) -> None:
    """Cut a file of events behind `step`, and what a kill left half-written; absent is fine."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or event["step"] > step:
                break
            end += len(line)
    os.truncate(path, end)


class Watch:
    """Writes events to a run's folder and to the writers that are asked for. A context manager."""

    def __init__(
        self,
        out: Path,
        writers: tuple[WriterName, ...] = ("tensorboard",),
        *,
        rank: int = 0,
        resumed_step: int = 0,
        run_name: str = "medv-ray",
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Opens everything, on rank 0 only.

        Args:
            out: folder of the run.
            resumed_step: steps of the checkpoint that the run goes on from; later events go.
            run_name, settings: of the run, for the writers that keep them.

        Raises SettingsError for a package that is missing or does not start.
        """
        check_writers(writers)
        self._writers: list[Writer] = []
        self._file: int | None = None
        if rank != 0:
            return
        out.mkdir(parents=True, exist_ok=True)
        keep_until(out / EVENTS, resumed_step)
        for name in writers:
            opened = open_writer(name, out, resumed_step, run_name, settings or {})
            self._writers.append(opened)
        self._file = os.open(out / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: StepEvent) -> None:
        """One line, in one call, so that a kill cuts the last line at most."""
        if self._file is None:
            return
        os.write(self._file, json.dumps(event.to_json(), allow_nan=False).encode() + b"\n")
        scalars = event.scalars()
        for writer in self._writers:
            writer.write(event.step, scalars)

    def close(self) -> None:
        """Finish what the writers hold back."""
        for writer in self._writers:
            writer.close()
        if self._file is not None:
            os.close(self._file)
        self._writers, self._file = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
