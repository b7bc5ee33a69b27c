"""What a run writes for those who watch it: `events.jsonl` always; TensorBoard, Weights & Biases
and MLflow, through their own packages, when asked. Rank 0 writes; the other ranks write nothing.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from medv_ray.files import append
from medv_ray.training.writers import TensorBoard, Writer, WriterName, check_writers, open_writer

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


@dataclass(frozen=True)
class ShownAnswer:
    """One answer to a validation row. The question is left out: numbers and answers are enough to
    see what goes wrong."""

    row: int
    """Of the split."""
    answer: str
    reference: str
    right: bool


@dataclass(frozen=True)
class ValidationEvent:
    """What a look at the validation split came to; None where there is no value."""

    step: int
    """Steps done."""
    total_steps: int
    epoch: float
    rows: int
    loss: float
    accuracy: float | None = None
    accuracy_open: float | None = None
    accuracy_closed: float | None = None
    rows_open: int = 0
    rows_closed: int = 0
    best: bool = False
    """Whether it is the best one so far, whose checkpoint is kept."""
    ended: bool = False
    """Whether the stage ends here, for want of a better one."""
    seconds: float = 0.0
    samples: tuple[ShownAnswer, ...] = ()
    kind: Literal["validation"] = "validation"
    """By which its line is told from a step's, which has none."""

    def to_json(self) -> dict[str, Any]:
        """Fields of a line of events.jsonl; a value that is not finite is null."""
        fields = asdict(self)
        return {
            n: _finite(value) if isinstance(value, float) else value for n, value in fields.items()
        }

    def scalars(self) -> dict[str, float]:
        """Curves by name, what has no value left out."""
        names = ("loss", "accuracy", "accuracy_open", "accuracy_closed")
        named = {f"validation/{name}": getattr(self, name) for name in names}
        return {name: float(value) for name, value in named.items() if value is not None}

    def text(self) -> str:
        """The answers that are shown, as a table of Markdown; empty where there are none."""
        if not self.samples:
            return ""
        lines = ["| row | answer | reference | right |", "|---|---|---|---|"]
        for one in self.samples:
            said = [" ".join(t.replace("|", " ").split()) for t in (one.answer, one.reference)]
            lines.append(f"| {one.row} | {said[0]} | {said[1]} | {'yes' if one.right else 'no'} |")
        return "\n".join(lines)

    def progress(self) -> dict[str, Any]:
        """Fields of a line for a log: figures alone, nothing of a row."""
        shown = self.to_json()
        del shown["samples"]
        return {n: float(f"{v:.4g}") if isinstance(v, float) else v for n, v in shown.items()}

    def __str__(self) -> str:
        """A line for a terminal."""
        parts = [f"validation after step {self.step}", f"loss {self.loss:.4f}"]
        for name, value, rows in (
            ("right", self.accuracy, self.rows),
            ("open", self.accuracy_open, self.rows_open),
            ("closed", self.accuracy_closed, self.rows_closed),
        ):
            if value is not None:
                parts.append(f"{name} {value:.1%} of {rows}")
        parts += ["best so far"] * self.best
        parts += ["none was better for long: the stage ends"] * self.ended
        return "  ".join(parts)


Event = StepEvent | ValidationEvent


def event_of(line: dict[str, Any]) -> Event:
    """The event of a line of events.jsonl. Raises TypeError or KeyError for what is none."""
    fields: dict[str, Any] = dict(line)
    if fields.get("loss") is None:
        fields["loss"] = math.nan
    if fields.get("kind") != "validation":
        by_noise = tuple(fields.pop("loss_by_noise", ()))
        return StepEvent(**fields, loss_by_noise=by_noise)
    shown = tuple(ShownAnswer(**one) for one in fields.pop("samples"))
    return ValidationEvent(**fields, samples=shown)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def keep_until(path: Path, step: int) -> None:
    """Cut a file of events behind `step`, and from a line that is none; absent is fine."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):  # damaged
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

    def write(self, event: Event) -> None:
        """One line, in one call, so that a kill cuts the last line at most. Raises OSError."""
        if self._file is None:
            return
        append(self._file, json.dumps(event.to_json(), allow_nan=False).encode() + b"\n")
        scalars = event.scalars()
        for writer in self._writers:
            writer.write(event.step, scalars)
            # no other writer gets answers: they may go to another machine
            if isinstance(writer, TensorBoard) and isinstance(event, ValidationEvent):
                writer.show(event.step, event.text())

    def close(self) -> None:
        """Finish what the writers hold back. Raises OSError."""
        with ExitStack() as stack:
            if self._file is not None:
                stack.callback(os.close, self._file)
            for writer in self._writers:
                stack.callback(writer.close)
            self._writers, self._file = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
