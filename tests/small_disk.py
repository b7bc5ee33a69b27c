"""A file system of some kilobytes, to be filled and set read-only; without root, tests skip."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> None:
        """Mount it anew: `size=8m`, `ro`."""
        command = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(command, check=True)

    @contextmanager
    def filled(self, free_bytes: int) -> Iterator[None]:
        """With no more room than that."""
        ballast = self.folder / "ballast"
        room = os.statvfs(self.folder)
        ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - free_bytes)))
        yield
        ballast.unlink()


@contextmanager
def small_disk(folder: Path, size: str = "400k") -> Iterator[SmallDisk]:
    """Mounted at `folder`, which is made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield SmallDisk(folder)
    finally:
        # lazily: a file that a failed write left open is closed with its last reference
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
