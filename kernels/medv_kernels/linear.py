"""rows @ weight.T on the CPU, with the weight laid out once for oneDNN.

A product of few rows with a tall weight is mostly the library rearranging that weight, at every
call. Done once, LLaDA's head of 126464 x 256 takes half the time for 1 to 64 rows, in the same
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medv_kernels import cpu, private_torch

ROWS = 64
"""Rows that the layout is chosen for; any number works."""


class PackedWeight:
    """A copy of a weight float32[V, D] in oneDNN's layout; later changes do not reach it."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        self.device, self.dtype = weight.device, weight.dtype
        self._packed = private_torch.reorder(weight.detach(), ROWS)

    def __len__(self) -> int:
        return self.shape[0]

    def product(self, rows: Tensor, times: Tensor | None = None, silu: bool = False) -> Tensor:
        """float32[N, D] -> float32[N, V]; silu of it, or `times` float32[N, V] the product, where
        that is asked for, without another pass over it."""
        if times is not None:
            return private_torch.product_times(rows, self._packed, times)
        return private_torch.product(rows, self._packed, "swish" if silu else "none")


class Int8Weight:
    """An int8[V, D] weight with a scale for each row, in bfloat16 on the CPU: torch's kernel widens
    a few numbers at a time, where a product of its own would first write all of them as bfloat16.
    """

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self.shape = values.shape
        self.device, self.dtype = values.device, scales.dtype
        self._values, self._scales = values, scales

    def product(self, rows: Tensor, times: Tensor | None = None, silu: bool = False) -> Tensor:
        """float[..., D] -> float[..., V] in bfloat16; `times` and `silu` as of PackedWeight."""
        flat = rows.reshape(-1, rows.shape[-1])
        flat = private_torch.int8_product(flat, self._values, self._scales)
        out = flat.view(*rows.shape[:-1], -1)
        if times is not None:
            return out * times
        return functional.silu(out) if silu else out


def pack(weight: Tensor) -> Tensor | PackedWeight:
    """A PackedWeight for float32[V, D] on a CPU whose torch has oneDNN, else `weight` itself."""
    if weight.device.type != "cpu":
        return weight
    if cpu.choice().startswith("onednn") and weight.dtype == torch.float32 and len(weight):
        return PackedWeight(weight)
    return weight


def linear(rows: Tensor, weight: Tensor | PackedWeight | Int8Weight) -> Tensor:
    """float[N, D] -> float[N, V], a new tensor."""
    if isinstance(weight, PackedWeight | Int8Weight):
        return weight.product(rows)
    return functional.linear(rows, weight)
