"""The columns of a run whose answers have a form: what each blank has come to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from medv_ray.data.canvas import Blank, Choice, Filled, Number, Template


def fields(template: Template | None) -> list[pa.Field]:
    """Columns behind those of ANSWER_SCHEMA: `blank_X` and `confidence_X` of each blank X, and
    `probabilities_X` of a choice of texts, in their order."""
    found = []
    for part in template.parts if template is not None else ():
        if isinstance(part, str) or not part.name:
            continue
        found.append(pa.field(f"blank_{part.name}", _type(part)))
        found.append(pa.field(f"confidence_{part.name}", pa.float32()))
        if isinstance(part, Choice) and not part.values:
            found.append(pa.field(f"probabilities_{part.name}", pa.list_(pa.float32())))
    return found


def _type(blank: Blank) -> pa.DataType:
    if isinstance(blank, Number):
        return pa.float64() if blank.bounds.places else pa.int64()
    values = blank.values if isinstance(blank, Choice) else ()
    if values and all(isinstance(one, bool) for one in values):
        return pa.bool_()
    if values and all(type(one) is int for one in values):
        return pa.int64()
    return pa.string()


def record(blanks: Sequence[Filled], fields: Sequence[pa.Field]) -> dict[str, Any]:
    """The cells of those columns for one answer. In a column of text, what is none is JSON."""
    found: dict[str, Any] = {}
    kinds = {field.name: field.type for field in fields}
    for blank in blanks:
        name, value = f"blank_{blank.name}", blank.value
        if pa.types.is_string(kinds[name]) and not isinstance(value, str | None):
            value = json.dumps(value, ensure_ascii=False)
        found |= {name: value, f"confidence_{blank.name}": blank.confidence}
        if f"probabilities_{blank.name}" in kinds:
            found[f"probabilities_{blank.name}"] = [*blank.probabilities.values()]
    return found
