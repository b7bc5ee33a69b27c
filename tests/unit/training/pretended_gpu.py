"""A GPU pretended on the CPU: tensors are marked, and an operation on a marked one and an unmarked
one of any dimension raises, as torch does for two devices. Backward passes are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
# these take indices, masks and sources of the host
MIXED = {Tensor.__getitem__, Tensor.to, Tensor.copy_, Tensor.type_as, Tensor.new_zeros}


class PretendedGpu(TorchFunctionMode):
    """Inside, marked tensors say that they are on `GPU`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return GPU if marked(args[0]) else func(*args)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_gpu = [marked(tensor) for tensor in tensors]
        if any(on_gpu) and func not in MIXED:
            for tensor, there in zip(tensors, on_gpu, strict=True):
                assert there or tensor.dim() == 0, f"{func.__name__} mixes devices"
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device | str)]
        args, kwargs = tree_map(lambda x: torch.device("cpu") if x == GPU else x, (args, kwargs))
        there = bool(on_gpu) and on_gpu[0] if func in MIXED else any(on_gpu)
        if func is Tensor.to and len(tensors) == 2:
            there = on_gpu[1]
        if GPU in devices:
            there = True
        elif func is Tensor.cpu or "cpu" in devices or torch.device("cpu") in devices:
            there = False
        made = func(*args, **kwargs)
        return tree_map(lambda x: put(x, there) if isinstance(x, Tensor) else x, made)


def marked(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "on_gpu", False))


def put(tensor: Tensor, there: bool) -> Tensor:
    """The tensor, or another look at it, marked or not."""
    if marked(tensor) != there:
        tensor = torch.ops.aten.alias(tensor)
        tensor.on_gpu = there  # type: ignore[attr-defined]
    return tensor


def move(model: torch.nn.Module) -> None:
    """Mark all that a model holds."""
    for held in (*model.parameters(), *model.buffers()):
        held.on_gpu = True  # type: ignore[attr-defined, union-attr]
