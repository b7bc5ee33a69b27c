"""Cuts an archive into chunks with stable keys, and reads a chunk's rows."""

from __future__ import annotations

import hashlib
import json
import posixpath
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice
from typing import Any, NamedTuple

from medv_ray.archive import cursor, images, parquet, pictures, tables, tars
from medv_ray.archive.chunks import Chunk, Draft, Piece, Row, SourceFile
from medv_ray.archive.ids import IdCensus, row_numbers
from medv_ray.archive.left_out import UNNAMED, LeftOut
from medv_ray.archive.manifest import IMAGES, UNREADABLE, differences
from medv_ray.archive.pictures import NamedImages
from medv_ray.archive.prior import Image, PlannedFile, Prior
from medv_ray.archive.sources import Archive, check_unchanged, file_path, numbered, place_of
from medv_ray.archive.store import TROUBLE, Stored, reason_of
from medv_ray.errors import DataError
from medv_ray.tables.ids import normal

__all__ = [
    "Chunk", "Growth", "Plan", "PlannedFile", "Prior", "Unreadable", "iter_rows", "plan",
    "read_rows",
]  # fmt: skip

EDGE_BYTES = 64 * 2**10
WORKERS = 8
DRAFT = {
    "parquet": parquet.draft, "table": tables.draft, "tar": tars.draft, "images": images.draft,
}  # fmt: skip
READ = {
    "parquet": cursor.iter_rows, "table": tables.iter_rows, "tar": tars.iter_rows,
    "images": images.iter_rows,
}  # fmt: skip


class Unreadable(NamedTuple):
    """A file that could not be planned; its rows are not known and not scored."""

    name: str
    code: str
    detail: str


class Growth(NamedTuple):
    """How an archive differs from what its run has planned before."""

    is_known: bool = False
    """Whether there is an earlier plan to compare with."""
    rows: int = 0
    """New ones."""
    longer: tuple[str, ...] = ()
    """Files that changed and begin with all the rows that they had."""
    lost: tuple[str, ...] = ()
    """In words, which images changed or are gone."""
    new_images: tuple[str, ...] = ()


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
    left_out: LeftOut
    """Files, or members of tars, that are no part of a row."""
    inputs: tuple[Image, ...] = ()
    """The images that fingerprints cover: those of a folder, or those that rows name."""
    growth: Growth = Growth()

    @property
    def ignored(self) -> int:
        """How many files, or members of tars, are left out."""
        return self.left_out.total

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume: input settings, and every file's digest by name."""
        settings = self.archive.settings.model_dump(mode="json")
        for field_name in ("archive", "questions", "images"):
            del settings[field_name]
        files = {file.name: file.digest for file in self.files}
        return {"archive": settings, "files": files, "images": self.images.digest}

    def changes(
        self, before: dict[str, Any], now: dict[str, Any], allow_added: bool = False
    ) -> list[str]:
        """What differs between a run's identity and this plan's, in words that name files.

        With `allow_added` what was only added is no change: files, images, rows behind the others.
        """
        before = {**before, "files": dict(before.get("files", {}))}
        news = [] if allow_added else [f"image {name!r} added" for name in self.growth.new_images]
        if allow_added:
            files = now["files"]
            before["files"].update({name: files[name] for name in self.growth.longer})
            before["files"].update({n: d for n, d in files.items() if n not in before["files"]})
            if not self.growth.lost:
                before["images"] = now["images"]
        found = differences(before, now)
        if self.growth.is_known:  # the images are named, not the folder or all of them together
            folder = f"input file {self.files[0].name!r} changed"
            whole = folder if self.archive.kind == "images" else IMAGES
            found = [change for change in found if change != whole]
        return [*self.growth.lost, *news, *found]


@dataclass
class Entry:
    """A file on its way into a plan."""

    file: SourceFile
    digest: str = UNREADABLE
    draft: Draft = field(default_factory=Draft)
    pieces: tuple[Piece, ...] = ()
    error: DataError | None = None
    ordinals: dict[int, int] = field(default_factory=dict)
    """Of the pieces whose ids were counted, the ordinal of the first row."""

    def fail(self, error: DataError) -> None:
        """The file is unreadable."""
        self.digest, self.draft, self.pieces, self.error = UNREADABLE, Draft(), (), error


