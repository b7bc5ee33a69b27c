"""Local files: whole or not there at all, and their digests.

What `write_atomic` wrote is there after a power cut, as a whole or as it was before.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PathLike = str | os.PathLike[str]


def write_atomic(path: PathLike, data: bytes) -> None:
    """Have a file with this content in the place of an earlier one. Raises OSError."""
    hidden = f"{os.fspath(path)}.tmp"
    write_durably(hidden, data)
    put_in_place(hidden, path)


def write_durably(path: PathLike, data: bytes, mode: int = 0o666) -> None:
    """Write a file and force its bytes to disk; leave nothing on failure. Raises OSError.

    `mode`: of a new file, less what the umask takes.
    """
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def append(handle: int, data: bytes) -> None:
    """Add all of it to the end of an open file, or nothing. Raises OSError."""
    size = os.fstat(handle).st_size
    left = memoryview(data)
    try:
        while left:  # a disk that fills up writes a piece first
            left = left[os.write(handle, left) :]
    except BaseException:
        os.ftruncate(handle, size)
        raise


def put_in_place(hidden: PathLike, path: PathLike) -> None:
    """Rename a file or a folder, and force the name to disk. Raises OSError."""
    os.replace(hidden, path)
    sync(os.path.dirname(path) or ".")


def sync(place: PathLike) -> None:
    """Force a file's bytes, or the names in a folder, to disk. Raises OSError."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: PathLike) -> str:
    """64 hex digits of a file's content. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
