"""What a disk's error means: a full disk is told as such, and by one code."""

import errno

import pytest
from safetensors import SafetensorError

from medv_ray.disk import disk_error, disk_errors, is_full
from medv_ray.errors import RunError


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
    with pytest.raises(ConnectionResetError), disk_errors("it"):
        raise ConnectionResetError(errno.ECONNRESET, "x")
    said = r"E1511: it could not be written \(EROFS\)"
    with pytest.raises(RunError, match=said), disk_errors("it"):
        raise OSError(errno.EROFS, "x")
