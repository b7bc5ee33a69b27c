"""Weight-only int8 and int4 of the language tower's matrices, by torchao.

Embeddings, norms, head, vision tower and projector keep their dtype: they are read for few rows, or
once an image. Activations keep theirs too. The folder, and so its digest, stays what it is.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from medv_kernels import private_torch
from medv_kernels.linear import Int8Weight
from medv_ray.errors import SettingsError, no_torchao
from medv_ray.model.llada import Linear
from medv_ray.model.medv import Medv

GROUPS = (128, 64, 32)
REFUSALS = (RuntimeError, NotImplementedError, ImportError, AssertionError, TypeError, ValueError)
"""What torch and torchao raise where a kernel, or the package that brings it, is missing."""


def quantise(model: Medv, how: str, group_size: int, device: str | torch.device) -> None:
    """Put int8 or int4 weights in the place of the language tower's, one matrix after the other on
    `device`, and the rest of the model there too. No training, merging or saving from here on.

    Args:
        how: int8 (a scale for each row) or int4 (for each `group_size` weights of a row).

    Raises SettingsError E1001 (a width that groups do not divide), E1003 (no torchao) or E1414 (no
    kernel for this device); the model is then of no use.
    """
    matrices = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    if how == "int4":
        check_groups({name: m.in_features for name, m in matrices.items()}, group_size)
    for matrix in matrices.values():
        quantise_matrix(matrix, how, group_size, device)
    model.to(device)


@torch.no_grad()
def quantise_matrix(matrix: Linear, how: str, group_size: int, device: str | torch.device) -> None:
    """One matrix, tried with a row at once. Raises SettingsError E1003, E1414."""
    place = torch.device(device).type
    logging.getLogger("torchao").setLevel(logging.ERROR)  # its warnings name libraries by path
    try:
        from torchao.quantization import quantize_
    except ImportError:
        raise no_torchao(how) from None
    try:
        matrix.packed = None
        quantize_(matrix.to(device), _config(how, group_size, place))
        matrix.packed = _int8_kernel(matrix)
        matrix(torch.ones(1, matrix.in_features, dtype=matrix.weight.dtype, device=device))
    except REFUSALS as error:
        dtype = str(matrix.weight.dtype).removeprefix("torch.")
        why = f"{dtype} on {place} ({type(error).__name__})"
        raise SettingsError("E1414", f"model.quantisation={how} does not run in {why}.") from error


def check_groups(widths: dict[str, int], group_size: int) -> None:
    """Raises SettingsError E1001 for the first matrix whose rows groups do not fill."""
    for name, width in widths.items():
        if width % group_size:
            fits = [g for g in GROUPS if all(w % g == 0 for w in widths.values())]
            way = f"model.group_size={fits[0]} does" if fits else "no other does; use int8"
            text = f"does not divide the {width} inputs of {name}; {way}."
            raise SettingsError("E1001", f"model.group_size={group_size} {text}")


def _config(how: str, group_size: int, place: str) -> Any:
    """What torchao is asked for; of its int4 layouts those whose kernels come with torch."""
    import torchao.quantization as ao

    if how == "int8":
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)
    if place != "cpu":
        return ao.Int4WeightOnlyConfig(
            group_size, set_inductor_config=False, int4_packing_format="tile_packed_to_4d"
        )
    from torchao.prototype.quantization.int4 import inference_workflow as cpu

    return cpu.PrototypeInt4WeightOnlyConfig(group_size, set_inductor_config=False)


def _int8_kernel(matrix: Linear) -> Int8Weight | None:
    """torchao's own int8 product writes the whole matrix as bfloat16 first; torch has one for the
    CPU that does not."""
    weight: Any = matrix.weight  # of torchao's class
    values = getattr(weight, "qdata", None)
    if values is None or values.dtype != torch.int8 or values.device.type != "cpu":
        return None
    if weight.dtype != torch.bfloat16 or not private_torch.has_int8():
        return None
    return Int8Weight(values, weight.scale.flatten().to(torch.bfloat16))
