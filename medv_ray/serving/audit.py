"""Who asked when, with digests in place of what was asked. Lines are chained by their digests.

A line names the SHA-256 of the line before it, so that one that was changed, taken out, put in or
moved is found by the line behind it. The last line has none behind it: keep its digest (the head)
elsewhere and hold the file against it later. Whoever may write the file can write all of it anew;
only a head that lies out of his reach tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

TAIL = 2**16
"""Bytes; a line is far shorter."""


class AuditLog:
    """A file to which lines are only ever added; each names the digest of the one before."""

    def __init__(self, path: str) -> None:
        """Raises OSError when the file cannot be opened."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._last = _last_line(self._file)

    def write(self, **fields: Any) -> None:
        """One line: the time and what is given.

        Raises OSError when it could not be written whole; the next one says so (`torn`).
        """
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            is_torn = self._last != b"" and _fields(self._last) is None
            torn = {"torn": True} if is_torn else {}
            # first, so that a line that is cut short shows where it belongs
            whole = {"before": _digest(self._last), **torn, "time": now, **fields}
            line = json.dumps(whole).encode() + b"\n"
            end = b"" if self._last.endswith(b"\n") or not self._last else b"\n"
            try:
                if os.write(self._file, end + line) < len(end + line):
                    raise OSError("only a part was written")
            except OSError:
                self._last = _last_line(self._file)
                raise
            self._last = line

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    lines: int
    """Number of the last line that follows from all before it."""
    head: str
    """Its digest, which stands for all of them."""
    broken: int | None
    """Number of the first line that does not follow from the one before; None: all do."""
    torn: tuple[int, ...]
    """Lines that a kill or a full disk cut short. The next line says so and names the digest of
    what is left; the last one of a file has no next."""
    has_head: bool
    """Whether the line is there whose digest was asked for."""


def verify(path: str, head: str | None = None) -> Verdict:
    """Follow the chain of a log; `head` is the digest of a line that must be there still.

    Raises OSError when the file cannot be read.
    """
    before = known = ""
    lines, torn, has_head = 0, list[int](), head is None
    is_cut = False
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            fields = _fields(line)
            if fields is None:
                follows = not is_cut and _is_start(line, before)
            else:
                follows = fields["before"] == before and (not is_cut or "torn" in fields)
            if not follows:
                if is_cut:  # which the next line would have to own to
                    number = torn.pop()
                return Verdict(lines, known, number, tuple(torn), has_head)
            before = _digest(line)
            is_cut = fields is None
            if is_cut:
                torn.append(number)
            else:
                lines, known = number, before
                has_head = has_head or known == head
    return Verdict(lines, known, None, tuple(torn), has_head)


def _fields(line: bytes) -> dict[str, Any] | None:
    """Of a line that is whole."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and "before" in fields else None


def _is_start(line: bytes, before: str) -> bool:
    """Whether this may be a line that was cut short here."""
    there, start = line.removesuffix(b"\n"), b'{"before": "%s"' % before.encode()
    is_one = there.count(b'{"before"') <= 1
    return bool(there) and is_one and start.startswith(there[: len(start)])


def _digest(line: bytes) -> str:
    """SHA-256 of a line; one without a line end gets it before the next is written."""
    return hashlib.sha256(line.removesuffix(b"\n") + b"\n").hexdigest() if line else ""


def _last_line(file: int) -> bytes:
    size = os.fstat(file).st_size
    tail = os.pread(file, min(size, TAIL), max(0, size - TAIL))
    lines = tail.splitlines(keepends=True)
    return lines[-1] if lines else b""
