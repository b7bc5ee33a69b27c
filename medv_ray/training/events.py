"""From what the loop reports of a step to what the watchers get: speed, utilisation, time left."""

from __future__ import annotations

import torch

from medv_ray.model.config import ModelConfig
from medv_ray.training.flops import RowShape, row_flops
from medv_ray.training.gpus import peak_flops
from medv_ray.training.loop import Report
from medv_ray.training.meters import Speed
from medv_ray.training.stages import StageSettings
from medv_ray.training.watch import StepEvent


class Events:
    """Events of a stage, step by step; the speed is of the last minute."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageSettings,
        num_rows: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self._config, self._stage, self._num_rows = config, stage, num_rows
        self._num_steps = stage.steps(num_rows)
        peak = device_peak(device)
        self._speed = Speed(self._num_steps, peak and peak * num_workers)

    def __call__(self, report: Report) -> StepEvent:
        """The step's event. Call it once a step, right after it."""
        self._speed.add(report.num_tokens, step_flops(self._config, self._stage, report))
        return StepEvent(
            step=report.step,
            total_steps=self._num_steps,
            epoch=report.step * self._stage.batch_size / self._num_rows,
            loss=report.loss,
            lr=self._stage.lr * report.lr_factor,
            grad_norm=report.grad_norm,
            loss_by_noise=report.loss_by_noise,
            tokens_per_s=self._speed.tokens_per_s,
            mfu=self._speed.mfu,
            memory_bytes=report.memory_bytes,
            eta_s=self._speed.eta_s(report.step),
        )


def step_flops(config: ModelConfig, stage: StageSettings, report: Report) -> float:
    """FLOPs that the model needs for a step, taken as `batch_size` rows of the step's mean length.

    Less than is computed: attention grows with the square of the length, and a frozen tower, whose
    features are kept, is not counted.
    """
    rows = stage.batch_size
    mean = RowShape(report.num_tokens / rows, report.num_tiles / rows, report.num_masked / rows)
    return rows * row_flops(config, stage, mean, recompute=False).total


def device_peak(device: torch.device) -> float | None:
    """bf16 FLOP/s of a device; None for a CPU and for GPUs that are not listed."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device))
