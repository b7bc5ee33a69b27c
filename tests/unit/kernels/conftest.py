"""Kernels on a GPU where there is one, else in Triton's interpreter; fresh memory is poisoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=[DEVICE])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


class Counted:
    """A kernel that notes the grids it was launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self.kernel[grid]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], Counted]:
    """Replace a module's kernel by one that is counted."""

    def replace(module: Any, name: str) -> Counted:
        counted = Counted(getattr(module, name))
        monkeypatch.setattr(module, name, counted)
        return counted

    return replace


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory from torch.empty and its kin holds NaN, or a number that is no id and no count."""

    def fill(made: Tensor) -> Tensor:
        if made.dtype == torch.bool:
            return made.fill_(True)
        return made.fill_(torch.nan if made.is_floating_point() else -77)

    for name in ("empty", "empty_like"):
        real = getattr(torch, name)

        def poisoned(*args: Any, real: Any = real, **options: Any) -> Tensor:
            return fill(real(*args, **options))

        monkeypatch.setattr(torch, name, poisoned)
    fresh = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **o: fill(fresh(self, *a, **o)))
