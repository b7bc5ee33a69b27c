"""A job's numbers as Ray's own metrics: docs/observability.md has the table, cluster/grafana/ shows
them, cluster/alerts.yml watches them.

Labels hold words of this project's own lists and the stage's name from its settings, never a row's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medv_ray.on_ray.meters import RayMeters
from medv_ray.schema import STATUSES
from medv_ray.serving.meters import Meter

JOB_METERS: dict[str, Meter] = {
    "medv_job_rows": Meter("counter", "Rows committed, by status.", ("status",)),
    "medv_job_quarantined": Meter("counter", "Rows quarantined, by reason.", ("reason",)),
    "medv_job_open_rows": Meter("gauge", "Rows that the job has to go."),
    "medv_job_forward_passes": Meter("counter", "Forward passes of chunks that came back."),
    "medv_job_image_cache_hits": Meter("counter", "Pictures whose features were there already."),
    "medv_job_image_tower_runs": Meter("counter", "Pictures through the vision tower."),
    "medv_train_step": Meter("gauge", "Steps done.", ("stage",)),
    "medv_train_open_steps": Meter("gauge", "Steps that the job has to go.", ("stage",)),
    "medv_train_loss": Meter("gauge", "Loss of the last step.", ("stage",)),
    "medv_train_tokens_per_second": Meter("gauge", "Of all workers.", ("stage",)),
    "medv_train_memory_bytes": Meter("gauge", "Peak of a worker's GPU.", ("stage",)),
}
FROM_ACTORS = {
    "forward_passes": "medv_job_forward_passes",
    "image_hits": "medv_job_image_cache_hits",
    "tower_runs": "medv_job_image_tower_runs",
}
"""Counters of a chunk's result by their names here."""
FROM_STEPS = {
    "loss": "medv_train_loss",
    "tokens_per_s": "medv_train_tokens_per_second",
    "memory_bytes": "medv_train_memory_bytes",
}
"""Fields of a step's event by their names here."""


class ScoreMeters:
    """Of a scoring job, in its driver."""

    def __init__(self, open_rows: int) -> None:
        self._meters = RayMeters([name for name in JOB_METERS if "_job_" in name], JOB_METERS)
        self._open_rows = open_rows
        self._meters.add("medv_job_open_rows", open_rows, {})

    def take(self, rows: Mapping[str, int], reasons: Mapping[str, int]) -> None:
        """Count a committed chunk: its rows by status, and quarantined ones by reason."""
        for status in STATUSES:
            self._count("medv_job_rows", rows[status], {"status": status})
        for reason, count in reasons.items():
            self._count("medv_job_quarantined", count, {"reason": reason})
        self._open_rows -= sum(rows[status] for status in STATUSES)
        self._meters.add("medv_job_open_rows", self._open_rows, {})

    def work(self, counters: Mapping[str, int]) -> None:
        """Count what an actor did, whether its chunk was committed or not."""
        for theirs, name in FROM_ACTORS.items():
            self._count(name, counters.get(theirs, 0), {})

    def end(self) -> None:
        """Nothing is to go: a driver may live on, and its gauges with it."""
        self._meters.add("medv_job_open_rows", 0, {})

    def _count(self, name: str, more: int, labels: dict[str, str]) -> None:
        if more:  # Ray's counters take no zero
            self._meters.add(name, more, labels)


class TrainMeters:
    """Of a stage of training, in its driver."""

    def __init__(self, stage: str) -> None:
        self._meters = RayMeters([name for name in JOB_METERS if "_train_" in name], JOB_METERS)
        self._labels = {"stage": stage}

    def take(self, event: Mapping[str, Any]) -> None:
        """Show the last step, a line of events.jsonl."""
        step, total = event.get("step"), event.get("total_steps")
        if step is None or total is None:
            return
        self._meters.add("medv_train_step", step, self._labels)
        self._meters.add("medv_train_open_steps", total - step, self._labels)
        for field, name in FROM_STEPS.items():
            if (value := event.get(field)) is not None:
                self._meters.add(name, value, self._labels)

    def end(self) -> None:
        """Nothing is to go, and nothing is going on, however the stage has ended."""
        self._meters.add("medv_train_open_steps", 0, self._labels)
        self._meters.add("medv_train_tokens_per_second", 0, self._labels)
