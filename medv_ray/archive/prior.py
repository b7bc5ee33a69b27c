"""What a run has planned before, so that an archive that grew keeps the keys of what is scored.

`run.json` lists the input files with their pieces; images are listed one by one in a parquet file
of `inputs/` that run.json names. A new plan takes both over: earlier files and images come first
and in their earlier order, what is new comes behind them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medv_ray.archive import pacs_listing
from medv_ray.archive.chunks import Piece
from medv_ray.archive.ids import source_files
from medv_ray.archive.manifest import UNREADABLE, read_manifest
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Store, Stored
from medv_ray.errors import RunError, named
from medv_ray.file_parts import FilePart

FOLDER = "inputs"
COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("parts", pa.list_(pa.string())),
    ]
)


class PlannedFile(NamedTuple):
    """An input file as run.json lists it."""

    name: str
    size: int
    digest: str
    rows: int
    stem: str = ""
    pieces: tuple[Piece, ...] = ()

    @classmethod
    def from_json(cls, value: list[Any]) -> PlannedFile:
        """The file that json made a list of."""
        name, size, digest, rows, stem, pieces = value
        return cls(name, size, digest, rows, stem, tuple(Piece(*piece) for piece in pieces))


class Image(NamedTuple):
    """An image file of the input, as it was planned."""

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None
    """Of its content, under `fingerprint=full`; its time does not count then."""
    parts: tuple[str, ...] | None = None
    """Texts of the parts that its rows are of; None: one row, of the whole file."""

    def is_same(self, other: Image) -> bool:
        """Whether nothing says that the image changed."""
        if self.sha256 is not None:
            return self.sha256 == other.sha256
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


@dataclass(frozen=True)
class PlannedParts:
    """A `Splitter` that opens no file: the plan takes the parts that are known, and a file that
    has come since is one row."""

    key: str

    def parts(self, filesystem: Any, path: str) -> tuple[FilePart, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Prior:
    """The input of an earlier plan; empty for a run that begins."""

    kind: str | None = None
    files: dict[str, PlannedFile] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    """In order of rows for a folder of images, else those that rows name by path."""
    generation: int = -1
    split: str | None = None
    """By what files were cut into rows: `Splitter.key`."""
    salt: str = ""
    """Of the names that instances of a PACS have in the run."""

    @classmethod
    def read(cls, out: str) -> Prior:
        """Of the run in a folder, if there is one that this version continues.

        Raises RunError E1506 when it is damaged, E1511 when it cannot be read.
        """
        store = Store(out)
        found = read_manifest(store)
        if found is None or "kind" not in found:
            return cls()
        files = [PlannedFile.from_json(value) for value in found["files"]]
        images = read_images(store, found["inputs"]) if found["inputs"] else []
        salt = pacs_listing.read_salt(store) if found["kind"] == "dicomweb" else ""
        return cls(
            found["kind"],
            {file.name: file for file in files},
            {image.name: image for image in images},
            max((p.generation for file in files for p in file.pieces), default=0),
            found.get("split"),
            salt,
        )

    @property
    def splitter(self) -> PlannedParts | None:
        """What gives each file the parts that it was planned with, for those who read the run."""
        return None if self.split is None else PlannedParts(self.split)

    def losses(self, now: Mapping[str, Image], is_whole: bool = True) -> list[str]:
        """In words, which images changed or, if `now` is the whole input, are gone."""
        return [
            f"{named('image', name)} {'changed' if name in now else 'removed'}"
            for name, image in self.images.items()
            if (is_whole if name not in now else not image.is_same(now[name]))
        ]

    def arrange(self, archive: Archive) -> Archive:
        """The archive with its files in the earlier order, under their earlier stems."""
        if archive.kind != self.kind:
            return archive
        known = {file.name: file for file in archive.files if file.name in self.files}
        kept = [
            replace(known[name], stem=before.stem, pieces=before.pieces)
            for name, before in self.files.items()
            if name in known
        ]
        new = [file for file in archive.files if file.name not in known]
        listed = [Stored(file.name, file.size, file.mtime_ns) for file in new]
        if archive.by_image:
            files = (*kept, *new)
        else:
            files = (*kept, *source_files(listed, {file.stem for file in kept}))
        return replace(archive, files=files)

    def in_order(self, images: Iterable[Image]) -> list[Image]:
        """Images of a folder: the earlier ones as they were, then the new ones by name."""
        now = {image.name: image for image in images}
        return [
            *(now[name] for name in self.images),
            *(i for n, i in now.items() if n not in self.images),
        ]

    def continues(self, file: str, proofs: list[Piece]) -> bool:
        """Whether a file of another digest still begins with the rows that it had."""
        before = self.files.get(file)
        if before is None or before.digest == UNREADABLE or not proofs:
            return False
        found = [(proof.rows, proof.proof) for proof in proofs[: len(before.pieces)]]
        return found == [(piece.rows, piece.proof) for piece in before.pieces]


def images_file(images: Iterable[Image]) -> tuple[str, bytes, str]:
    """Name, content and sha256 of the file that lists images."""
    table = pa.Table.from_pylist([image._asdict() for image in images], schema=COLUMNS)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    return f"{FOLDER}/{digest[:16]}.parquet", data, digest


def read_images(store: Store, entry: dict[str, str]) -> list[Image]:
    """The images of such a file. Raises RunError E1506 if it is not the one that run.json names."""
    try:
        data = store.read(entry["file"])
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise RunError("E1506", f"{entry['file']} is missing or does not match run.json.")
    found = pq.read_table(pa.BufferReader(data)).to_pylist()
    return [Image(**{**one, "parts": one.get("parts") and tuple(one["parts"])}) for one in found]