def plan(archive: Archive, settings_digest: str, prior: Prior | None = None) -> Plan:
    """Fingerprint every file and cut its rows into chunks.

    What `prior` has planned keeps its place and its keys as far as it is unchanged, and what is new
    comes behind it. A file that cannot be read is listed, and the rest is planned. Raises DataError
    when no file can be read (its own code), or when the archive has no row (E1110).
    """
    prior = prior or Prior()
    archive, inputs, lost = arranged(archive, prior)
    entries: list[Entry] = []
    names_count = IdNames(archive, prior)
    limit = archive.settings.limit
    spare = (
        None if limit is None else limit - sum(f.borders()[-1] for f in archive.files if f.pieces)
    )
    for file, digest in digests(archive, inputs):
        had = sum(piece.rows for piece in file.pieces)
        left = None if spare is None else max(had + spare, 0)
        if left == 0 and file.name not in prior.files:
            break
        entry = draft_file(archive, prior, file, digest, left)
        names_count.take(entry)
        entries.append(entry)
        spare = None if spare is None else spare + had - entry.draft.rows
    names_count.take_waiting()
    stems = {entry.file.name: entry.file.stem for entry in entries}
    files = tuple(replace(f, stem=stems.get(f.name, f.stem)) for f in archive.files)
    archive = replace(archive, files=files)
    rows = sum(entry.draft.rows for entry in entries)
    unreadable = [
        Unreadable(entry.file.name, entry.error.code, entry.error.detail)
        for entry in entries if entry.error is not None
    ]  # fmt: skip
    if not rows:
        problem = next((entry.error for entry in reversed(entries) if entry.error), None)
        raise problem or DataError("E1110", "the archive's files hold no row.")
    duplicates = names_count.census.duplicates()
    chunks = make_chunks(settings_digest, entries, duplicates)
    named = pictures.look_up(archive, set().union(*(entry.draft.images for entry in entries)))
    if archive.kind != "images":
        inputs = [Image(*file) for file in named.files]
        kept = {entry.file.name for entry in entries if entry.pieces and entry.file.pieces}
        is_whole = kept.issuperset(name for name, file in prior.files.items() if file.pieces)
        lost = prior.losses({image.name: image for image in inputs}, is_whole)
    return Plan(
        archive,
        tuple(
            PlannedFile(e.file.name, e.file.size, e.digest, e.draft.rows, e.file.stem, e.pieces)
            for e in entries
        ),
        chunks,
        rows,
        len(duplicates),
        tuple(unreadable),
        named,
        left_out(archive, entries, named),
        tuple(inputs),
        growth(prior, entries, inputs, lost),
    )


def arranged(archive: Archive, prior: Prior) -> tuple[Archive, list[Image], list[str]]:
    """The archive in the order of an earlier plan, the images of a folder, and which were lost."""
    archive = prior.arrange(archive)
    if archive.kind != "images":
        return archive, [], []
    found = images.listed(archive)
    if prior.kind != "images":
        return archive, found, []
    lost = prior.losses({image.name: image for image in found})
    if lost:  # nothing keeps its row number
        files = tuple(replace(file, pieces=()) for file in archive.files)
        return replace(archive, files=files), found, lost
    found = prior.in_order(found)
    ordered = tuple(Stored(image.name, image.size, image.mtime_ns) for image in found)
    return replace(archive, images=ordered), found, []


def growth(prior: Prior, entries: list[Entry], inputs: list[Image], lost: list[str]) -> Growth:
    """What is new since an earlier plan."""
    if prior.kind is None:
        return Growth()
    changed = {
        entry.file.name
        for entry in entries
        if not entry.file.pieces and entry.file.name in prior.files
        and prior.files[entry.file.name].pieces
    }  # fmt: skip
    pieces = [p for entry in entries if entry.file.name not in changed for p in entry.pieces]
    longer = [
        entry.file.name
        for entry in entries
        if entry.file.pieces and entry.digest != prior.files[entry.file.name].digest
        and entry.pieces[: len(entry.file.pieces)] == entry.file.pieces
    ]  # fmt: skip
    new_images = tuple(image.name for image in inputs if image.name not in prior.images)
    rows = sum(piece.rows for piece in pieces if piece.generation > prior.generation)
    return Growth(True, rows, tuple(longer), tuple(lost), new_images)


def left_out(archive: Archive, entries: list[Entry], named: NamedImages) -> LeftOut:
    """What no row comes from: files of the listing, members of tars, images that no row names."""
    result = LeftOut()
    result.update(archive.left_out)
    for entry in entries:
        result.update(entry.draft.left_out)
    if archive.beside:
        root = place_of(archive.images_uri)[1].rstrip("/")
        used = {posixpath.normpath(f"{root}/{file.name}") for file in named.files}
        for path, (name, reason) in archive.beside.items():
            if path not in used:
                result.add("" if reason == UNNAMED else name, reason)
    return result


