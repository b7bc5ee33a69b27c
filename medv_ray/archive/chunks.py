"""The small records that rows travel in: input files, rows, and chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from medv_ray.archive.left_out import LeftOut
from medv_ray.errors import DataError
from medv_ray.file_parts import FilePart, Picture
from medv_ray.slide_parts import SlidePart

CHUNK_BYTES = 128 * 2**20
"""Encoded images above this do not share a chunk, as far as sizes are known when it is cut."""


class Piece(NamedTuple):
    """Rows of a file that were planned at one time. A file that grew since has several, and the
    chunks of the earlier ones keep their keys."""

    rows: int
    generation: int
    """0 for what was there when the run began; counted up whenever something is added."""
    digest: str
    """Of the whole file as it was then; part of the keys of these rows' chunks."""
    proof: str = ""
    """Of these rows alone: it tells whether a longer file still begins with them."""
    end: int = 0
    """Tars: where the end mark was."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file. For a folder of images with a fixed question the folder is the file."""

    name: str
    """Relative to the archive; never an absolute path."""
    path: str
    """Path in the archive's filesystem."""
    size: int
    mtime_ns: int
    stem: str
    """Unique in the archive; ids of rows without one are `<stem>:<row>`."""
    pieces: tuple[Piece, ...] = ()
    """How its rows were planned before; chunks do not reach over the border of two."""

    def borders(self) -> list[int]:
        """Row numbers at which a piece of an earlier plan ends."""
        return list(accumulate(piece.rows for piece in self.pieces))


@dataclass(slots=True)
class Row:
    """One row of the archive. A bad row carries its error and no image; it never raises."""

    id: str
    file: int
    row: int
    question: str | None = None
    images: tuple[bytes, ...] = ()
    """Encoded bytes, in the order of the prompt. Repeats inside a chunk share one object."""
    image_names: tuple[str | None, ...] = ()
    """Paths inside the archive, one a picture; None for one that has none."""
    reference: str | None = None
    choices: tuple[str, ...] = ()
    """Allowed answers, to be scored beside the free one; none where the row has none."""
    answer_type: str | None = None
    """open or closed, where a column of that name says so."""
    error: DataError | None = None
    history: tuple[tuple[str, str], ...] = ()
    """(role, text) of earlier turns, user and assistant, where the row is a dialogue."""
    system: str | None = None
    """The dialogue's own system message."""
    marks: int = 0
    """LLaVA's `<image>` at the ends of its question, taken out."""
    warnings: tuple[str, ...] = ()
    part: FilePart | None = None
    """Which part of its one picture's file the row is; None: the whole file."""
    slide: SlidePart | None = None
    """Which part of its slide the row's one picture is, where rows are tiles."""
    file_sha256: str = ""
    """Of the file that the part is of."""
    prompt: str | None = None
    """What is asked, where that is more than the question."""
    decoded: tuple[Any, ...] = ()
    """What a decoder has made of the pictures, where it came before the model; each of `images` is
    then empty."""

    @property
    def pictures(self) -> tuple[Any, ...]:
        """In the order of the prompt: encoded bytes, `Picture`s, or `decoded`."""
        if self.decoded:
            return self.decoded
        if self.part is None:
            return self.images
        return tuple(Picture(data, self.file_sha256, self.part) for data in self.images)

    @property
    def frame(self) -> int | None:
        """From 1; None where the row is of a whole file."""
        return None if self.part is None or self.part.of == 1 else self.part.frame

    @property
    def image(self) -> bytes | None:
        """The first picture."""
        return self.images[0] if self.images else None

    @image.setter
    def image(self, data: bytes | None) -> None:
        self.images = () if data is None else (data,)

    @property
    def image_name(self) -> str | None:
        """The first picture's path."""
        return self.image_names[0] if self.image_names else None

    @image_name.setter
    def image_name(self, name: str | None) -> None:
        self.image_names = (name,)

    def refuse(self, error: DataError) -> None:
        """Quarantine the row. Raises `error` itself for E1107: input that may be there tomorrow."""
        if error.code == "E1107":
            raise error
        self.error = error


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are read, answered and committed together. It holds no row content."""

    key: str
    """32 hex digits: digest of `source_key` and of the settings that decide answers."""
    source_key: str
    """32 hex digits: digest of the file's fingerprint and of which rows these are."""
    file: int
    rows: range | tuple[int, ...]
    """Row numbers in the file, from 0, in the order in which they are read."""
    group: tuple[int, int] = (-1, 0)
    """Parquet: number of the row group, and the row number of its first row."""
    at: tuple[tuple[Any, ...], ...] = ()
    """Where each row lies, for tables, tars and images; the kind's own module knows the fields."""
    header: tuple[str, ...] = ()
    """Tables: the names of the file's columns."""
    style: tuple[Any, ...] = ()
    """Tables: encoding and separator; `tables.records.Style`."""
    duplicates: tuple[int, ...] = ()
    """Those of `rows` whose id another row holds already: they get a longer one."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and strings; `from_json` is the way back."""
        rows = self.rows
        return {
            "key": self.key,
            "source_key": self.source_key,
            "file": self.file,
            "rows": [rows.start, rows.stop] if isinstance(rows, range) else None,
            "row_list": None if isinstance(rows, range) else list(rows),
            "group": list(self.group),
            "at": [list(spot) for spot in self.at],
            "header": list(self.header),
            "style": list(self.style),
            "duplicates": list(self.duplicates),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Chunk:
        """The chunk that `to_json` was made of."""
        span = value["rows"]
        rows = range(*span) if span is not None else tuple(value["row_list"])
        first, second = value["group"]
        return cls(
            key=value["key"],
            source_key=value["source_key"],
            file=value["file"],
            rows=rows,
            group=(first, second),
            at=tuple(tuple(spot) for spot in value["at"]),
            header=tuple(value["header"]),
            style=tuple(value["style"]),
            duplicates=tuple(value["duplicates"]),
        )


class Cut(NamedTuple):
    """Rows that a kind's module wants in one chunk; the planner gives them their keys."""

    rows: range | tuple[int, ...]
    group: tuple[int, int] = (-1, 0)
    at: tuple[tuple[Any, ...], ...] = ()
    header: tuple[str, ...] = ()
    style: tuple[Any, ...] = ()


@dataclass
class Draft:
    """What a file's index says: how many rows, how they are cut, and their ids if they have any."""

    rows: int = 0
    cuts: Sequence[Cut] = field(default_factory=list)
    ids: Iterator[list[Any]] | None = None
    images: set[str] = field(default_factory=set)
    """Image paths that its rows name."""
    left_out: LeftOut = field(default_factory=LeftOut)
    """Members of a tar that are neither image nor question."""
    proofs: list[Piece] = field(default_factory=list)
    """One for each of the file's earlier pieces, as it is found now, and one for the rows behind
    them; generation and digest are the planner's to fill in. Empty: this kind does not grow."""
