"""Fields of a config.json, typed and bounded: what does not fit is named, never guessed at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medv_ray.errors import CheckpointError


def bad(rule: str) -> CheckpointError:
    """The error for a config.json that breaks `rule`."""
    return CheckpointError("E1410", f"config.json: {rule}.")


def size(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number from 1; null counts as absent. Raises CheckpointError E1410."""
    value = raw.get(name) if raw.get(name) is not None else default
    # the bound keeps a damaged file from building layers for hours
    limit = 1024 if name.endswith("layers") else 2**31
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        given = "absent" if value is None else repr(value)[:40]
        raise bad(f"{name} must be a whole number from 1 to {limit}, not {given}")
    return value


def number(raw: Mapping[str, Any], name: str, default: float) -> float:
    """A positive finite number; null counts as absent. Raises CheckpointError E1410."""
    value = raw.get(name) if raw.get(name) is not None else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise bad(f"{name} must be a positive number, not {repr(value)[:40]}")
    return float(value)


def pairs(raw: Mapping[str, Any], name: str) -> tuple[tuple[int, int], ...]:
    """A list of [width, height] in pixels, () where absent. Raises CheckpointError E1410."""
    try:
        given = raw.get(name) or []
        found = tuple((int(width), int(height)) for width, height in given)
    except (TypeError, ValueError):
        found = ((0, 0),)
    if any(side <= 0 for pair in found for side in pair):
        raise bad(f"{name} must be a list of [width, height] pairs of pixels")
    return found
