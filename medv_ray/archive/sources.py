"""What an archive is made of: its kind, the files that hold its rows, and what it leaves out.

Four kinds: parquet files, question tables (csv, jsonl, json) beside a folder of images, tar shards,
and a folder of images with one fixed question. docs/archive.md describes each.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs

from medv_ray.archive import pacs_listing
from medv_ray.archive.chunks import SourceFile
from medv_ray.archive.ids import clean_stem, source_files
from medv_ray.archive.kinds import (
    PARQUET_ENDINGS,
    Beside,
    Kind,
    KnownImage,
    choose,
    sort_of,
    sorted_out,
    what_is_beside,
)
from medv_ray.archive.left_out import UNNAMED, LeftOut
from medv_ray.archive.listing import (
    find_files,
    folder_of,
    list_files,
    listing_errors,
    place_of,
    some_files,
)
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import Stored, absolute, is_hub, resolve
from medv_ray.dicomweb.address import is_dicomweb
from medv_ray.dicomweb.search import Instance
from medv_ray.errors import DataError, SettingsError
from medv_ray.slide_parts import SlideFiles
from medv_ray.tables.records import ENDINGS as TABLE_ENDINGS


@dataclass(frozen=True)
class Archive:
    """The files of an archive. Picklable and small: no row of it is held."""

    settings: ArchiveSettings
    kind: Kind
    uri: str
    """The folder of the archive, or the questions file's."""
    files: tuple[SourceFile, ...]
    images_uri: str
    """The folder that image paths are relative to."""
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    """Files of the listing that hold no row of it and that no row can name."""
    beside: Mapping[str, Beside] = field(default_factory=dict, repr=False, compare=False)
    """By path in the filesystem, what rows may name. An actor's copy has none."""
    images: tuple[Stored, ...] = field(default=(), repr=False, compare=False)
    """Of a folder of images, the pictures in order of names. An actor's copy has none."""
    slides: SlideFiles | None = field(default=None, repr=False, compare=False)
    """What reads slides; None: they are read as any other file."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)
    """By name, the texts of the parts of those pictures that become rows by parts. An actor's copy
    has none."""
    instances: Mapping[str, Instance] = field(default_factory=dict, repr=False, compare=False)
    """Of a PACS, what the names of `images` stand for. An actor's copy has none."""
    salt: str = field(default="", repr=False, compare=False)
    """With which these names were made."""
    has_images: bool = field(default=False, compare=False)
    """Whether planning has found images that rows name."""

    @property
    def by_image(self) -> bool:
        """Whether every picture of a list is a row, and the list is the only file."""
        return self.kind in ("images", "dicomweb")

    def __getstate__(self) -> dict[str, Any]:
        unsent = {"beside": {}, "images": (), "parts": {}, "instances": {}, "salt": ""}
        return {**self.__dict__, **unsent}


@listing_errors()
def open_archive(
    settings: ArchiveSettings, known: Mapping[str, KnownImage] | None = None, salt: str = ""
) -> Archive:
    """List the archive and tell its kind; no row is read.

    Images that are `known` by name, size and time from an earlier plan are not looked into again.
    `salt`: of the names that an earlier plan gave to instances of a PACS.

    Raises DataError E1110 when nothing is there or it cannot be listed, SettingsError E1001 when
    its kind is not clear.
    """
    left_out = LeftOut()
    settings = at_commit(settings)
    if is_dicomweb(settings.archive):
        check_no_columns(settings, "a PACS")
        return asked_of_pacs(settings, left_out, salt)
    if settings.questions is not None:
        images = absolute(settings.images or settings.archive)
        filesystem, path = resolve(images)
        if filesystem.get_file_info(path).type != fs.FileType.Directory:
            raise DataError("E1110", "archive: with --questions it is the folder of the images.")
        return asked_by_table(settings, images, left_out)
    folder = folder_of(settings.archive)
    images = absolute(settings.images or folder)
    found = list_files(settings.archive, left_out)
    kind, chosen, beside = choose(settings, found, left_out, known or {})
    if kind == "images":
        check_no_columns(settings, "a folder of images")
        name = posixpath.basename(folder.rstrip("/")) or "images"
        size = sum(file.size for file in chosen)
        whole = SourceFile(name, resolve(folder)[1], size, 0, clean_stem(name))
        return Archive(settings, kind, folder, (whole,), images, left_out, images=tuple(chosen))
    paths = by_path(resolve(folder)[1], beside)
    return Archive(settings, kind, folder, source_files(chosen), images, left_out, paths)


