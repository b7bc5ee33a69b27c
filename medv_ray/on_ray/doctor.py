"""Is this machine ready? One line a check; nothing is changed."""

from __future__ import annotations

import ipaddress
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from medv_ray.errors import MedvError

NEEDED = ("torch", "ray", "transformers", "safetensors", "pyarrow", "pillow", "numpy", "pydantic")
DASHBOARD_PORT = 8265
TABLES, LISTEN = ("/proc/net/tcp", "/proc/net/tcp6"), "0A"
LOW_BYTES = 2 * 2**30


class Check(NamedTuple):
    """One finding."""

    state: Literal["ok", "note", "fault"]
    name: str
    said: str


def check_all() -> Iterator[Check]:
    """All checks, each as it is done."""
    for check in (_python, _packages, _pictures, _processor, _memory, _temporary, _cluster, _asset):
        yield from check()


def _python() -> Iterator[Check]:
    said = platform.python_version()
    yield Check("ok" if sys.version_info >= (3, 11) else "fault", "python", said)


def _packages() -> Iterator[Check]:
    for name in NEEDED:
        try:
            yield Check("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check("fault", name, "not installed; `pip install medv-ray` brings it")


def _pictures() -> Iterator[Check]:
    """Each format is written and read again; E1513 is what a job would end with."""
    from medv_ray.data.causes import works
    from medv_ray.formats import DEFAULT

    for name in DEFAULT:
        if name != "DICOM" and not works(name):
            yield Check("fault", "pictures", f"Pillow does not read a {name} that is sound")
    if find_spec("pydicom") is None:
        yield Check("note", "pictures", "no pydicom; `pip install 'medv-ray[dicom]'` reads DICOM")


def _processor() -> Iterator[Check]:
    yield Check("ok", "cpu", f"{len(os.sched_getaffinity(0))} cores")
    import torch

    if not torch.cuda.is_available():
        yield Check("note", "gpu", "torch sees none; scoring runs on the CPU")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Check("ok", f"gpu {index}", f"{name}, {_gib(free)} of {_gib(total)} free")


def _memory() -> Iterator[Check]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    yield Check("note" if free < LOW_BYTES else "ok", "memory", f"{_gib(free)} available")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free
        state: Literal["ok", "note"] = "note" if size < LOW_BYTES // 4 else "ok"
        yield Check(state, "shared memory", f"{_gib(size)} free for Ray's object store")


def _temporary() -> Iterator[Check]:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"medv")
            file.flush()
    except OSError as error:
        yield Check("fault", "temporary folder", f"not writable ({type(error).__name__})")
        return
    free = shutil.disk_usage(folder).free
    yield Check("note" if free < LOW_BYTES else "ok", "temporary folder", f"{_gib(free)} free")


def _cluster() -> Iterator[Check]:
    """A dashboard without authentication runs any code that reaches it: ShadowRay."""
    from ray import __version__

    local = _listens("127.0.0.1")
    if not local:
        yield Check("ok", "ray cluster", f"none on this machine (ray {__version__})")
        return
    guarded = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if not guarded and _open_to_others(DASHBOARD_PORT):
        yield Check(
            "fault",
            "ray dashboard",
            f"port {DASHBOARD_PORT} answers beyond this machine and RAY_AUTH_MODE is not `token`: "
            "who reaches it can run code. Use --dashboard-host=127.0.0.1, or token mode.",
        )
        return
    said = "token mode" if guarded else "this machine only"
    yield Check("ok", "ray dashboard", f"port {DASHBOARD_PORT}, {said}")


def _open_to_others(port: int) -> bool:
    """Whether a process of this machine listens on the port at any address but the loopback."""
    tables = [path for path in map(Path, TABLES) if path.exists()]
    lines = [line for table in tables for line in table.read_text().splitlines()]
    for fields in (line.split() for line in lines):
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == LISTEN and int(hexadecimal, 16) == port and not _is_loopback(address):
            return True
    return False


def _is_loopback(address: str) -> bool:
    """Of an address in /proc/net/tcp: words of 4 bytes, each in the machine's order."""
    words = [bytes.fromhex(address[i : i + 8]) for i in range(0, len(address), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    found = ipaddress.ip_address(packed)
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, DASHBOARD_PORT), timeout=0.5):
            return True
    except OSError:
        return False


def _asset() -> Iterator[Check]:
    from medv_ray.data.synthetic import grey_image
    from medv_ray.engine import Predictor, Request
    from medv_ray.on_ray.options import checkpoint_defaults
    from medv_ray.settings import TOY, AnswerSettings, ModelSettings

    def answer() -> str:
        settings = AnswerSettings.model_validate(checkpoint_defaults(str(TOY)))
        with Predictor.load(ModelSettings(path=str(TOY), device="cpu"), settings) as predictor:
            [ended] = predictor.answer([Request("ready?", (grey_image(),))])
        return f"loads and answers in {getattr(ended, 'forward_passes', 0)} passes"

    yield _attempt("embedded toy", answer)


def _attempt(name: str, call: Callable[[], str]) -> Check:
    try:
        return Check("ok", name, call())
    except MedvError as error:
        return Check("fault", name, str(error))
    except Exception as error:
        return Check("fault", name, type(error).__name__)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
