"""The child that reads the table of contents of a torch file: names, shapes, where the bytes lie.

A pickle is a program. Here it is run by Python's own unpickler in a namespace that holds four
harmless things (`NAMES` and the storage types), none of them from torch, in a process with limits
and without an environment. No tensor is made and no tensor byte is read: what comes out is JSON,
which the parent checks (`pickles.py`). Two formats (torch/serialization.py): a zip with `data.pkl`
and one stored member a storage; and the older stream of pickles with the storages behind them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
ITEM_BYTES = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
PICKLE_BYTES = 2**28
NESTED = ("state_dict", "model_state_dict", "module", "model")
"""Where trainers put the tensors beside other things."""
NO_TORCH_FILE = "is no torch file"


class Refused(Exception):
    """The file asks for something that a table of dense tensors does not need."""


class Damaged(Exception):
    """The file is cut short or malformed."""


class Storage(NamedTuple):
    dtype: str
    key: str


class Tensor(NamedTuple):
    """A view of a storage; all counts in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


# Instances without any attribute: the pickle's BUILD can set nothing on them.
class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
        counts = [offset, *shape, *stride]
        plain = isinstance(storage, Storage) and len(shape) == len(stride)
        if not plain or any(type(n) is not int or n < 0 for n in counts):
            raise Refused("a tensor of odd make")
        return Tensor(storage, offset, tuple(shape), tuple(stride))


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


class _Table(dict):  # type: ignore[type-arg]
    """An OrderedDict's stand-in; `_metadata`, which torch hangs on it, is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _MakeTable:
    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> _Table:
        return _Table(pairs)


NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _MakeTable(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
}


class Unpickler(pickle.Unpickler):
    """Knows the names of a table of dense tensors, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in NAMES:
            raise Refused(f"it names {f'{module}.{name}'[:80]!r}")
        return NAMES[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Refused("a reference that is no storage")
        if len(pid) == 6 and pid[5] is not None:
            raise Refused("a view of a storage, as torch wrote before 0.4")
        if pid[1] not in ITEM_BYTES or not isinstance(pid[2], str):
            raise Refused("a storage of an unknown type")
        return Storage(pid[1], pid[2])


def read(stream: BinaryIO) -> dict[str, Any]:
    """Tensors by name, storages by key, and what else lay there, of a file in either format."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    start = stream.read(8)
    stream.seek(0)
    if start.startswith(b"PK\x03\x04"):
        root, storages = _read_zip(stream)
    elif start.startswith(b"version "):
        raise Damaged("is a pointer of Git LFS, not the file itself")
    else:
        root, storages = _read_stream(stream, size)
    state, left_out = _state(root)
    tensors = {
        name: [t.storage.dtype, t.storage.key, t.offset, t.shape, t.stride]
        for name, t in state.items()
    }
    return {"tensors": tensors, "storages": storages, "left_out": left_out}


def _read_zip(stream: BinaryIO) -> tuple[Any, dict[str, list[int]]]:
    try:
        members = zipfile.ZipFile(stream).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Damaged("is a zip without an end: half-written, or a partial download") from None
    storages: dict[str, list[int]] = {}
    pickled, byteorder = b"", b"little"
    for member in members:
        _, _, name = member.filename.partition("/")
        if name not in ("data.pkl", "byteorder") and not name.startswith("data/"):
            continue
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused("a compressed or encrypted member")
        # the local header repeats the name, and pads so that the data is aligned
        stream.seek(member.header_offset)
        header = stream.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Damaged("has a member without a header")
        at = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if name.startswith("data/"):
            storages[name.removeprefix("data/")] = [at, member.file_size, member.CRC]
            continue
        if member.file_size > PICKLE_BYTES:
            raise Refused("a pickle of over 256 MiB")
        stream.seek(at)
        content = stream.read(member.file_size)
        pickled, byteorder = (content, byteorder) if name == "data.pkl" else (pickled, content)
    if not pickled:
        raise Damaged(f"{NO_TORCH_FILE}: a zip without data.pkl")
    if byteorder.strip() != b"little":
        raise Refused("numbers in big-endian order")
    return Unpickler(io.BytesIO(pickled)).load(), storages


def _read_stream(stream: BinaryIO, size: int) -> tuple[Any, dict[str, list[int]]]:
    if not stream.peek(1).startswith(b"\x80") or Unpickler(stream).load() != MAGIC:  # type: ignore[attr-defined]
        raise Damaged(f"{NO_TORCH_FILE}, neither a zip nor the older format")
    Unpickler(stream).load()  # protocol version
    about = Unpickler(stream).load()
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise Refused("numbers in big-endian order")
    used = _Used(stream)
    root = used.load()
    keys = Unpickler(stream).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damaged("has no list of storages")
    storages: dict[str, list[int]] = {}
    at = stream.tell()
    for key in keys:
        if key not in used.dtypes:
            raise Damaged("lists a storage of no tensor")
        stream.seek(at)
        count = stream.read(8)
        if len(count) < 8:
            raise Damaged("is cut short")
        num_bytes = struct.unpack("<q", count)[0] * ITEM_BYTES[used.dtypes[key]]
        if num_bytes < 0 or at + 8 + num_bytes > size:
            raise Damaged("is cut short")
        storages[key] = [at + 8, num_bytes, 0]
        at += 8 + num_bytes
    return root, storages


class _Used(Unpickler):
    """Remembers the type of each storage, which the older format says nowhere else."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.dtypes: dict[str, str] = {}

    def persistent_load(self, pid: Any) -> Storage:
        storage = super().persistent_load(pid)
        if self.dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise Refused("a storage of two types")
        return storage


def _state(root: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, and the names of what is left out."""
    if not isinstance(root, dict):
        raise Refused("it holds no dictionary of tensors")
    left_out: list[str] = []
    table = root
    if not any(isinstance(value, Tensor) for value in root.values()):
        inner = [name for name in NESTED if isinstance(root.get(name), dict) and root[name]]
        if len(inner) != 1:
            raise Refused("it holds no dictionary of tensors")
        table = root[inner[0]]
        left_out = [str(name)[:120] for name in root if name != inner[0]]
    state: dict[str, Tensor] = {}
    for name, value in table.items():
        if not isinstance(name, str):
            raise Refused("a tensor's name that is no text")
        if isinstance(value, Tensor):
            state[name] = value
        elif value is None or isinstance(value, bool | int | float | str):
            left_out.append(name[:120])
        else:
            raise Refused(f"{name[:120]!r} is no tensor")
    if not state:
        raise Refused("it holds no dictionary of tensors")
    return state, left_out


def limit(memory_bytes: int, cpu_seconds: int) -> None:
    """From here on: no more memory or time than this, no file opened or written, no process."""
    "".encode("cp437")  # zip's own encoding is a module that is loaded when it is first used
    for what, amount in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),
    ):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))


def main() -> None:
    """Read the file that is standard input; write the reply to standard output."""
    limit(int(sys.argv[1]), int(sys.argv[2]))
    try:
        reply = read(os.fdopen(0, "rb"))
    except Refused as error:
        reply = {"code": "E1412", "detail": str(error)}
    except Damaged as error:
        reply = {"code": "E1407", "detail": str(error)}
    except MemoryError:
        raise SystemExit(1) from None
    except Exception as error:  # what a malformed pickle makes the unpickler raise is any of many
        reply = {"code": "E1407", "detail": f"is cut short or damaged ({type(error).__name__})"}
    sys.stdout.write(json.dumps(reply))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
