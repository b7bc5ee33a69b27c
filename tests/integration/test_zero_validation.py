"""Validation over two ZeRO-3 workers whose shares are uneven: the figures are those of one process,
and the weights do not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medv_ray.settings import SamplerSettings
from medv_ray.training.job import TrainSettings, ValidationSettings
from tests.integration import zero_worker
from tests.integration.test_zero import do, job

pytestmark = pytest.mark.timeout(600)
STEPS = 2
SAMPLER = SamplerSettings(gen_length=4, block_length=4, steps=4, rule="threshold", threshold=0.3)


def validated(home: Path, name: str, every: int | None = 1, **values: Any) -> TrainSettings:
    chosen = ValidationSettings(every=every, rows=5, batch_size=2, sampler=SAMPLER, samples=9)
    made = job(home, name, optimizer="sgd", max_steps=STEPS, **values)
    return made.model_copy(update={"validation": chosen})


def events(settings: TrainSettings) -> list[dict[str, Any]]:
    lines = (Path(settings.out) / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one.get("kind") == "validation"]


def files(settings: TrainSettings) -> dict[str, bytes]:
    folder = Path(settings.out) / "checkpoints" / f"step-{STEPS:08d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    cut = {"attention": "dialogue"}  # layers run once a row
    jobs = {
        "off": validated(tmp_path, "off", None),
        "on": validated(tmp_path, "on"),
        "cut": validated(tmp_path, "cut", **cut),
    }
    do(tmp_path, 2, [(settings, None) for settings in jobs.values()])
    assert len(files(jobs["off"])) == 2
    assert files(jobs["on"]) == files(jobs["off"])
    for name, values in (("on", {}), ("cut", cut)):
        plain = validated(tmp_path, f"{name}-plain", engine="plain", **values)
        assert zero_worker.do(plain)["error"] is None
        two, one = events(jobs[name]), events(plain)
        assert [event["step"] for event in two] == [1, 2]
        for mine, other in zip(two, one, strict=True):
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
            for figure in ("rows", "accuracy", "accuracy_open", "accuracy_closed", "best"):
                assert mine[figure] == other[figure]
            # of the first worker's share
            assert mine["samples"] == other["samples"][::2]
