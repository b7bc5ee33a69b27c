"""Steps that go wrong in numbers: what is not finite ends the run, what is large is clipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medv_ray.errors import RunError
from medv_ray.training.objective import Objective, Sample
from tests.unit.training.test_run import job, train
from tests.unit.training.test_updates import often, weights_at

pytestmark = pytest.mark.integration

PIECES = 2
"""Micro-batches of a step."""


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, change: Any) -> None:
    """Have the loss of one step's last micro-batch changed; what is told of its rows stays."""
    real, calls = Objective.forward, [0]

    def forward(self: Objective, samples: list[Sample], *more: Any) -> tuple[Any, ...]:
        loss, *rest = real(self, samples, *more)
        calls[0] += 1
        return (change(loss) if calls[0] == step * PIECES else loss, *rest)

    monkeypatch.setattr(Objective, "forward", forward)


def steep(loss: torch.Tensor) -> torch.Tensor:
    """The same value; its gradient is beyond float32's largest number."""
    return loss + (loss - loss.detach()) * 3e38 * 10


def test_an_infinite_gradient_ends_the_run_in_its_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 4, steep)
    settings = often(job(home, tmp_path))
    with pytest.raises(RunError, match="E1602: the gradient of step 4 is not finite"):
        train(settings)
    saved = sorted(path.name for path in (Path(settings.out) / "checkpoints").iterdir())
    assert saved == [f"step-{step:08d}" for step in (1, 2, 3)]
    assert bool(weights_at(settings, 3).isfinite().all())


def test_a_loss_that_explodes_moves_the_weights_no_further_than_the_clip(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 4, lambda loss: loss * 1e6)
    settings = often(job(home, tmp_path, optimizer="sgd", lr=0.1, clip=0.01, warmup_ratio=0.0))
    reports = train(settings)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[3].grad_norm > 1e4 * reports[2].grad_norm, "the report does not show it"
    moved = float((weights_at(settings, 4) - weights_at(settings, 3)).norm())
    assert moved == pytest.approx(0.1 * reports[3].lr_factor * 0.01, rel=2e-3)
