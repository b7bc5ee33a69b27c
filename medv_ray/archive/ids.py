"""Row ids: names of rows as tables have them, and the rule that makes them distinct.

A row without one is called `<stem>:<row>`, by a stem that its file alone has.

An id is a name and not a key: a row that repeats one is a row as well. The first row of a name has
it as it is; each later one is called `<id>#<file stem>:<row>`, which any later run repeats.
"""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import count, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.id_hashes import WIDTH, IdHashes
from medv_ray.archive.store import Stored
from medv_ray.errors import DataError
from medv_ray.tables.ids import MAX_ID_BYTES, id_text, normal

BATCH = 4096
_MADE = re.compile(r"(?:.*#)?([^#]*):(\d+)", re.DOTALL)


def source_files(files: Iterable[Stored], taken: Iterable[str] = ()) -> tuple[SourceFile, ...]:
    """Give every file a stem of its own, and none of those that are taken: its name without folder
    and ending where unique."""
    listed, taken = list(files), set(taken)
    stems = [clean_stem(posixpath.basename(f.name)) for f in listed]
    seen: dict[str, int] = dict.fromkeys(taken, 1)
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
    longer = [clean_stem(f.name.replace("/", ".")) for f in listed]
    chosen = [s if seen[s] == 1 else long for s, long in zip(stems, longer, strict=True)]
    result = []
    for file, wanted in zip(listed, chosen, strict=True):
        stem = next(s for s in numbered(wanted) if s not in taken)
        taken.add(stem)
        result.append(SourceFile(file.name, file.name, file.size, file.mtime_ns, stem))
    return tuple(result)


def numbered(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}~{number}"
        number += 1


def clean_stem(name: str) -> str:
    """A file name without its ending, with nothing in it that an id may not have."""
    stem = name.rpartition(".")[0] or name
    stem = "".join(c if c.isprintable() and c not in "/\\#" else "_" for c in stem)
    return stem.replace("..", "__").encode(errors="replace").decode()[:128].strip() or "file"


def fallback_id(stem: str, row: int) -> str:
    """The id of a row that has none of its own."""
    return f"{stem}:{row}"


class IdCensus:
    """Finds repeated ids over a whole archive, in memory that does not grow with it.

    An id that looks like one that is made here (`<stem of a file>:<number>`, alone or behind '#')
    counts as a repetition, unless it is its own row's: so the ids that are written are distinct.
    Of `coming` files the stems are not known yet; those that ids look made of are `used`.
    """

    def __init__(self, stems: Iterable[str] = (), coming: Iterable[str] = ()) -> None:
        self.hashes = IdHashes()
        self.used: set[str] = set()
        self._salt = os.urandom(blake2b.SALT_SIZE)  # a disk may hold hashes, and ids can be guessed
        self._stems = {normal(stem) for stem in stems}
        self._coming = {_unnumbered(normal(stem)) for stem in coming}
        self._made = array("q")
        self._first, self._row, self._stem = 0, 0, ""

    def know(self, stems: Iterable[str]) -> None:
        """These files have come, too: what looks made of their stems counts from here on."""
        self._stems |= {normal(stem) for stem in stems}

    def start_file(self, stem: str, row: int = 0) -> None:
        """The rows that follow belong to this file, the first of them with this number."""
        self._first, self._row, self._stem = len(self), row, stem
        self.know([stem])

    def drop_file(self) -> None:
        """Forget the ids of the file that was started last."""
        self.hashes.drop(self._first)
        self._made = array("q", (ordinal for ordinal in self._made if ordinal < self._first))

    def __len__(self) -> int:
        """Rows so far, those of dropped files too: the ordinal of the next one."""
        return len(self.hashes)

    def add(self, values: Iterable[Any]) -> None:
        """The id cells of the next rows. Raises RunError E1503 when the disk is full."""
        left, salt = iter(values), self._salt
        while cells := list(islice(left, BATCH)):
            texts = _plain(cells) or map(self._text, cells, count(len(self)))
            self.hashes.add(
                b"".join(
                    blake2b(text.encode(), digest_size=WIDTH, salt=salt).digest() for text in texts
                )
            )

    def _text(self, value: Any, ordinal: int) -> str:
        """What a cell's id is compared by."""
        try:
            text = id_text(value)
        except DataError:
            text = None
        if text is None:
            return f"\0{ordinal}"  # equals no other
        text = normal(text)
        if ":" in text and self._looks_made(text, self._row + ordinal - self._first):
            self._made.append(ordinal)
        return text

    def _looks_made(self, text: str, row: int) -> bool:
        found = _MADE.fullmatch(text)
        if found is None:
            return False
        if _unnumbered(found.group(1)) in self._coming:
            self.used.add(found.group(1))
        if found.group(1) not in self._stems:
            return False
        return text != normal(fallback_id(self._stem, row))

    def duplicates(self) -> npt.NDArray[np.int64]:
        """int64[N], sorted ordinals of rows whose id an earlier row has, or that looks like a made
        one."""
        return np.union1d(self.hashes.repeats(), np.array(self._made, np.int64))


def _plain(cells: list[Any]) -> list[str] | None:
    """What the ids in these cells are compared by, where all are short printable ASCII and none can
    look made: then they are looked at together, in a quarter of the time."""
    try:
        whole = "".join(cells)
    except TypeError:
        return None
    if ":" in whole or not (whole.isascii() and whole.isprintable()):
        return None
    texts = [cell.strip() for cell in cells]
    return texts if all(texts) and max(map(len, cells)) <= MAX_ID_BYTES else None


def _unnumbered(stem: str) -> str:
    """A stem without the number that sets it apart from one like it."""
    return re.sub(r"(~\d+)+$", "", stem)


def row_numbers(ordinals: npt.NDArray[np.int64], first: int, count: int) -> npt.NDArray[np.int64]:
    """Those of sorted `ordinals`, int64[N], that fall into a file, as its row numbers int64[n]."""
    begin, end = np.searchsorted(ordinals, [first, first + count])
    return ordinals[begin:end] - first
