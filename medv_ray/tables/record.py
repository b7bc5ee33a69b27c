"""One record of a text table, and how its table is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from medv_ray.errors import DataError

CELL_BYTES = 2**26
"""Characters that a cell of a column may have that nobody asks for."""

Names = tuple[str, ...]
IsRow = Callable[[Names], bool]
"""Whether one of these names is a column that is asked for."""


class Style(NamedTuple):
    """How a table is written, as far as a record must know it that is read alone."""

    encoding: str = "utf-8"
    separator: str = ","
    skip_blanks: bool = False
    """Blanks behind a separator belong to no cell; the header has some."""


class Record(NamedTuple):
    """One record of a table."""

    offset: int
    length: int
    """Bytes."""
    line: int
    """Of the file, from 1, on which it begins."""
    names: Names
    values: dict[str, Any]
    error: DataError | None = None
