"""API keys. Only their digests are kept in memory, and comparing takes the same time for any."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Self

from medv_ray.errors import SettingsError

KEYS_FILE = "MEDV_API_KEYS_FILE"
"""Environment variable: where keys are, unless settings say so."""
MIN_KEY_CHARS = 16


class Keys:
    """Who may ask. Without keys, nobody but clients on this machine."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        """`digests`: sha256 of each key by its name."""
        self._digests = dict(digests)

    @classmethod
    def load(cls, path: str | None) -> Self:
        """From a file of `name key` lines; a word that begins with '#' begins a comment.

        None: the file that the environment's MEDV_API_KEYS_FILE names, or no keys.

        Raises SettingsError E1702 for a file that cannot be read, holds no key, or a short one.
        """
        chosen = path or os.environ.get(KEYS_FILE)
        if not chosen:
            return cls({})
        try:
            lines = Path(chosen).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            kind = type(error).__name__
            raise SettingsError("E1702", f"the file of API keys cannot be read ({kind}).") from None
        found: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            words = list(takewhile(lambda word: not word.startswith("#"), line.split()))
            if not words:
                continue
            fit = len(words) == 2 and len(words[1]) >= MIN_KEY_CHARS and words[1].isascii()
            fit = fit and "#" not in words[1]
            if not fit or words[0] in found:
                raise SettingsError(
                    "E1702",
                    f"the file of API keys, line {number}: expected a name of its own and a key "
                    f"of {MIN_KEY_CHARS} ASCII characters or more, none of them '#'.",
                )
            found[words[0]] = _digest(words[1])
        if not found:
            raise SettingsError("E1702", "the file of API keys holds none.")
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an `Authorization: Bearer` header's value; None for any other."""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, owner = _digest(key.strip()), None
        for name, digest in self._digests.items():  # all of them, whichever fits
            owner = name if hmac.compare_digest(given, digest) else owner
        return owner


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
