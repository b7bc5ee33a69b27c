"""A table of numbers as Ray's own metrics, which its Prometheus endpoint shows for all replicas,
proxies and jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.util import metrics

from medv_ray.serving.meters import METERS, Meter


class RayMeters:
    """Some lines of the table, in this process."""

    def __init__(self, names: Iterable[str] = METERS, table: Mapping[str, Meter] = METERS) -> None:
        self._table = table
        kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._made: dict[str, Any] = {}
        for name in names:
            meter = table[name]
            if meter.kind == "histogram":
                self._made[name] = metrics.Histogram(
                    name, meter.help, list(meter.buckets), meter.labels
                )
            else:
                self._made[name] = kinds[meter.kind](name, meter.help, meter.labels)

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See serving.meters.Backend."""
        verb = {"counter": "inc", "gauge": "set", "histogram": "observe"}[self._table[name].kind]
        getattr(self._made[name], verb)(value, tags=labels)
