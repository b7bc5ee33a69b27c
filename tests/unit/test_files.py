"""Files that are there whole or not at all, and what a disk's error means."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from medv_ray.errors import RunError
from medv_ray.files import disk_error, disk_errors_told, file_sha256, is_full, write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    for data in (b"first", b"second, longer", b""):
        write_atomic(file, data)
        assert file.read_bytes() == data
        assert file_sha256(file) == hashlib.sha256(data).hexdigest()
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    write_atomic(file, b"before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_atomic(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (SafetensorError("Error: No space left on device (os error 28)"), True),
        (SafetensorError(f"Error: Disk quota exceeded (os error {errno.EDQUOT})"), True),
        (RunError("E1503", "no room"), True),
        (RunError("E1511", "no rights"), False),
        (SafetensorError("Error: (os error 281)"), False),
        (PermissionError(errno.EACCES, "x", "/home/someone/28"), False),
        (None, False),
    ],
)
def test_a_full_disk_is_told_from_others(error: Exception | None, full: bool) -> None:
    assert is_full(error) == full
    if error is not None:
        made = disk_error("the dataset", error)
        assert (made.code, made.exit_code) == (("E1503", 5) if full else ("E1511", 1))
        assert "someone" not in str(made)


def test_an_error_that_is_no_disks_goes_on() -> None:
    with pytest.raises(ConnectionResetError), disk_errors_told("it"):
        raise ConnectionResetError(errno.ECONNRESET, "x")
    told = r"E1511: it could not be written \(EROFS\)"
    with pytest.raises(RunError, match=told), disk_errors_told("it"):
        raise OSError(errno.EROFS, "x")
