"""What an endpoint counts: one table, shown as Prometheus text and, on Ray, through Ray as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Meter(NamedTuple):
    """One line of the table. `labels` never hold what a client chose freely."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
METERS: dict[str, Meter] = {
    "medv_requests": Meter("counter", "Requests by route and status.", ("route", "status")),
    "medv_front_refusals": Meter(
        "counter", "Refused or broken off by a proxy, by code.", ("code",)
    ),
    "medv_ongoing": Meter("gauge", "Answers being made or waiting for a slot."),
    "medv_request_seconds": Meter("histogram", "Whole requests.", ("route",), SECONDS),
    "medv_queue_seconds": Meter("histogram", "Waiting for a slot.", (), SECONDS),
    "medv_vision_seconds": Meter("histogram", "Decoding and vision tower.", (), SECONDS),
    "medv_denoise_seconds": Meter("histogram", "Slot taken to slot left, vision out.", (), SECONDS),
    "medv_answer_tokens": Meter("counter", "Tokens of answers."),
    "medv_prompt_tokens": Meter("counter", "Positions of prompts, images included."),
    "medv_steps": Meter("counter", "Forward passes of answers; tokens over these: per forward."),
    "medv_image_cache_hits": Meter("counter", "Pictures whose features were there already."),
    "medv_image_tower_runs": Meter("counter", "Pictures that went through the vision tower."),
    "medv_prompt_cache_hits": Meter("counter", "Prompts whose beginning was there already."),
    "medv_batch_lines": Meter("counter", "Lines of batch files by outcome.", ("outcome",)),
    "medv_memory_waits": Meter("counter", "Requests that waited for room for keys and values."),
    "medv_memory_shortages": Meter("counter", "Times that slots became fewer for want of memory."),
}
FROM_ENGINE = {
    "image_hits": "medv_image_cache_hits",
    "tower_runs": "medv_image_tower_runs",
    "prompt_hits": "medv_prompt_cache_hits",
    "memory_waits": "medv_memory_waits",
    "memory_shortages": "medv_memory_shortages",
}
"""The engine's counters by their names here."""


class Backend(Protocol):
    """Where numbers go."""

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """Add to a counter, set a gauge, or observe."""


class Prometheus:
    """A registry of its own, so that two endpoints in a process do not meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._made = {name: self._make(name, meter) for name, meter in METERS.items()}

    def _make(self, name: str, meter: Meter) -> Any:
        if meter.kind == "histogram":
            return Histogram(
                name, meter.help, meter.labels, buckets=meter.buckets, registry=self._registry
            )
        kind = Counter if meter.kind == "counter" else Gauge
        return kind(name, meter.help, meter.labels, registry=self._registry)

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See Backend."""
        made = self._made[name].labels(**labels) if labels else self._made[name]
        verb = {"counter": "inc", "gauge": "set", "histogram": "observe"}[METERS[name].kind]
        getattr(made, verb)(value)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)


class Meters:
    """The table's numbers, sent to all backends."""

    def __init__(self, others: Sequence[Backend] = ()) -> None:
        self._shown = Prometheus()
        self._backends: list[Backend] = [self._shown, *others]
        self._engine: dict[str, int] = {}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter, set a gauge, or observe, by its name in the table."""
        if METERS[name].kind == "counter" and not value:
            return  # Ray's counters take no zero
        for backend in self._backends:
            backend.add(name, value, labels)

    def follow(self, counters: dict[str, int]) -> None:
        """Take over what an engine has counted since the last call."""
        for ours, name in FROM_ENGINE.items():
            more = counters.get(ours, 0) - self._engine.get(ours, 0)
            if more > 0:
                self.add(name, more)
        self._engine = counters

    def text(self) -> bytes:
        """Prometheus's text format."""
        return self._shown.text()
