"""The names of torch's that begin with an underscore, all that are used: oneDNN's product with a
weight that was laid out once, and the product with a weight in int8, have no public name. `missing`
says which of the first this torch lacks, `has_int8` whether it has the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("_linear_pointwise", "_reorder_linear_weight")


def missing() -> list[str]:
    """Those of `NAMES` that this torch does not have."""
    return [name for name in NAMES if not hasattr(torch.ops.mkldnn, name)]


def reorder(weight: Tensor, num_rows: int) -> Tensor:
    """float32[V, D] in a layout that oneDNN chooses for products with `num_rows` rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
    return packed


def product(rows: Tensor, packed: Tensor, after: str) -> Tensor:
    """float32[N, D] -> float32[N, V]; `after` "swish" takes silu of it, "none" nothing."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, None, after, [], "")
    return out


def product_times(rows: Tensor, packed: Tensor, times: Tensor) -> Tensor:
    """float32[N, D] -> float32[N, V], multiplied by `times` float32[N, V]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, times, packed, None, "mul")
    return out


def has_int8() -> bool:
    """Whether this torch multiplies by int8 weights without widening them first."""
    return hasattr(torch, "_weight_int8pack_mm")


def int8_product(rows: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """float[N, D] x int8[V, D] -> float[N, V], each column times its scale float[V]."""
    out: Tensor = torch._weight_int8pack_mm(rows, weight, scales)
    return out
