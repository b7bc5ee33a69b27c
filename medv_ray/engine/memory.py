"""Which errors say that memory was short."""

from __future__ import annotations

import torch

# what torch and cuBLAS say in a plain RuntimeError
WORDS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of the GPU, was short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
