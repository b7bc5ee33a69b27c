"""Pickles of a public release, read without running anything in them."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

from medv_ray.errors import DataError

MAX_BYTES = 2**28
_OPCODES = {one.code: one for one in pickletools.opcodes}
_ALLOWED = {
    (module, kind.__name__): kind
    for module in ("builtins", "__builtin__")
    for kind in (list, tuple, dict, set, frozenset)
}


class _Plain(pickle.Unpickler):
    """Refuses every name but those of built-in containers: text and numbers need none, and a call
    of `str` makes a large thing of a small one."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise DataError("E1116", "")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("E1116", "")


def load_plain(path: Path) -> Any:
    """The content of a pickle of lists, dicts, text and numbers.

    Raises DataError E1116 for a pickle that names anything else, and E1105 when it is damaged or
    over MAX_BYTES.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError("E1105", f"{path.name} is over {MAX_BYTES} bytes.")
        with path.open("rb") as file:
            _check_numbers(file, path.stat().st_size)
            return _Plain(file, encoding="utf-8").load()
    except DataError as error:
        if error.code == "E1116":
            raise DataError(
                "E1116", f"{path.name} calls for something else than plain data; it was not loaded."
            ) from None
        raise
    # a damaged pickle raises whatever its opcodes stumble over
    except Exception as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} is no complete pickle ({kind}).") from None


def _check_numbers(file: BinaryIO, size: int) -> None:
    """Leaves the file at its start. Raises ValueError for an object that has a number which no
    pickle of this size comes to: the reader would make room for all below it, 16 bytes each."""
    while (code := file.read(1)) not in (b"", pickle.STOP):
        opcode = _OPCODES[code.decode("latin-1")]
        if code == pickle.STRING:  # which pickletools takes for ASCII
            file.readline()
        elif opcode.arg is not None:
            number = opcode.arg.reader(file)
            if code in (pickle.PUT, pickle.LONG_BINPUT) and not 0 <= number < size:
                raise ValueError
    file.seek(0)
