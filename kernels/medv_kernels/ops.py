"""The operations of a denoising step, by the device of their tensors: Triton on a GPU, plain torch
on a CPU. Signatures and results are those of `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from medv_kernels import reference
from medv_kernels.reference import Selection


def select(
    rows: Tensor, *args: Any, k: int | None = None, allowed: Tensor | None = None, **more: Any
) -> Selection:
    """`reference.select` of float[N, D]; on a GPU `k` saves nothing, and all odds are whole. With
    bool[N, V] `allowed`, rows are chosen for in plain torch on any device."""
    if allowed is not None or not takes_kernels(rows):
        return reference.select(rows, *args, k=k, allowed=allowed, **more)
    found: Selection = _of(rows, "select")(rows, *args, **more)
    return found


def commit(x: Tensor, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """`reference.commit` of int64[B, L]."""
    found: tuple[Tensor, Tensor] = _of(x, "commit")(x, *args, **more)
    return found


def commit_step(state: reference.ResponseState, *args: Any, **more: Any) -> None:
    """`reference.commit_step`."""
    _of(state.x, "commit_step", "commit")(state, *args, **more)


def takes_kernels(tensor: Tensor) -> bool:
    """Whether operations on a tensor, any[...], run as kernels."""
    return tensor.is_cuda


def _of(tensor: Tensor, name: str, module: str | None = None) -> Callable[..., Any]:
    """The function for a tensor. Triton is imported at the first one on a GPU."""
    home = import_module(f"medv_kernels.{module or name}") if takes_kernels(tensor) else reference
    found: Callable[..., Any] = getattr(home, name)
    return found
