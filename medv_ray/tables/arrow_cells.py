"""Cells of Arrow columns as Python has them: one that it has not costs no other cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from medv_ray.tables.json_text import Repeated

_UNHELD = (ValueError, OverflowError, LookupError)
"""What pyarrow raises for a cell that Python has no value for."""


class NoDate:
    """Stands for a date that Python has not: out of the years 1 to 9999, or of an unknown time
    zone. No rule takes it for a cell."""

    def __str__(self) -> str:
        return "a date out of range"


def batch_records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Its rows, each with all columns."""
    columns = [cells_of(column) for column in batch.columns]
    for cells in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, cells, strict=True))


def cells_of(array: pa.Array) -> list[Any]:
    """Python values; see `value_of` for a cell that has none."""
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except _UNHELD:
        return [value_of(cell) for cell in array]


def value_of(cell: pa.Scalar) -> Any:
    """A cell as Python has it. Of one that it has not, text that is not UTF-8 stays bytes; for the
    rest stands what the rules for cells refuse."""
    try:
        return cell.as_py()
    except _UNHELD:
        if is_text(cell.type):
            return cell.as_buffer().to_pybytes()
        if is_list(cell.type):
            return [value_of(one) for one in cell.values]
        if not types.is_struct(cell.type):
            return NoDate()
        names = cell.type.names
        return {n: Repeated() if names.count(n) > 1 else value_of(cell[n]) for n in names}


def is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
