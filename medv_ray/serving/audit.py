"""Who asked when, with digests in place of what was asked. Lines are chained by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from typing import Any


class AuditLog:
    """A file to which lines are only ever added; each names the digest of the one before."""

    def __init__(self, path: str) -> None:
        """Raises OSError when the file cannot be opened."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()
        self._before = _last_digest(self._file)

    def write(self, **fields: Any) -> None:
        """One line: the time and what is given."""
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, **fields, "before": self._before}).encode() + b"\n"
            os.write(self._file, line)
            self._before = hashlib.sha256(line).hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def verify(path: str) -> int | None:
    """The number of the first line that does not follow from the one before; None: all do."""
    before = ""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                chained = json.loads(line)["before"]
            except (ValueError, KeyError, TypeError):
                return number
            if chained != before:
                return number
            before = hashlib.sha256(line).hexdigest()
    return None


def _last_digest(file: int) -> str:
    size = os.fstat(file).st_size
    tail = os.pread(file, min(size, 2**16), max(0, size - 2**16))
    lines = tail.splitlines(keepends=True)
    return hashlib.sha256(lines[-1]).hexdigest() if lines else ""