def check_no_columns(settings: ArchiveSettings, what: str) -> None:
    """Raises SettingsError E1001 where --prompt or --system-column names a column."""
    if settings.asked.more:
        name = settings.asked.more[0][:30]
        rule = f"{what} has no columns; give a table with --questions"
        raise SettingsError("E1001", f"--prompt or --system-column names {name!r}, but {rule}.")


def at_commit(settings: ArchiveSettings) -> ArchiveSettings:
    """With each place on the hub at a commit. Raises SettingsError E1001, DataError E1415 to
    E1417."""
    places = {name: getattr(settings, name) for name in ("archive", "images", "questions")}
    if not any(is_hub(place or "") for place in places.values()):
        return settings
    from medv_ray.archive.hub_files import pinned  # here, as few jobs need the hub's client

    at = {name: pinned(place) if is_hub(place or "") else place for name, place in places.items()}
    return settings.model_copy(update=at)


def asked_by_table(settings: ArchiveSettings, images: str, left_out: LeftOut) -> Archive:
    """The archive of `--questions`: its tables, else its parquet files, beside their images."""
    pattern = str(settings.questions)
    listed = find_files(pattern)
    found = some_files(listed, left_out)
    uri = folder_of(pattern)
    filesystem, path = resolve(pattern)
    sorts = sorted_out(found, {})
    if filesystem.get_file_info(path).type == fs.FileType.File:
        # it is asked for by its name, which may begin with "_"
        sorts = {**sorted_out([], {}), sort_of(f"x{found[0].name}"): found}
    kind: Kind = "table" if sorts["table"] else "parquet"
    if not sorts[kind]:
        endings = ", ".join((*TABLE_ENDINGS, *PARQUET_ENDINGS))
        raise DataError("E1110", f"--questions: no {endings} file; save a spreadsheet as csv.")
    root, folder = resolve(uri)[1], resolve(images)[1]
    beside = by_path(root, what_is_beside(sorts, kind))
    names = [*(file.name for file in sorts[kind]), *(odd.name for odd in listed.odd)]
    counted = {f"{root}/{name}" for name in names}
    pictures = find_files(images)
    for odd in pictures.odd:
        if f"{folder}/{odd.name}" not in counted:
            left_out.add(odd.name, odd.reason)
    others = sorted_out(pictures.files, {})
    spare = [Beside(file.name, UNNAMED) for file in others.pop("images")]
    for path, one in by_path(folder, [*spare, *what_is_beside(others, "images")]).items():
        if path not in counted:
            beside.setdefault(path, one)
    return Archive(settings, kind, uri, source_files(sorts[kind]), images, left_out, beside)


def asked_of_pacs(settings: ArchiveSettings, left_out: LeftOut, salt: str) -> Archive:
    """The archive of the instances that a PACS lists."""
    listed = pacs_listing.listed(settings, left_out, salt)
    name = pacs_listing.NAME
    whole = SourceFile(name, name, sum(one.size for one in listed.images), 0, name)
    uri = settings.archive
    return Archive(
        settings, "dicomweb", uri, (whole,), uri, left_out,
        images=listed.images, instances=listed.instances, salt=listed.salt,
    )  # fmt: skip


def by_path(root: str, files: Iterable[Beside]) -> dict[str, Beside]:
    """Files below a folder, by their paths in its filesystem."""
    return {f"{root.rstrip('/')}/{file.name}": file for file in files}


def file_path(archive: Archive, file: SourceFile) -> tuple[Any, str]:
    """Filesystem and path of an input file."""
    filesystem, root = place_of(archive.uri)
    return filesystem, file.path if archive.kind == "images" else f"{root}/{file.path}"


def check_unchanged(archive: Archive, file: SourceFile) -> None:
    """Compare a file's size and time with the listing's. Raises DataError E1107."""
    filesystem, path = file_path(archive, file)
    info = filesystem.get_file_info(path)
    if info.type != fs.FileType.File:
        raise DataError("E1107", f"{file.name} is not there any more; its rows are not scored.")
    if (info.size, info.mtime_ns or 0) != (file.size, file.mtime_ns):
        raise DataError("E1107", f"{file.name} changed while the job ran; its rows are not scored.")
