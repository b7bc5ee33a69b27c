"""What a disk's error means, in words of the catalogue."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medv_ray.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that has no room."""
DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""Errors of a disk, for which another try is no help."""


def is_full(error: BaseException | None) -> bool:
    """Whether it says that a disk has no room; safetensors puts the system's error in words, and
    an error of ours has its code."""
    in_words = any(f"os error {code})" in str(error) for code in FULL)
    return (
        in_words or getattr(error, "errno", None) in FULL or getattr(error, "code", "") == "E1503"
    )


def disk_error(what: str, error: BaseException) -> RunError:
    """E1503 for a full disk, else E1511; `what` could not be written."""
    number = getattr(error, "errno", None)
    kind = errno.errorcode.get(number or 0, type(error).__name__)
    if is_full(error):
        return RunError("E1503", f"{what} could not be written: the disk is full.")
    return RunError("E1511", f"{what} could not be written ({kind}).")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Errors of a disk as `disk_error`; others go on as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise disk_error(what, error) from None


def output_folder(path: Path) -> None:
    """Make a folder to write to. Raises RunError E1507 where a file has the name, E1503, E1511."""
    with disk_errors("the output folder"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunError("E1507", f"{path.name} is a file; name a folder.") from None