def digests(archive: Archive, inputs: list[Image]) -> Iterator[tuple[SourceFile, str | DataError]]:
    """Every file with its fingerprint, computed a few files ahead."""
    if archive.kind == "images":
        yield archive.files[0], images.folder_digest(inputs)
        return
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
    archive: Archive, prior: Prior, file: SourceFile, digest: str | DataError, left: int | None
) -> Entry:
    """Index a file; an unreadable one carries what is wrong."""
    entry = Entry(file)
    if isinstance(digest, DataError):
        entry.fail(digest)
        return entry
    try:
        draft = DRAFT[archive.kind](archive, file, left)
        is_same = bool(file.pieces) and prior.files[file.name].digest == digest
        if file.pieces and not is_same and not prior.continues(file.name, draft.proofs):
            file = entry.file = replace(file, pieces=())  # it changed: planned as a new one
            draft = DRAFT[archive.kind](archive, file, left)
    except DataError as error:
        entry.fail(error)
    except parquet.BROKEN as error:
        entry.fail(DataError("E1105", f"{file.name}: cannot be read ({reason_of(error)})."))
    else:
        entry.digest, entry.draft, entry.pieces = digest, draft, file.pieces
        rest = draft.rows - sum(piece.rows for piece in file.pieces)
        if rest > 0:
            last = draft.proofs[-1] if draft.proofs else Piece(rest, 0, "")
            new = last._replace(rows=rest, generation=prior.generation + 1, digest=digest)
            entry.pieces += (new,)
    return entry


class IdNames:
    """Counts ids, those of an earlier plan's rows first: what is new takes no name from them."""

    def __init__(self, archive: Archive, prior: Prior) -> None:
        self._stems: dict[int, list[str]] = {}
        for file in archive.files:
            since = file.pieces[0].generation if file.pieces else prior.generation + 1
            self._stems.setdefault(since, []).append(file.stem)
        self._next = prior.generation + 1
        self._kept = {name: file.stem for name, file in prior.files.items() if file.pieces}
        coming = self._stems.get(self._next, ()) if self._next else ()
        self.census = IdCensus(self._stems.get(0, ()), coming)
        self._waiting: list[tuple[int, Entry, int, int, Iterable[Any]]] = []
        self._new: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """The ids of a file; what was added to a run later waits for the earlier rows."""
        if self._next and entry.pieces and entry.pieces[0].generation == self._next:
            self._new.append(entry)
        if entry.draft.ids is None:
            return
        values: Iterator[Any] = chain.from_iterable(entry.draft.ids)
        row = 0
        for number, piece in enumerate(entry.pieces):
            if not piece.generation:
                self._add(entry, number, row, islice(values, piece.rows))
            elif len(entry.pieces) == 1:
                self._waiting.append((piece.generation, entry, number, row, values))
            else:
                mine = list(islice(values, piece.rows))
                self._waiting.append((piece.generation, entry, number, row, mine))
            row += piece.rows

    def take_waiting(self) -> None:
        """The ids that wait, in the order in which their rows were added."""
        ordered = sorted(self._waiting, key=lambda one: one[0])
        for since, entry, number, row, values in ordered:
            if since < self._next:
                self.census.know(self._stems.get(since, ()))
                self._add(entry, number, row, values)
        self._rename()
        self.census.know(entry.file.stem for entry in self._new)
        for since, entry, number, row, values in ordered:
            if since == self._next:
                self._add(entry, number, row, values)

    def _rename(self) -> None:
        """A new file takes no stem that the id of an earlier row looks made of."""
        taken = self.census.used | {normal(stem) for stem in self._kept.values()}
        for entry in self._new:
            if entry.file.name not in self._kept:
                stem = next(s for s in numbered(entry.file.stem) if normal(s) not in taken)
                entry.file = replace(entry.file, stem=stem)
                taken.add(normal(stem))

    def _add(self, entry: Entry, number: int, row: int, values: Iterable[Any]) -> None:
        self.census.start_file(entry.file.stem, row)
        entry.ordinals[number] = len(self.census)
        try:
            self.census.add(values)
        except parquet.BROKEN:
            self.census.drop_file()
            entry.ordinals.clear()
            entry.fail(DataError("E1105", f"{entry.file.name}: the id column does not decode."))


def make_chunks(settings_digest: str, entries: list[Entry], duplicates: list[int]) -> list[Chunk]:
    """Give every cut its keys and its share of the repeated ids."""
    chunks: list[Chunk] = []
    for number, entry in enumerate(entries):
        ends = list(accumulate(piece.rows for piece in entry.pieces))
        repeated: set[int] = set()
        for at, ordinal in entry.ordinals.items():
            first = ends[at] - entry.pieces[at].rows
            found = row_numbers(duplicates, ordinal, entry.pieces[at].rows)
            repeated |= {first + row for row in found}
        for cut in entry.draft.cuts:
            mine = tuple(r for r in cut.rows if r in repeated) if repeated else ()
            rows = [cut.rows.start, cut.rows.stop] if isinstance(cut.rows, range) else cut.rows
            piece = entry.pieces[bisect_right(ends, min(cut.rows))]
            text = json.dumps([number, entry.file.name, piece.digest, cut.group, rows, mine])
            source_key = hashlib.sha256(text.encode()).hexdigest()[:32]
            key = hashlib.sha256(f"{source_key} {settings_digest}".encode()).hexdigest()[:32]
            chunks.append(Chunk(key, source_key, number, *cut, mine))
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
        text = f"{file.name} cannot be read at the moment ({reason_of(error)})."
        raise DataError("E1107", text) from error
