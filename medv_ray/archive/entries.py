"""A file on its way into a plan: indexed by its kind, and cut into chunks with stable keys."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from itertools import accumulate

from medv_ray.archive import images, pacs, parquet, tables, tars
from medv_ray.archive.chunks import Chunk, Draft, Piece, SourceFile
from medv_ray.archive.ids import row_numbers
from medv_ray.archive.manifest import UNREADABLE
from medv_ray.archive.prior import Prior
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import reason_of
from medv_ray.errors import DataError

DRAFT = {
    "parquet": parquet.draft, "table": tables.draft, "tar": tars.draft, "images": images.draft,
    "dicomweb": pacs.draft,
}  # fmt: skip


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
