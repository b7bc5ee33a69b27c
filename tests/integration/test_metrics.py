"""Every line of the tables of meters, through a running Ray, under the name that dashboards use."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest

from medv_ray.serving.meters import METERS
from tests.unit.on_ray.test_observability import OURS


@pytest.mark.slow
def test_names_that_ray_exports(local_ray: None) -> None:
    import ray

    from medv_ray.on_ray.job_meters import JOB_METERS
    from medv_ray.on_ray.meters import RayMeters

    for table in (METERS, JOB_METERS):
        meters = RayMeters(table, table)
        for name, meter in table.items():
            meters.add(name, 1.0, dict.fromkeys(meter.labels, "x"))
    [node] = ray.nodes()  # type: ignore[no-untyped-call]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60  # Ray hands numbers on every 10 s
    missing = set(OURS)
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        lines = dict(re.findall(r"^(ray_medv_\w+)\{([^}]*)\}", text, re.M))
        missing = set(OURS) - set(lines)
    assert not missing
    for name in ("ray_medv_job_open_rows", "ray_medv_job_rows_total"):
        assert {"SessionName", "WorkerId"} <= set(re.findall(r"(\w+)=", lines[name]))
