"""The list of committed chunks: what is in it is done, what is not in it never happened.

Local disk: `ledger.jsonl`, one fsynced line a commit, each with its own CRC-32. Object store: one
small object a commit under `ledger/`. A line is `<crc, 8 hex digits> <json>`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from medv_ray import files
from medv_ray.archive.store import Store, reading, writing
from medv_ray.errors import RunError

FILE, FOLDER = "ledger.jsonl", "ledger"
LOOKS = 8


@dataclass(slots=True)
class Commit:
    """One committed chunk."""

    key: str
    part: str
    """The file of `rows/` that holds its rows; a merge changes it."""
    rows: int
    answered: int
    abstained: int
    quarantined: int
    number: int
    """Commits, merges and drops are numbered in the order in which they happened."""


class PartFile(NamedTuple):
    """A file of `rows/` that commits point at."""

    sha256: str
    size: int


class Ledger:
    """The committed chunks of a run by source key, and how to add to them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits: dict[str, Commit] = {}
        self.files: dict[str, PartFile] = {}
        self.held: dict[str, set[str]] = {}
        """Source keys of the chunks whose rows each file of `rows/` holds."""
        self.rows: dict[str, int] = {}
        """How many rows each of these files is needed for."""
        self.number = 0
        self._records: dict[str, str] = {}  # object store: where a file's own record lies
        self._size = 0

    @classmethod
    def load(cls, store: Store, repair: bool = False) -> Ledger:
        """Read the ledger. With `repair`, a last line that a crash cut short is also cut off, and
        one that is whole but for its newline gets it.

        Raises RunError E1506 for any other damage.
        """
        ledger = cls(store)
        if store.local:
            ledger._load_lines(repair)
        else:
            ledger._load_objects()
        return ledger

    def _load_lines(self, repair: bool) -> None:
        path = self.store.path(FILE)
        if not os.path.exists(path):
            return
        newline = True
        with reading(FILE), open(path, "rb") as file:
            for line in file:
                newline = line.endswith(b"\n")
                if not newline and not is_sound(line):
                    break  # the crash came before its end: it never happened
                number = self.number + 1
                with _known(number):
                    self.apply(parse(line, number))
                self._size += len(line)
        if repair and not newline:
            with reading(FILE), open(path, "r+b") as file:
                file.seek(max(self._size - 1, 0))
                file.write(b"\n" if self._size else b"")
                file.truncate()

    def _load_objects(self) -> None:
        names, lines = self._read_objects()
        records = [parse(line, number) for number, line in enumerate(lines, start=1)]
        with _known(len(records)):
            for name, record in zip(names, records, strict=True):
                self._records[record.get("part", name)] = name
            nested = [commit for record in records for commit in record.pop("commits", [])]
            for record in sorted(nested + records, key=lambda r: int(r["number"])):
                self.apply(record)

    def _read_objects(self) -> tuple[list[str], list[bytes]]:
        for left in reversed(range(LOOKS)):
            names = [file.name for file in self.store.listing(FOLDER)]
            try:
                return names, self.store.each(self.store.read, names)
            except FileNotFoundError:  # merged away since it was listed: the merge is to be seen
                if not left:
                    raise
        raise AssertionError("unreachable")

    def apply(self, record: dict[str, Any]) -> None:
        """Take a record into account; the last commit of a source key counts."""
        self.number = max(self.number, record["number"])
        if record["op"] == "commit":
            self._apply_commit(record)
        elif record["op"] == "merge":
            name = record["part"]
            source_keys = set().union(*(self.held.pop(old, set()) for old in record["parts"]))
            # after a crash between two merges, the later one's commits are in this file already
            self.held[name] = self.held.get(name, set()) | source_keys
            self.rows[name] = self.rows.get(name, 0)
            self.files[name] = PartFile(record["sha256"], record["size"])
            for source_key in source_keys:
                self.commits[source_key].part = name
            for old in record["parts"]:
                self.files.pop(old, None)
                self.rows[name] += self.rows.pop(old, 0)
        else:
            for source_key in record["source_keys"]:
                self._forget(source_key)

    def _apply_commit(self, record: dict[str, Any]) -> None:
        source_key, name = record["source_key"], record["part"]
        self._forget(source_key)
        self.commits[source_key] = Commit(
            record["key"],
            name,
            int(record["rows"]),
            int(record["answered"]),
            int(record["abstained"]),
            int(record["quarantined"]),
            record["number"],
        )
        self.held.setdefault(name, set()).add(source_key)
        self.rows[name] = self.rows.get(name, 0) + int(record["rows"])
        self.files[name] = PartFile(record["sha256"], record["size"])

    def _forget(self, source_key: str) -> None:
        old = self.commits.pop(source_key, None)
        if old is None:
            return
        self.held[old.part].discard(source_key)
        self.rows[old.part] -= old.rows
        if not self.held[old.part]:
            del self.held[old.part], self.files[old.part], self.rows[old.part]

    def append(self, *records: dict[str, Any]) -> None:
        """Make records durable, all with one wait for the disk, then take them into account. A
        crash on the way may leave some of them, the first ones on a disk.

        Raises RunError E1503 when the disk is full; the ledger is then as it was.
        """
        new = [
            {**record, "number": number} for number, record in enumerate(records, self.number + 1)
        ]
        if self.store.local:
            self._append_lines(b"".join(map(render, new)))
        else:
            names = list(map(object_name, new))
            self.store.each(self.store.write, names, map(render, new))
            for name, record in zip(names, new, strict=True):
                self._records[record.get("part", name)] = name
        for record in new:
            record.pop("commits", None)
            self.apply(record)

    def _append_lines(self, lines: bytes) -> None:
        path = self.store.path(FILE)
        new = not self._size
        with writing(path, len(lines)):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                left = memoryview(lines)
                while left:  # a disk that fills up writes a piece first
                    left = left[os.write(handle, left) :]
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, self._size)
                raise
            finally:
                os.close(handle)
            if new:
                files.sync(self.store.root)
        self._size += len(lines)

    def merge_record(self, names: list[str], merged: str, file: PartFile) -> dict[str, Any]:
        """The record of a merge. On an object store it repeats the commits: their records go."""
        record = {"op": "merge", "part": merged, "parts": names, **file._asdict()}
        if not self.store.local:
            record["commits"] = [
                {
                    "op": "commit",
                    "source_key": source_key,
                    **asdict(self.commits[source_key]),
                    **file._asdict(),
                }
                for name in names
                for source_key in self.held[name]
            ]
        return record

    def forget_records(self, names: list[str]) -> None:
        """Delete the records of files that a merge has replaced; on an object store only."""
        self.store.each(
            self.store.delete, [self._records.pop(name) for name in names if name in self._records]
        )

    def counts(self, source_keys: Iterable[str] | None = None) -> dict[str, int]:
        """Sums of rows, answered, abstained and quarantined, over all or the given source keys."""
        chosen = self.commits.values() if source_keys is None else self._of(source_keys)
        total = {"rows": 0, "answered": 0, "abstained": 0, "quarantined": 0}
        for commit in chosen:
            total["rows"] += commit.rows
            total["answered"] += commit.answered
            total["abstained"] += commit.abstained
            total["quarantined"] += commit.quarantined
        return total

    def _of(self, source_keys: Iterable[str]) -> Iterator[Commit]:
        return (
            self.commits[source_key] for source_key in source_keys if source_key in self.commits
        )


def render(record: dict[str, Any]) -> bytes:
    """A record as a line."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def parse(line: bytes, number: int) -> dict[str, Any]:
    """The record of a line. Raises RunError E1506 with the line's number."""
    if not is_sound(line):
        raise RunError("E1506", f"ledger record {number} does not match its checksum.")
    with _known(number):
        record: dict[str, Any] = json.loads(line[9:-1])
    return record


@contextmanager
def _known(number: int) -> Iterator[None]:
    """Turn what a record of another form raises into RunError E1506."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise RunError("E1506", f"ledger record {number} is none that is known here.") from None


def is_sound(line: bytes) -> bool:
    """Whether a line matches its checksum, whatever its last byte is."""
    return line[:9] == b"%08x " % zlib.crc32(line[9:-1])


def object_name(record: dict[str, Any]) -> str:
    """Where a record lies on an object store. Writing a chunk's record twice is harmless."""
    if record["op"] == "commit":
        return f"{FOLDER}/{record['key']}.json"
    return f"{FOLDER}/{record['op']}-{record['number']:012d}-{uuid4().hex[:8]}.json"
