"""A set of source keys in their order, 32 bytes each: as Python's own set they would take 130."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class KeySet:
    """Built once, then asked. Keys are 32 hex digits; anything else is not in it."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._order = np.fromiter(map(bytes.fromhex, keys), "S16")
        self._keys = np.sort(self._order)

    def __len__(self) -> int:
        return len(self._keys)

    def at(self, index: int) -> str:
        """The key that was given at this place."""
        found: bytes = self._order[index]
        return found.ljust(16, b"\0").hex()  # numpy drops zeros at the end

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not in the set."""
        asked = list(keys)
        packed = np.array([_packed(key) for key in asked], "S16")
        at = np.searchsorted(self._keys, packed)
        there = np.zeros(len(asked), bool)
        inside = at < len(self._keys)
        there[inside] = self._keys[at[inside]] == packed[inside]
        return [key for key, found in zip(asked, there.tolist(), strict=True) if not found]


def _packed(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError:
        return b""
