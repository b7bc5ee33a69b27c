"""Cuts an archive into chunks with stable keys."""

from __future__ import annotations

import ctypes
import gc
import posixpath
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from medv_ray.archive import images, pacs, pictures
from medv_ray.archive.entries import Chunks, Entry, draft_file
from medv_ray.archive.fingerprints import digests
from medv_ray.archive.growth import Growth, growth
from medv_ray.archive.id_names import IdNames
from medv_ray.archive.left_out import UNNAMED, LeftOut
from medv_ray.archive.listing import place_of
from medv_ray.archive.manifest import IMAGES, identity_changes
from medv_ray.archive.pictures import NamedImages
from medv_ray.archive.prior import Image, PlannedFile, Prior
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Stored
from medv_ray.errors import DataError, SettingsError, named
from medv_ray.file_parts import Splitter


class Unreadable(NamedTuple):
    """A file that could not be planned; its rows are not known and not scored."""

    name: str
    code: str
    detail: str


TRIM_EVERY = 16
"""Files."""


@dataclass(frozen=True)
class Plan:
    """All chunks of an archive."""

    archive: Archive
    files: tuple[PlannedFile, ...]
    """In the order of `Chunk.file`; an unreadable file stands there without digest and rows."""
    chunks: Chunks
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
    split: str | None = None
    """By what files were cut into rows: `Splitter.key`."""

    @property
    def several_rows(self) -> dict[str, Any] | None:
        """By what files become several rows, how many files there are, and how many of them are
        several; None where each file of pictures is one row at most."""
        if self.split is None:
            return None
        several = sum(len(image.parts or ()) > 1 for image in self.inputs)
        counts = {"files": len(self.inputs), "files_of_several": several, "rows": self.rows}
        return {"by": self.split, **counts}

    @property
    def ignored(self) -> int:
        """How many files, or members of tars, are left out."""
        return self.left_out.total

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume: input settings, and every file's digest by name."""
        settings = self.archive.settings.model_dump(mode="json")
        for field_name in ("archive", "questions", "images", "token_file"):
            del settings[field_name]
        for field_name in ("choices_column", "prompt", "system_column"):
            if settings[field_name] is None:  # as before there were any
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
        news = (
            []
            if allow_added
            else [f"{named('image', name)} added" for name in self.growth.new_images]
        )
        if allow_added:
            files = now["files"]
            before["files"].update({name: files[name] for name in self.growth.longer})
            before["files"].update({n: d for n, d in files.items() if n not in before["files"]})
            if not self.growth.lost:
                before["images"] = now["images"]
        found = identity_changes(before, now)
        if self.growth.is_known:  # the images are named, not the folder or all of them together
            folder = f"input file {self.files[0].name!r} changed"
            whole = folder if self.archive.by_image else IMAGES
            found = [change for change in found if change != whole]
        return [*self.growth.lost, *news, *found]


def plan(
    archive: Archive,
    settings_digest: str,
    prior: Prior | None = None,
    splitter: Splitter | None = None,
) -> Plan:
    """Fingerprint every file and cut its rows into chunks.

    What `prior` has planned keeps its place and its keys as far as it is unchanged, and what is new
    comes behind it. A file that cannot be read is listed, and the rest is planned. With a
    `splitter` a file of a folder of images may become several rows. Raises DataError when no file
    can be read (its own code), or when the archive has no row (E1110); SettingsError E1001 for a
    splitter where rows are those of a table or tar.
    """
    prior = prior or Prior()
    archive, inputs, lost = arranged(archive, prior, splitter)
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
        if len(entries) % TRIM_EVERY == 0:
            _free()
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
    chunks = Chunks(settings_digest, entries, duplicates)
    named = pictures.look_up(archive, set().union(*(entry.draft.images for entry in entries)))
    archive = replace(archive, has_images=named.distinct > 0)
    if not archive.by_image:
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
        None if splitter is None else splitter.key,
    )


def arranged(
    archive: Archive, prior: Prior, splitter: Splitter | None
) -> tuple[Archive, list[Image], list[str]]:
    """The archive in the order of an earlier plan, the images of a folder, and which were lost."""
    archive = prior.arrange(archive)
    if archive.kind != "images" and splitter is not None:
        sort = {
            "tar": "the members of tars",
            "table": "those of a table",
            "dicomweb": "the instances of a PACS",
        }.get(archive.kind, "those of parquet files")
        way = f"a folder of images (--question TEXT) become several rows; here the rows are {sort}"
        raise SettingsError("E1001", f"{splitter.key}: files of {way}. first and middle work.")
    if not archive.by_image:
        return archive, [], []
    found = images.listed(archive) if archive.kind == "images" else pacs.listed(archive)
    split = None if splitter is None else splitter.key
    is_same_split = prior.kind == archive.kind and prior.split == split
    if splitter is not None:
        known = prior.images if is_same_split else {}
        found = images.split_up(archive, found, splitter, known)
        archive = replace(archive, parts={image.name: image.parts or () for image in found})
    if prior.kind != archive.kind:
        return archive, found, []
    lost = prior.losses({image.name: image for image in found})
    if lost or not is_same_split:  # nothing keeps its row number
        files = tuple(replace(file, pieces=()) for file in archive.files)
        return replace(archive, files=files), found, lost
    found = prior.in_order(found)
    ordered = tuple(Stored(image.name, image.size, image.mtime_ns) for image in found)
    return replace(archive, images=ordered), found, []


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


def _free() -> None:
    """Give back what the indices of files took: a footer of pyarrow's and its schema hold each
    other, 90 bytes a row, and the C library keeps what lay between what stays."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
