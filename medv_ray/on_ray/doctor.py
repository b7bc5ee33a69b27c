"""Is this machine ready? One line a check; nothing is changed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from medv_ray.on_ray.cluster import longest_folder
from medv_ray.on_ray.doctor_cluster import check_clock, check_cluster
from medv_ray.on_ray.doctor_gpu import check_processor
from medv_ray.on_ray.doctor_model import check_model
from medv_ray.on_ray.findings import Check, State, free_memory, gib, guarded

LEAST = {
    "torch": "2.11",
    "ray": "2.60",
    "transformers": "5.0",
    "safetensors": "0.6",
    "pyarrow": "21",
    "pillow": "12",
    "numpy": "2.0",
    "pydantic": "2.12",
}
"""As in pyproject.toml, which a test compares."""
OPTIONAL = {"deepspeed": ("0.19", "train", "training with ZeRO")}
"""Distribution: least version, extra, and what it is for."""
LOW_BYTES = 2 * 2**30
FULL = 0.95
"""Share of a disk in use from which Ray makes no more objects (local_fs_capacity_threshold)."""


def check_all(
    model: str = "toy", dashboard: str | None = None, out: str | None = None
) -> Iterator[Check]:
    """All checks, each as it is done. None raises.

    Args:
        model: checkpoint folder, `toy`, or `org/name@revision` of the hub.
        dashboard: address of a Ray dashboard to look at, beside those of this machine.
        out: a folder for results, which is to be writable.
    """
    checks: dict[str, Callable[[], Iterator[Check]]] = {
        "python": check_python,
        "packages": check_packages,
        "pictures": check_pictures,
        "processor": check_processor,
        "memory": check_memory,
        "disk": partial(check_disk, out),
        "clock": check_clock,
        "ray cluster": partial(check_cluster, dashboard),
        "model": partial(check_model, model),
    }
    for name, check in checks.items():
        yield from guarded(name, check)


def check_python() -> Iterator[Check]:
    """The interpreter's version."""
    fine = sys.version_info >= (3, 11)
    said = platform.python_version()
    yield Check(
        "ok" if fine else "fault", "python", said, "" if fine else "3.11 or newer is needed"
    )


def check_packages() -> Iterator[Check]:
    """Versions of what is needed, and of what training needs."""
    for name, least in LEAST.items():
        yield _package(name, least, "fault", "pip install --upgrade medv-ray")
    for name, (least, extra, purpose) in OPTIONAL.items():
        found = _package(name, least, "warning", f"pip install 'medv-ray[{extra}]'")
        yield found if found.state == "ok" else found._replace(said=f"{found.said}; for {purpose}")


def _package(name: str, least: str, wrong: State, fix: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(wrong, name, "not installed", fix)
    if numbers(version) < numbers(least):
        return Check(wrong, name, f"{version}; {least} or newer is needed", fix)
    return Check("ok", name, version)


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version: `2.11.0+cpu` is (2, 11, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


def check_pictures() -> Iterator[Check]:
    """Each format is written and read again; E1513 is what a job would end with."""
    from medv_ray.data.causes import works
    from medv_ray.formats import DEFAULT

    for name in DEFAULT:
        if name != "DICOM" and not works(name):
            said = f"Pillow does not read a {name} that is sound"
            yield Check("fault", "pictures", said, "pip install --force-reinstall pillow")
    if find_spec("pydicom") is None:
        yield Check("warning", "pictures", "DICOM is not read", "pip install 'medv-ray[dicom]'")


def check_memory() -> Iterator[Check]:
    """Main memory and shared memory."""
    free = free_memory()
    low = free < LOW_BYTES
    fix = "end other programs; a model of 8 billion parameters takes 16 GiB or more" if low else ""
    yield Check("warning" if low else "ok", "memory", f"{gib(free)} available", fix)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free
        low = size < LOW_BYTES // 4
        fix = (
            "give the container more, as with --shm-size=2g; Ray uses the disk instead"
            if low
            else ""
        )
        said = f"{gib(size)} free for Ray's object store"
        yield Check("warning" if low else "ok", "shared memory", said, fix)


def check_disk(out: str | None) -> Iterator[Check]:
    """The folder in which Ray keeps what it writes, and a folder for results."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    length, most = len(os.fsencode(temporary)), longest_folder()
    if length > most:
        said = f"its name has {length} bytes; Ray's sockets leave room for {most}"
        yield Check("fault", "temporary folder", said, "set RAY_TMPDIR to a shorter one")
    else:
        yield _folder("temporary folder", temporary, "set RAY_TMPDIR to a folder with room")
    from medv_ray.archive.store import is_local  # here: without pyarrow the others still go on

    if out is not None and not is_local(out):
        said = "an object store, which is not tried here"
        yield Check("warning", "results", said, "`medv score --plan` with the same --out reads it")
    elif out is not None:
        # a job makes the folder; what is above it must be there
        path = Path(out.removeprefix("file://")).absolute()
        there = next(str(one) for one in (path, *path.parents) if os.path.exists(one))
        yield _folder("results", there, "name another folder with --out")


def _folder(name: str, folder: str, fix: str) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"medv")
            file.flush()
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("fault", name, f"not writable ({type(error).__name__})", fix)
    used = 1 - usage.free / usage.total if usage.total else 1.0
    said = f"{gib(usage.free)} free, {used:.0%} of the disk in use"
    if usage.free < LOW_BYTES or used > FULL:
        why = "; from 95 % on Ray makes no more objects" if used > FULL else ""
        return Check("warning", name, said + why, fix)
    return Check("ok", name, said)
