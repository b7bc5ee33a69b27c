"""Kinds of GPU: peak of dense bf16 products and memory, as NVIDIA's data sheets give them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

GpuName = Literal[
    "a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb", "l40s-48gb", "l4-24gb"
]


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    label: str
    peak_tflops: float
    """bf16, without sparsity."""
    memory_gb: float
    """10^9 bytes."""


# Data sheets of A100 (2021), H100 and H200 (2024; SXM), DGX B200, L40S and L4. Where a sheet gives
# the figure with sparsity, half of it.
GPUS: dict[GpuName, Gpu] = {
    "a100-40gb": Gpu("A100 40 GB", 312, 40),
    "a100-80gb": Gpu("A100 80 GB", 312, 80),
    "h100-80gb": Gpu("H100 SXM 80 GB", 989, 80),
    "h200-141gb": Gpu("H200 141 GB", 989, 141),
    "b200-180gb": Gpu("B200 180 GB", 2250, 180),
    "l40s-48gb": Gpu("L40S 48 GB", 362, 48),
    "l4-24gb": Gpu("L4 24 GB", 121, 24),
}


def peak_flops(device_name: str) -> float | None:
    """bf16 FLOP/s of a GPU by the name that CUDA gives it; None for one that is not listed.

    The PCIe forms of H100 and H200 are slower than the SXM forms and not listed, and a part of a
    GPU (MIG) has a part of its peak.
    """
    if re.search(r"\bH[12]00\b.*(PCIe|NVL)|\bMIG\b", device_name):
        return None
    for gpu in GPUS.values():
        kind = gpu.label.split()[0]
        if re.search(rf"\b{kind}\b", device_name):
            return gpu.peak_tflops * 1e12
    return None
