"""The dashboard of cluster/grafana shows meters that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medv_ray.serving.meters import METERS

CLUSTER = Path(__file__).parents[3] / "cluster"


@pytest.mark.parametrize("panel", json.loads((CLUSTER / "grafana/medv.json").read_text())["panels"])
def test_dashboard_shows_meters_that_there_are(panel: dict[str, Any]) -> None:
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    shown = {f"ray_{n}{end}": m for n, m in METERS.items() for end in endings[m.kind]}
    for target in panel["targets"]:
        names = re.findall(r"ray_medv_\w+", target["expr"])
        assert names or "ray_serve_" in target["expr"]
        for name in names:
            assert name in shown, name
        for label in re.findall(r"[{,](\w+)=", target["expr"]):
            known = [*(label for m in METERS.values() for label in m.labels), "deployment"]
            assert label in known
