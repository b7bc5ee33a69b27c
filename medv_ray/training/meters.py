"""What is measured while a model learns: loss by noise level, speed, memory.

Shapes: B rows, N bins of the noise level.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

DEFAULT_BINS = 10
WINDOW_S = 60.0


class LossByNoise:
    """Mean loss in N equal bins of t in [0, 1]: nearly all of it lies where t is small or large,
    and one number hides which of the two changed."""

    def __init__(self, bins: int = DEFAULT_BINS, device: str | torch.device = "cpu") -> None:
        """Raises ValueError unless `bins` is 4 to 10."""
        if not 4 <= bins <= 10:
            raise ValueError(f"bins={bins} must be 4 to 10")
        self.bins = bins
        self.flat = torch.zeros(2 * bins, dtype=torch.float64, device=device)
        """float64[2 N], sums of losses, then rows. Sum it over the ranks before `means`."""

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Count float[B] losses of rows at noise levels t float[B]; nothing waits for the GPU."""
        index = (t.detach().to(self.flat.device) * self.bins).long().clamp_(0, self.bins - 1)
        sums = losses.detach().to(self.flat)
        self.flat.index_add_(0, torch.cat((index, index + self.bins)),
                             torch.cat((sums, torch.ones_like(sums))))  # fmt: skip

    def means(self) -> tuple[float | None, ...]:
        """Mean loss of each bin; None where no row fell into it."""
        sums, rows = self.flat.view(2, -1).tolist()
        return tuple(s / n if n else None for s, n in zip(sums, rows, strict=True))

    def reset(self) -> None:
        """Forget all rows."""
        self.flat.zero_()


class Rate:
    """An amount a second, over a sliding window."""

    def __init__(
        self, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._total = 0.0
        self._points = deque([(clock(), 0.0)])

    def add(self, amount: float) -> None:
        """Count what was done since the last call."""
        now = self._clock()
        self._total += amount
        self._points.append((now, self._total))
        # the last point before the window stays: a step may take longer than the window
        while len(self._points) > 2 and self._points[1][0] <= now - self._window_s:
            self._points.popleft()

    @property
    def per_s(self) -> float | None:
        """None before the first amount."""
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start else None


class Speed:
    """Tokens a second, model-FLOPs utilisation and time left.

    The utilisation counts what the model needs (`row_flops(..., recompute=False)`), not what is
    computed again; the plan's 45 % counts both.
    """

    def __init__(
        self,
        total_steps: int,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = WINDOW_S,
    ) -> None:
        """`peak_flops` is FLOP/s of all GPUs together; None, on a CPU say, gives no utilisation."""
        self._total_steps = total_steps
        self._peak_flops = peak_flops
        self._tokens, self._flops, self._steps = (Rate(window_s, clock) for _ in range(3))

    def add(self, tokens: int, flops: float) -> None:
        """Count one step, over all workers."""
        self._tokens.add(tokens)
        self._flops.add(flops)
        self._steps.add(1)

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens.per_s

    @property
    def mfu(self) -> float | None:
        rate = self._flops.per_s
        return rate / self._peak_flops if rate is not None and self._peak_flops else None

    def eta_s(self, step: int) -> float | None:
        """Seconds until the last step, `step` of them being done."""
        rate = self._steps.per_s
        return (self._total_steps - step) / rate if rate else None


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes that tensors took on a GPU, or this process on a CPU, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
