"""Tensors of torch files (`.bin`, `.pt`, `.pth`), read without running what the files hold.

A limited child process (`pickle_child.py`) says where each tensor's bytes lie; its reply is checked
here, and the bytes are read from the file as numbers.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medv_ray.errors import CheckpointError
from medv_ray.model import pickle_child
from medv_ray.model.pickle_child import ITEM_BYTES
from medv_ray.model.shards import DTYPES, Stored

MOST_TENSORS = 100_000
_REPLY_BYTES = 2**26
_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Pickled(Stored):
    """Where a tensor lies in a torch file. The storage may be shared with other tensors."""

    stride: tuple[int, ...]
    offset: int
    """Of the first element in the storage, in elements."""
    storage: tuple[int, int, int]
    """Offset in the file and size in bytes, and crc32; 0: not recorded."""

    @property
    def num_bytes(self) -> int:
        """Of the tensor once it is dense."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def contents(file: Path) -> tuple[dict[str, Pickled], list[str]]:
    """Every tensor by name, and the names of plain values beside them. No tensor is read.

    Raises CheckpointError E1407 (damaged), E1412 (anything but dense tensors), E1413 (the child
    passed a limit).
    """
    reply = _ask(file)
    if "code" in reply:
        code, detail = str(reply["code"]), str(reply["detail"])[:200]
        if code == "E1407":
            raise CheckpointError("E1407", f"{file.name} {detail}.")
        raise CheckpointError("E1412", f"{file.name}: {detail}. Nothing of it was run.")
    try:
        found = _understand(file, reply)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError("E1407", f"{file.name}: its table of contents is wrong.") from None
    return found, [str(name)[:120] for name in reply.get("left_out", [])[:MOST_TENSORS]]


def read_tensor(entry: Pickled) -> Tensor:
    """The tensor, any[...] of the entry's shape, dense, in memory of its own. Raises
    CheckpointError E1407."""
    dtype = DTYPES[entry.dtype]
    if not math.prod(entry.shape):
        return torch.empty(entry.shape, dtype=dtype)
    item = ITEM_BYTES[entry.dtype]
    buffer = bytearray(_span(entry.shape, entry.stride) * item)
    with entry.file.open("rb") as stream:
        stream.seek(entry.storage[0] + entry.offset * item)
        if stream.readinto(buffer) != len(buffer):
            raise CheckpointError("E1407", f"{entry.file.name} is cut short.")
    # by bytes, as the older format does not align its storages
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)
    return flat.as_strided(entry.shape, entry.stride).contiguous()


def check_storages(entries: Iterable[Pickled]) -> None:
    """Compare the bytes with the checksums where the file has any. Raises CheckpointError E1407."""
    for file, (at, size, crc) in sorted({(e.file, e.storage) for e in entries if e.storage[2]}):
        found = 0
        with file.open("rb") as stream:
            stream.seek(at)
            while size and (chunk := stream.read(min(size, _CHUNK_BYTES))):
                found, size = zlib.crc32(chunk, found), size - len(chunk)
        if size or found != crc:
            raise CheckpointError("E1407", f"{file.name} does not match its own checksums.")


def _ask(file: Path) -> dict[str, Any]:
    """The child's reply. Raises CheckpointError E1413."""
    size = file.stat().st_size
    # the table of an 8B model takes 0.2 MB; the older format has it in front of all data
    memory_bytes = 2**29 + min(size // 8, 2**31)
    cpu_seconds = 10 + size // 2**30
    found = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    with file.open("rb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-W", "ignore", "-m", pickle_child.__name__]
            + [str(memory_bytes), str(cpu_seconds)],
            stdin=stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # where this process found its modules, and nothing else of the environment
            env={"PYTHONPATH": found, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    assert process.stdout is not None
    # the start of Python, and reading the file's end from a slow disk, take no CPU time
    timer = threading.Timer(60 + 4 * cpu_seconds, process.kill)
    timer.start()
    try:
        data = process.stdout.read(_REPLY_BYTES + 1)
        if len(data) > _REPLY_BYTES:
            process.kill()
        ended = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    try:
        reply = json.loads(data) if ended == 0 else None
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        how = f"signal {-ended}" if ended < 0 else f"exit status {ended}"
        raise CheckpointError(
            "E1413", f"{file.name}: its reader passed its limits of memory or time ({how})."
        )
    return reply


def _understand(file: Path, reply: dict[str, Any]) -> dict[str, Pickled]:
    """The reply of a child that may have been taken over: every field is checked."""
    size = file.stat().st_size
    if len(reply["tensors"]) > MOST_TENSORS:
        raise ValueError("more tensors than any model has")
    found: dict[str, Pickled] = {}
    for name, (dtype, key, offset, shape, stride) in reply["tensors"].items():
        if key not in reply["storages"]:
            raise CheckpointError("E1407", f"{file.name} lacks the data of {name[:120]}.")
        storage = tuple(_whole(n) for n in reply["storages"][key])
        at, num_bytes, crc = storage
        entry = Pickled(
            file=file,
            name=name,
            shape=tuple(_whole(n) for n in shape),
            dtype=str(dtype),
            stride=tuple(_whole(n) for n in stride),
            offset=_whole(offset),
            storage=(at, num_bytes, crc),
        )
        if len(entry.shape) != len(entry.stride):
            raise ValueError("shape and stride differ")
        end = (entry.offset + _span(entry.shape, entry.stride)) * ITEM_BYTES[entry.dtype]
        if at + num_bytes > size or end > num_bytes:
            raise CheckpointError("E1407", f"{file.name} is cut short: {name[:120]}.")
        found[name] = entry
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError("no count")
    return value


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last, those between included; 0 for an empty tensor."""
    if not math.prod(shape):
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
