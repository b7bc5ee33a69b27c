"""Looks for canaries in whatever was written, however it is spelt; counts what it looks at."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tests.canary.planting import NUMBER, WORD

Skip = Callable[[str], bool]


class Hit(NamedTuple):
    """A canary that was found."""

    place: str
    spelling: str
    around: str


@dataclass
class Tally:
    """What this process has searched, `planted` apart."""

    places: int = 0
    """Files, unpacked ones once more, their names, texts and values."""
    bytes: int = 0
    found: int = 0
    """Canaries where none may be."""
    planted: int = 0
    """Searches that found what a test had planted."""
    missed: int = 0
    """Searches that did not."""


TALLY = Tally()


@contextmanager
def planted() -> Iterator[None]:
    """What is searched inside holds canaries that a test has planted, and one must be found."""
    global TALLY
    kept, TALLY = TALLY, Tally()
    try:
        yield
    finally:
        found, TALLY = TALLY.found, kept
        TALLY.planted += bool(found)
        TALLY.missed += not found
    assert found, "the search does not find what was planted"


def _spellings(mark: str) -> Iterator[tuple[str, bytes]]:
    """What a mark looks like in files, by name. All in lower case: so is what is searched."""
    plain = mark.encode()
    yield "plain", plain.lower()
    yield "utf-16", mark.lower().encode("utf-16-le")
    yield "utf-16 be", mark.lower().encode("utf-16-be")
    yield "utf-32", mark.lower().encode("utf-32-le")
    yield "hex", plain.hex().encode()
    yield "percent", "".join(f"%{byte:02x}" for byte in plain).encode()
    yield "json", "".join(f"\\u{byte:04x}" for byte in plain).encode()
    yield "python bytes", "".join(f"\\x{byte:02x}" for byte in plain).encode()
    for before in range(3):  # where it begins inside three bytes
        code = base64.b64encode(b"\0" * before + plain)
        whole = 4 * ((before + len(plain)) // 3)  # what follows shares no digit with it
        yield f"base64 {before}", code[(0, 2, 3)[before] : whole].lower()


SPELLINGS = sorted(
    {
        (code, name)
        for mark in (WORD, WORD.upper(), WORD.title(), NUMBER)
        for name, code in _spellings(mark)
    }
)


def hits(data: bytes, place: str = "") -> list[Hit]:
    """The canaries in some bytes."""
    low = data.lower()
    found = []
    for code, name in SPELLINGS:
        at = low.find(code)
        if at >= 0:
            around = data[max(0, at - 60) : at + len(code) + 30]
            found.append(Hit(place, name, around.decode(errors="replace")))
    TALLY.places += 1
    TALLY.bytes += len(data)
    TALLY.found += bool(found)
    return found


def in_text(*texts: str) -> list[Hit]:
    """The canaries in what was printed."""
    return [hit for text in texts for hit in hits(text.encode(errors="surrogateescape"))]


def in_folder(folder: Path, skip: Skip = lambda name: False) -> list[Hit]:
    """The canaries in files below a folder and in their names; what is packed is unpacked."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if skip(name):
            continue
        found += hits(name.encode(errors="surrogateescape"), "a name")
        if path.is_file() and not path.is_symlink():
            for data in _contents(path):
                found += hits(data, name)
    return found


def _contents(path: Path) -> Iterable[bytes]:
    try:
        data = path.read_bytes()
    except OSError:  # a file of a process that ended meanwhile
        return
    yield data
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield f"{table.schema.metadata} {table.to_pylist()}".encode(errors="surrogateescape")
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def in_value(value: Any) -> list[Hit]:
    """The canaries in plain data, as states and settings are."""
    return hits(repr(value).encode(errors="surrogateescape"), "a value")
