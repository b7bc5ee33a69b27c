"""What pydantic says of a wrong setting, in words: field, value, rule and way out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from medv_ray.errors import MedvError, SettingsError


def refused(cls: type[BaseModel], error: ValidationError, quote: bool = True) -> SettingsError:
    """E1001, or the code of one of our own rules, for the first value that is wrong. The value is
    repeated only with `quote`."""
    found = error.errors(include_url=False)
    names, info = _setting(cls, found[0]["loc"])
    same = [one for one in found if names and _setting(cls, one["loc"])[0] == names]
    # each member of a union says why it does not take the value
    first = same[-1] if same and isinstance(same[0]["input"], list | tuple) else found[0]
    code = first["type"] if first["type"].startswith("E1") else "E1001"
    value, place = first.get("input"), first["loc"][len(names) :]
    given = "" if isinstance(value, dict) or not quote else f" (given: {str(value)[:60]!r})"
    rule = first["msg"].removeprefix("Value error, ")
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, MedvError):
        code, rule = ours.code, ours.detail.removesuffix(".")
    numbers = [part for part in place if isinstance(part, int)]
    if first["type"] == "extra_forbidden":
        known = _names(cls, first["loc"][:-1])
        near = get_close_matches(str(first["loc"][-1]), known) or known
        rule, given = f"there is no such setting; there are: {', '.join(near)}", ""
        names = [str(part) for part in first["loc"]]
    elif info and (
        first["type"] in ("tuple_type", "too_long") or (numbers and first["type"] == "missing")
    ):
        parts = get_args(info.annotation)
        size = "" if ... in parts else f" of {len(parts)} values"
        rule, numbers = f"must be a JSON list{size}, such as {_list_for(info, value, quote)}", []
    elif first["type"] == "too_short":
        rule = "must hold at least one value"
    elif first["type"] == "missing":
        rule = "is missing"
    name = ".".join(map(str, [*names, *numbers])) or cls.__name__
    count = len({tuple(_setting(cls, one["loc"])[0]) or one["loc"] for one in found})
    more = f" And {count - 1} more." if count > 1 else ""
    return SettingsError(code, f"{name}: {rule}{given}.{more}")


def kinds_of(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    return {annotation}.union(*(kinds_of(part) for part in get_args(annotation)))


def _setting(cls: type[BaseModel], loc: Iterable[int | str]) -> tuple[list[str], FieldInfo | None]:
    """The way to a setting and its field, without indices and pydantic's own names of the members
    of a union."""
    names: list[str] = []
    info, group = None, [cls]
    for part in map(str, loc):
        if not group or part not in group[0].model_fields:
            break
        names, info = [*names, part], group[0].model_fields[part]
        kinds = kinds_of(info.annotation)
        group = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
    return names, info


def _list_for(info: FieldInfo, given: Any, quote: bool) -> str:
    """A JSON list that a setting takes: what was given, put as one, else its default."""
    parts: list[Any] = []
    for part in str(given).strip(" ()[]").split(",") if quote else ():
        text = part.strip(" \"'")
        try:
            parts.append(json.loads(text))
        except (ValueError, RecursionError):
            parts.append(text)
    kind: Any = info.annotation
    try:
        return json.dumps(TypeAdapter[Any](kind).validate_python(parts))
    except ValidationError:
        return json.dumps(parts if info.is_required() else info.default)


def _names(cls: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """Settings of a group; empty where the path leads to none."""
    for part in path:
        field = cls.model_fields.get(str(part))
        kinds = kinds_of(field.annotation) if field else set()
        groups = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not groups:
            return []
        cls = groups[0]
    return list(cls.model_fields)
