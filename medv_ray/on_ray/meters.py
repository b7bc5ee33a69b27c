"""The endpoint's numbers as Ray's own metrics, which its Prometheus endpoint shows for all replicas
and proxies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.util import metrics

from medv_ray.serving.meters import METERS


class RayMeters:
    """Some lines of the table, in this process."""

    def __init__(self, names: Iterable[str] = METERS) -> None:
        kinds = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._made: dict[str, Any] = {}
        for name in names:
            meter = METERS[name]
            if meter.kind == "histogram":
                self._made[name] = metrics.Histogram(
                    name, meter.help, list(meter.buckets), meter.labels
                )
            else:
                self._made[name] = kinds[meter.kind](name, meter.help, meter.labels)

    def add(self, name: str, value: float, labels: dict[str, str]) -> None:
        """See serving.meters.Backend."""
        verb = {"counter": "inc", "gauge": "set", "histogram": "observe"}[METERS[name].kind]
        getattr(self._made[name], verb)(value, tags=labels)
