"""For every test: without a GPU, Triton interprets kernels on the CPU; the garbage collector passes
over what the imports left (0.4 s a collection).
"""

import gc
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
