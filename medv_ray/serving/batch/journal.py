"""How far a batch has come: a line a commit, with its checksum, as the archive's ledger has it.

A commit says how many bytes of the input are done, and how long the output and error files are with
what came of them. Whatever lies behind those lengths never happened: whoever goes on cuts it off.
So each line of the input stands once in one of both, whenever the process is killed.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Literal

from medv_ray import files
from medv_ray.archive.ledger import is_sound, parse, render
from medv_ray.errors import RunError

Status = Literal["in_progress", "finalizing", "completed", "cancelled", "expired", "failed"]
OVER = ("completed", "cancelled", "expired", "failed")
TAIL = 2**16
"""Bytes; a record is far shorter."""


@dataclass(frozen=True)
class Progress:
    """All there is to know of a batch after a commit."""

    began: float
    """Times are in seconds since 1970."""
    time: float
    total: int
    """Lines of the input that hold something."""
    status: Status = "in_progress"
    lines: int = 0
    """Of the input, done, blank ones included."""
    offset: int = 0
    """Bytes of the input."""
    output_bytes: int = 0
    error_bytes: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    finishing: float | None = None
    outcome: Status | None = None
    """What it will be once its files are in place."""
    code: str | None = None
    """Of what the whole batch failed for."""
    message: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in OVER


def last(path: str) -> Progress | None:
    """The last commit; None before the first. Raises RunError E1506, OSError."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            whole, newline, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return None
    if not newline:  # the first record never happened
        return None
    line = whole.rpartition(b"\n")[2] + b"\n"
    if not is_sound(line):
        raise RunError("E1506", "the last record of a batch does not match its checksum.")
    try:
        return Progress(**parse(line, 0))
    except TypeError:
        raise RunError("E1506", "a batch's last record is none that is known here.") from None


class Journal:
    """The one writer of a batch's commits."""

    def __init__(self, path: str) -> None:
        """Open it behind its last whole record; a torn one is cut off. Raises RunError E1506,
        OSError."""
        self.progress = last(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, TAIL, max(0, size - TAIL))
        os.ftruncate(self._file, size - len(tail.rpartition(b"\n")[2]))
        files.sync(os.path.dirname(path) or ".")

    def append(self, progress: Progress) -> None:
        """Make a commit durable. Raises OSError; the journal is then as it was."""
        given = {name: value for name, value in asdict(progress).items() if value is not None}
        files.append(self._file, render(given))
        os.fsync(self._file)
        self.progress = progress

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
