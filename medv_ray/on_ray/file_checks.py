"""What checks of a file's named values share: faults are given as `place: what`."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

NO_NAMES = "there must be names and values"


def under(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Named values under a name; empty for anything else, which a schema tells of."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def model_faults(model: type[BaseModel], value: Any, place: str) -> Iterator[str]:
    """Of values that a schema of ours is to take."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        yield from schema_faults(error, model, place)


def schema_faults(error: ValidationError, model: type[BaseModel], place: str = "") -> Iterator[str]:
    """Each error of pydantic's, with the names that may be meant."""
    for one in error.errors(include_url=False):
        where = ".".join(filter(None, (place, *map(str, one["loc"]))))
        if one["type"] == "extra_forbidden":
            known = _fields(model, one["loc"][:-1])
            near = get_close_matches(str(one["loc"][-1]), known) or sorted(known)
            yield f"{where}: no such field; there are: {', '.join(near)}"
        else:
            yield ": ".join(filter(None, (where, one["msg"].removeprefix("Value error, "))))


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    from medv_ray.setting_errors import kinds_of

    for part in path:
        if isinstance(part, int):
            continue
        kinds = kinds_of(model.model_fields[part].annotation) if part in model.model_fields else ()
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return list(model.model_fields)
