"""Cuts an archive into chunks with stable keys, and reads a chunk's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyarrow import fs

from medv_ray.archive import parquet
from medv_ray.archive.ids import IdCensus, row_numbers
from medv_ray.archive.sources import Archive, Chunk, Row, SourceFile, file_path
from medv_ray.errors import DataError

__all__ = ["Chunk", "Plan", "PlannedFile", "Unreadable", "iter_rows", "plan", "read_rows"]

EDGE_BYTES = 64 * 2**10
WORKERS = 8


class PlannedFile(NamedTuple):
    """An input file as run.json lists it."""

    name: str
    size: int
    digest: str
    rows: int


class Unreadable(NamedTuple):
    """A file that could not be planned; its rows are not known and not scored."""

    name: str
    code: str
    detail: str


class Cut(NamedTuple):
    """Rows that a kind's module wants in one chunk."""

    rows: range | tuple[int, ...]
    group: tuple[int, int] = (-1, 0)
    at: tuple[tuple[Any, ...], ...] = ()


@dataclass
class Draft:
    """What a file's index says: its rows, how they are cut, and their ids if they have any."""

    rows: int = 0
    cuts: list[Cut] = field(default_factory=list)
    ids: Iterator[list[Any]] | None = None


@dataclass(frozen=True)
class Plan:
    """All chunks of an archive."""

    archive: Archive
    files: tuple[PlannedFile, ...]
    """In the order of `Chunk.file`; an unreadable file stands there with 0 rows."""
    chunks: list[Chunk]
    rows: int
    duplicates: int
    """Rows that will be quarantined because another row has their id."""
    unreadable: tuple[Unreadable, ...]

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume: input settings, and every file's digest by name."""
        settings = self.archive.settings.model_dump(mode="json")
        for place in ("archive", "questions", "images"):
            del settings[place]
        files = {file.name: file.digest for file in self.files}
        return {"archive": settings, "files": files}


def plan(archive: Archive, settings_digest: str) -> Plan:
    """Fingerprint every file and cut its rows into chunks.

    A file that cannot be read is listed, and the rest is planned. Raises DataError when no file can
    be read (its own code), or when the archive has no row (E1110).
    """
    limit = archive.settings.limit
    census = IdCensus()
    files: list[PlannedFile] = []
    drafts: list[Draft] = []
    unreadable: list[Unreadable] = []
    problem: DataError | None = None
    rows = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for window in range(0, len(archive.files), 8 * WORKERS):
            if limit is not None and rows >= limit:
                break
            batch = archive.files[window : window + 8 * WORKERS]
            digests = pool.map(lambda file: digest_or_error(archive, file), batch)
            for file, digest in zip(batch, digests, strict=True):
                if limit is not None and rows >= limit:
                    break
                try:
                    if isinstance(digest, DataError):
                        raise digest
                    draft = draft_file(archive, file, None if limit is None else limit - rows)
                    count_ids(census, file, draft)
                except DataError as error:
                    problem = error
                    unreadable.append(Unreadable(file.name, error.code, error.detail))
                    draft = Draft()
                drafts.append(draft)
                known = digest if isinstance(digest, str) else ""
                files.append(PlannedFile(file.name, file.size, known, draft.rows))
                rows += draft.rows
    if not rows:
        raise problem or DataError("E1110", "the archive's files hold no row.")
    duplicates = census.duplicates()
    chunks = make_chunks(settings_digest, files, drafts, duplicates)
    return Plan(archive, tuple(files), chunks, rows, len(duplicates), tuple(unreadable))


def digest_or_error(archive: Archive, file: SourceFile) -> str | DataError:
    try:
        return fingerprint(archive, file)
    except OSError as error:
        return DataError("E1105", f"{file.name}: cannot be read ({type(error).__name__}).")


def fingerprint(archive: Archive, file: SourceFile) -> str:
    """64 hex digits that change when the file does; docs/archive.md says what each kind sees."""
    filesystem, path = file_path(archive, file)
    digest = hashlib.sha256()
    with filesystem.open_input_file(path) as opened:
        if archive.settings.fingerprint == "full":
            while block := opened.read(2**20):
                digest.update(block)
            return digest.hexdigest()
        digest.update(f"{file.size} {file.mtime_ns}\n".encode())
        digest.update(opened.read(EDGE_BYTES))
        opened.seek(max(0, file.size - EDGE_BYTES))
        digest.update(opened.read(EDGE_BYTES))
    return digest.hexdigest()


def draft_file(archive: Archive, file: SourceFile, limit: int | None) -> Draft:
    """Index one file. Raises DataError when it cannot be read."""
    opened = parquet.open_parquet(archive, file)
    footer = parquet.read_footer(archive.settings, file, opened)
    draft = Draft()
    for number, group in enumerate(footer.groups):
        step = parquet.CHUNK_BYTES // max(group.average, 1)
        step = max(1, min(archive.settings.chunk_rows, step))
        stop = group.first + group.rows
        if limit is not None:
            stop = min(stop, limit)
        for first in range(group.first, stop, step):
            draft.cuts.append(Cut(range(first, min(first + step, stop)), (number, group.first)))
        draft.rows = max(draft.rows, stop)
    if footer.columns.id is not None:
        draft.ids = parquet.read_ids(opened, footer.columns.id, draft.rows)
    return draft


def count_ids(census: IdCensus, file: SourceFile, draft: Draft) -> None:
    census.start_file(file.stem)
    if draft.ids is None:
        return
    try:
        for cells in draft.ids:
            census.add(cells)
    except parquet.BROKEN as error:
        raise DataError("E1105", f"{file.name}: the id column does not decode.") from error


def make_chunks(
    settings_digest: str, files: list[PlannedFile], drafts: list[Draft], duplicates: list[int]
) -> list[Chunk]:
    """Give every cut its keys and its share of the repeated ids."""
    chunks: list[Chunk] = []
    first = 0
    for number, (file, draft) in enumerate(zip(files, drafts, strict=True)):
        counted = draft.rows if draft.ids is not None else 0
        repeated = set(row_numbers(duplicates, first, counted))
        first += counted
        for cut in draft.cuts:
            mine = tuple(r for r in cut.rows if r in repeated) if repeated else ()
            rows = [cut.rows.start, cut.rows.stop] if isinstance(cut.rows, range) else cut.rows
            told = json.dumps([number, file.name, file.digest, cut.group, rows, cut.at, mine])
            place = hashlib.sha256(told.encode()).hexdigest()[:32]
            key = hashlib.sha256(f"{place} {settings_digest}".encode()).hexdigest()[:32]
            chunks.append(Chunk(key, place, number, cut.rows, cut.group, cut.at, mine))
    return chunks


def read_rows(archive: Archive, chunk: Chunk) -> list[Row]:
    """All rows of a chunk, in the order of `chunk.rows`. See `iter_rows`."""
    return list(iter_rows(archive, chunk))


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk one by one; a bad row carries its error.

    Raises DataError E1107 when the file vanished or is not the one that was planned: the chunk must
    then not be committed.
    """
    check_unchanged(archive, chunk)
    yield from parquet.iter_rows(archive, chunk)


def check_unchanged(archive: Archive, chunk: Chunk) -> None:
    """Compare size and time with the plan's. Raises DataError E1107."""
    file = archive.files[chunk.file]
    filesystem, path = file_path(archive, file)
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        raise DataError("E1107", f"{file.name} is not there any more; its rows are not scored.")
    if (info.size, info.mtime_ns or 0) != (file.size, file.mtime_ns):
        raise DataError("E1107", f"{file.name} changed while the job ran; its rows are not scored.")
