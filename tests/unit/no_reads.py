"""What a CUDA graph cannot hold raises, on a CPU too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
"""Of which the shape, or a value for the host, depends on numbers on the device."""
METHODS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class _NoReads(TorchDispatchMode):
    def __init__(self, constants: bool) -> None:
        super().__init__()
        self.constants = constants

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATIONS:
            raise AssertionError(f"{name} reads from the device")
        if name == "lift_fresh" and not self.constants:
            raise AssertionError("numbers are copied from the host")
        for part in args:
            indices = part if isinstance(part, (list, tuple)) else [part]
            masks = [i for i in indices if isinstance(i, Tensor) and i.dtype == torch.bool]
            if name.startswith("index") and masks:
                raise AssertionError("the shape depends on a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads(constants: bool = False) -> Iterator[None]:
    """Reads by the host, copies from it, and shapes that depend on numbers on the device raise
    AssertionError. `constants`: copies from the host are let be, as the plain reference makes."""

    def refuse(name: str) -> Any:
        def refused(*_: object) -> None:
            raise AssertionError(f"{name} reads from the device")

        return refused

    with ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(mock.patch.object(Tensor, name, refuse(name)))
        stack.enter_context(_NoReads(constants))
        yield
