"""The operations of a denoising step, by the device of their tensors: Triton on a GPU, plain torch
on a CPU, and for responses that are longer than a program holds. Signatures and results are those
of `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from medv_kernels import reference
from medv_kernels.commit import MOST
from medv_kernels.reference import Selection


def select(
    rows: Tensor, *args: Any, k: int | None = None, allowed: Tensor | None = None, **more: Any
) -> Selection:
    """`reference.select` of float[N, D]; on a GPU `k` saves nothing, and all odds are whole. With
    bool[N, V] `allowed`, rows are chosen for in plain torch on any device."""
    if allowed is not None or not takes_kernels(rows):
        return reference.select(rows, *args, k=k, allowed=allowed, **more)
    found: Selection = _kernel("select", "select")(rows, *args, **more)
    return found


def commit(x: Tensor, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """`reference.commit` of int64[B, L]."""
    found: tuple[Tensor, Tensor] = _committing(x, "commit")(x, *args, **more)
    return found


def commit_step(state: reference.ResponseState, *args: Any, **more: Any) -> None:
    """`reference.commit_step`."""
    _committing(state.x, "commit_step")(state, *args, **more)


def takes_kernels(tensor: Tensor) -> bool:
    """Whether operations on a tensor, any[...], run as kernels."""
    return tensor.is_cuda


def _committing(x: Tensor, name: str) -> Callable[..., Any]:
    """The function for int64[B, L]."""
    if takes_kernels(x) and x.shape[1] <= MOST:
        return _kernel(name, "commit")
    found: Callable[..., Any] = getattr(reference, name)
    return found


def _kernel(name: str, module: str) -> Callable[..., Any]:
    """The function that launches it. Triton is imported at its first call."""
    found: Callable[..., Any] = getattr(import_module(f"medv_kernels.{module}"), name)
    return found
