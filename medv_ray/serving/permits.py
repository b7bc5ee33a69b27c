"""How many requests are answered at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from medv_ray.serving.options import LimitSettings
from medv_ray.serving.protocol import BadRequest


class Permits:
    """Room for requests, counted by the API key that they came with."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._by_key: Counter[str] = Counter()

    @contextmanager
    def taken(self, key: str) -> Iterator[None]:
        """Room for one more; an empty key has no limit of its own.

        Raises BadRequest E1707 when there is none.
        """
        if self._by_key.total() >= self._limits.ongoing:
            raise BadRequest("E1707", f"{self._limits.ongoing} requests are being answered.")
        if key and self._by_key[key] >= self._limits.per_key:
            limit = self._limits.per_key
            raise BadRequest("E1707", f"{limit} requests of this API key are being answered.")
        self._by_key[key] += 1
        try:
            yield
        finally:
            self._by_key[key] -= 1
