"""A folder that appears under its name when it is whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from medv_ray.disk import is_full
from medv_ray.errors import RunError, SettingsError
from medv_ray.files import put_in_place, sync

PARTIAL = ".partial"


def check_free(target: Path) -> None:
    """Raises SettingsError E1001 unless `target` does not exist, or is an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError("E1001", f"--out {target.name!r} is in use; take another.")


@contextmanager
def new_folder(target: Path, size_bytes: int) -> Iterator[Path]:
    """A folder beside `target` to fill; at the end it is forced to disk and gets the name.

    What a kill left of an earlier try is removed. Raises RunError E1503 or E1511 where the disk
    does not take it, with the size that was asked for; nothing is kept then.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in target.parent.iterdir():
            if old.name.startswith(f".{target.name}.") and old.name.endswith(PARTIAL):
                shutil.rmtree(old, ignore_errors=True)
        made = tempfile.mkdtemp(suffix=PARTIAL, prefix=f".{target.name}.", dir=target.parent)
        partial = Path(made)
        try:
            yield partial
            os.chmod(partial, 0o755)
            for path in (*partial.iterdir(), partial):
                sync(path)
            put_in_place(partial, target)  # an empty folder gives way
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        said = f"folder {target.name!r} takes {size_bytes / 1e9:.1f} GB; nothing of it is kept."
        raise RunError("E1503" if is_full(error) else "E1511", said) from None
