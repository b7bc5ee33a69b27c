"""Where kernels run, and the small constants that they read on the device."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

ALIGNED = 64
"""Rows of logits that are made here begin at multiples of so many numbers. LLaDA-V's vocabulary is
odd, and products are slow where rows begin at odd addresses."""
PROGRAMS = 4 * 132
"""Programs that a launch should at least have: four for each processor of an H100 or H200."""


def interpreting() -> bool:
    """Whether Triton runs kernels on the CPU, element by element: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels_run_on(device: torch.device) -> bool:
    """Whether the launchers of this package accept tensors of `device`."""
    return find_spec("triton") is not None and (device.type == "cuda" or interpreting())


def check_device(tensor: Tensor, name: str) -> None:
    """Raises RuntimeError where no kernel can run on the tensor, any[...]."""
    if not kernels_run_on(tensor.device):
        raise RuntimeError(
            f"{name} runs as a Triton kernel, and `{tensor.device}` takes none "
            f"(triton {'is' if find_spec('triton') else 'is not'} installed): "
            f"call medv_kernels.reference, or set TRITON_INTERPRET=1 before triton is imported"
        )


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to `device`, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def constant(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as any[n] of `dtype`, copied to the device at the first call only. Do not change
    it.

    So a call that is captured in a CUDA graph copies nothing, if one like it ran before. Kept for
    good: a graph reads it where it lies.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def number(value: float, device: torch.device) -> Tensor:
    """float64[1], as kernels take single precision only. Nothing is copied from the host."""
    return torch.full((1,), value, dtype=torch.float64, device=device)


def aligned(width: int) -> int:
    """Numbers from one row of so many to the next."""
    return cdiv(width, ALIGNED) * ALIGNED


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of 2 that is at least n."""
    return 1 << max(0, n - 1).bit_length()
