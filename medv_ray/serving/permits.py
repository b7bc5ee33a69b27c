"""How many answers are made at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest


class Permits:
    """Rights to enter, one for each answer (`n` of a request), counted by API key."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._by_key: Counter[str] = Counter()

    def check(self, key: str, number: int) -> None:
        """Raises BadRequest E1701 for more answers than a request can ever get here."""
        most = min(self._limits.max_n, self._limits.ongoing)
        if key:
            most = min(most, self._limits.per_key)
        if number > most:
            raise BadRequest("E1701", f"n: the limit is {most}.", "n")

    @contextmanager
    def taken(self, key: str, number: int = 1) -> Iterator[None]:
        """Hold some; an empty key has no limit of its own.

        Raises BadRequest E1707 when there are not so many.
        """
        limits = self._limits
        if self._by_key.total() + number > limits.ongoing:
            rule = f"of {limits.ongoing} answers at the same time, too few are free."
            raise BadRequest("E1707", rule)
        if key and self._by_key[key] + number > limits.per_key:
            rule = f"of this API key's {limits.per_key} answers at the same time, too few are free."
            raise BadRequest("E1707", rule)
        self._by_key[key] += number
        try:
            yield
        finally:
            self._by_key[key] -= number
