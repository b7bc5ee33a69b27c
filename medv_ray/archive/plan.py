"""Cuts an archive into chunks with stable keys, and reads a chunk's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from medv_ray.archive import cursor, parquet, pictures, tables, tars
from medv_ray.archive.chunks import Chunk, Draft, Row, SourceFile
from medv_ray.archive.ids import IdCensus, row_numbers
from medv_ray.archive.manifest import UNREADABLE
from medv_ray.archive.pictures import NamedImages
from medv_ray.archive.sources import Archive, check_unchanged, file_path
from medv_ray.archive.store import TROUBLE, reason_of
from medv_ray.errors import DataError

__all__ = ["Chunk", "Plan", "PlannedFile", "Unreadable", "iter_rows", "plan", "read_rows"]

EDGE_BYTES = 64 * 2**10
WORKERS = 8
DRAFT = {
    "parquet": parquet.draft, "table": tables.draft, "tar": tars.draft, "images": pictures.draft,
}  # fmt: skip
READ = {
    "parquet": cursor.iter_rows, "table": tables.iter_rows, "tar": tars.iter_rows,
    "images": pictures.iter_rows,
}  # fmt: skip


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


@dataclass(frozen=True)
class Plan:
    """All chunks of an archive."""

    archive: Archive
    files: tuple[PlannedFile, ...]
    """In the order of `Chunk.file`; an unreadable file stands there without digest and rows."""
    chunks: list[Chunk]
    rows: int
    duplicates: int
    """Rows that get a longer id because another row has theirs."""
    unreadable: tuple[Unreadable, ...]
    images: NamedImages
    """Image files that rows name by path; embedded images are not known before they are read."""
    ignored: int
    """Files, or members of tars, that are no part of a row."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume: input settings, and every file's digest by name."""
        settings = self.archive.settings.model_dump(mode="json")
        for place in ("archive", "questions", "images"):
            del settings[place]
        files = {file.name: file.digest for file in self.files}
        return {"archive": settings, "files": files, "images": self.images.digest}


def plan(archive: Archive, settings_digest: str) -> Plan:
    """Fingerprint every file and cut its rows into chunks.

    A file that cannot be read is listed, and the rest is planned. Raises DataError when no file can
    be read (its own code), or when the archive has no row (E1110).
    """
    limit = archive.settings.limit
    census = IdCensus(file.stem for file in archive.files)
    files: list[PlannedFile] = []
    drafts: list[Draft] = []
    unreadable: list[Unreadable] = []
    names: set[str] = set()
    problem: DataError | None = None
    rows = 0
    for file, digest in digests(archive):
        left = None if limit is None else limit - rows
        if left == 0:
            break
        draft, error = draft_file(archive, census, file, digest, left)
        if error is not None:
            problem = error
            unreadable.append(Unreadable(file.name, error.code, error.detail))
        known = digest if isinstance(digest, str) and error is None else UNREADABLE
        files.append(PlannedFile(file.name, file.size, known, draft.rows))
        drafts.append(draft)
        names |= draft.images
        rows += draft.rows
    if not rows:
        raise problem or DataError("E1110", "the archive's files hold no row.")
    duplicates = census.duplicates()
    chunks = make_chunks(settings_digest, files, drafts, duplicates)
    images = pictures.look_up(archive, names)
    ignored = archive.ignored + sum(draft.ignored for draft in drafts)
    return Plan(
        archive, tuple(files), chunks, rows, len(duplicates), tuple(unreadable), images, ignored
    )


def digests(archive: Archive) -> Iterator[tuple[SourceFile, str | DataError]]:
    """Every file with its fingerprint, computed a few files ahead."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(archive.files), 8 * WORKERS):
            window = archive.files[first : first + 8 * WORKERS]
            found = pool.map(lambda file: digest_or_error(archive, file), window)
            yield from zip(window, found, strict=True)


def digest_or_error(archive: Archive, file: SourceFile) -> str | DataError:
    try:
        return fingerprint(archive, file)
    except TROUBLE as error:
        return DataError("E1105", f"{file.name}: cannot be read ({reason_of(error)}).")


def fingerprint(archive: Archive, file: SourceFile) -> str:
    """64 hex digits that change when the file does; docs/archive.md says what each kind sees."""
    if archive.kind == "images":
        return pictures.folder_digest(archive)
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


def draft_file(
    archive: Archive, census: IdCensus, file: SourceFile, digest: str | DataError, left: int | None
) -> tuple[Draft, DataError | None]:
    """Index a file and count its ids; an empty draft and what is wrong for an unreadable one."""
    if isinstance(digest, DataError):
        return Draft(), digest
    try:
        draft = DRAFT[archive.kind](archive, file, left)
        count_ids(census, file, draft)
    except DataError as error:
        return Draft(), error
    except parquet.BROKEN as error:
        return Draft(), DataError("E1105", f"{file.name}: cannot be read ({reason_of(error)}).")
    return draft, None


def count_ids(census: IdCensus, file: SourceFile, draft: Draft) -> None:
    census.start_file(file.stem)
    if draft.ids is None:
        return
    try:
        for cells in draft.ids:
            census.add(cells)
    except parquet.BROKEN as error:
        census.drop_file()
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
            chunks.append(Chunk(key, place, number, *cut, mine))
    return chunks


def read_rows(archive: Archive, chunk: Chunk) -> list[Row]:
    """All rows of a chunk, in the order of `chunk.rows`. See `iter_rows`."""
    return list(iter_rows(archive, chunk))


def iter_rows(archive: Archive, chunk: Chunk) -> Iterator[Row]:
    """The rows of a chunk one by one; a bad row carries its error.

    Raises DataError E1107 when the file vanished or is not the one that was planned: the chunk must
    then not be committed.
    """
    file = archive.files[chunk.file]
    try:
        if archive.kind != "images":
            check_unchanged(archive, file)
        yield from READ[archive.kind](archive, chunk)
    except TROUBLE as error:
        told = f"{file.name} cannot be read at the moment ({reason_of(error)})."
        raise DataError("E1107", told) from error
