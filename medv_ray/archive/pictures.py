"""The pictures of rows: held in a cell or named by it, and read without leaving their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from medv_ray.archive.chunks import Row
from medv_ray.archive.listing import place_of
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Stored, is_local, reason_of
from medv_ray.errors import DataError
from medv_ray.slide_parts import MIRAX, SlideKind, SlidePart, slide_kind
from medv_ray.tables import names
from medv_ray.tables.cells import check_marks, names_of, pictures_of

REFUSED = (
    errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO,
    errno.ENODEV,
)  # fmt: skip
"""Why a file is not opened today nor tomorrow."""
EXAMPLES = 3
PICTURE_WARNINGS = ("image_name_case", "slide_thumbnail")


def give_images(archive: Archive, row: Row, cell: Any, last: Row | None = None) -> None:
    """Read the pictures that a cell holds or names into its row, all of them or none.

    `last` is a row of the same cell, whose pictures it shares. The row carries DataError E1108,
    E1109, E1111, E1112; E1107, for a picture that is there but cannot be read now, is raised.
    """
    images: list[bytes] = []
    called: list[str | None] = []
    warnings: list[str] = []
    try:
        if row.error is not None:
            raise row.error
        if last is not None:
            check_marks(row.marks, len(last.images))
            row.images, row.image_names = last.images, last.image_names
            row.warnings += tuple(w for w in last.warnings if w.startswith(PICTURE_WARNINGS))
            return
        for picture in pictures_of(cell):
            if picture.data is None:
                for found, data in named_images(archive, picture.name):
                    images.append(data)
                    called.append(found.path)
                    warnings += found.warnings
            else:
                check_size(len(picture.data), archive.settings.max_image_bytes)
                images.append(picture.data)
                called.append(inside(archive, picture.name))
        check_marks(row.marks, len(images))
    except DataError as error:
        row.refuse(error)
        row.image_names = tuple(inside(archive, name) for name in names_of(cell))
    else:
        row.images, row.image_names = tuple(images), tuple(called)
        row.warnings += tuple(dict.fromkeys(warnings))


def named_in(cell: Any) -> tuple[str, ...]:
    """The paths that a cell names and that are to be looked up."""
    try:
        found = pictures_of(cell)
    except DataError:
        return ()
    return tuple(one.name for one in found if one.data is None and one.name is not None)


def inside(archive: Archive, name: Any) -> Any:
    """A path relative to the image folder where it is an absolute one below it, else as it is."""
    if not isinstance(name, str) or not name.startswith("/") or not is_local(archive.images_uri):
        return name
    root = place_of(archive.images_uri)[1].rstrip("/")
    return names.below(name, root)


def named_images(archive: Archive, name: object) -> list[tuple[names.Found, bytes]]:
    """The image files that a name means: one, but for several names in one.

    Raises DataError E1108, E1111, E1112, and E1107 for one that is there but cannot be read now, or
    is gone with all others.
    """
    try:
        return _named_images(archive, name)
    except DataError as error:
        if error.code != "E1111" or not is_gone(archive):
            raise
    raise DataError("E1107", "the folder of the images is gone or empty; at planning it had some.")


def _named_images(archive: Archive, name: object) -> list[tuple[names.Found, bytes]]:
    try:
        path = names.relative(inside(archive, name))
        return [_read(archive, names.Found(posixpath.normpath(path)))]
    except DataError as error:
        if error.code not in ("E1108", "E1111") or not isinstance(name, str):
            raise
        found = meant(archive, name)
        if not found:
            raise
    return [_read(archive, one) for one in found]


def is_gone(archive: Archive) -> bool:
    """Whether the image folder had images and has nothing now: a disk that was unmounted, say, is
    no fault of the rows."""
    if not archive.has_images or not is_local(archive.images_uri):
        return False
    try:
        with os.scandir(place_of(archive.images_uri)[1]) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _read(archive: Archive, found: names.Found) -> tuple[names.Found, bytes]:
    data, words = read_picture(archive, found.path)
    return found._replace(warnings=(*found.warnings, *words)), data


def read_picture(archive: Archive, path: str) -> tuple[bytes, tuple[str, ...]]:
    """As `read_image`, but of a slide a thumbnail, and words. Raises as it and `SlideFiles`.

    A slide that OpenSlide does not know is read as any other TIFF, by its first page.
    """
    root = place_of(archive.images_uri)[1]
    if archive.slides is None and path.lower().endswith(MIRAX):  # a JPEG of slide and label
        raise DataError("E1211", "the slide is read with the extra medv-ray[wsi].")
    if archive.slides is not None and is_local(archive.images_uri):
        full = real_path(root, path)
        kind = None if full is None else _slide_kind(full)
        if full is not None and kind is not None:
            try:
                data, word = archive.slides.thumbnail(full)
                return data, (word,)
            except DataError as error:
                if error.code != "E1211" or kind != "scan":
                    raise
    return read_image(archive, path), ()


def read_slide(archive: Archive, path: str, part: SlidePart) -> bytes:
    """A part of a slide of the image folder. Raises as `read_picture`."""
    full = real_path(place_of(archive.images_uri)[1], path)
    if full is None:
        raise DataError("E1108", "the slide leads out of the image folder.")
    if archive.slides is None:
        raise DataError("E1211", "the slide is read with the extra medv-ray[wsi].")
    return archive.slides.picture(full, part)


def real_path(root: str, path: str) -> str | None:
    """A path below `root` with all links resolved; None where it leads out of it."""
    real_root = os.path.realpath(root)
    full = os.path.realpath(os.path.join(real_root, path))
    return full if os.path.commonpath([real_root, full]) == real_root else None


def _slide_kind(full: str) -> SlideKind | None:
    """Of a regular file; any other is none, and what is wrong with it is told elsewhere."""
    try:
        with open(os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return slide_kind(file, full) if is_regular else None
    except OSError:
        return None


def read_image(archive: Archive, path: str) -> bytes:
    """A file of the image folder by its path. Raises as `named_images`."""
    limit = archive.settings.max_image_bytes
    filesystem, root = place_of(archive.images_uri)
    if is_local(archive.images_uri):
        return read_local(root, path, limit)
    if path.startswith("/"):
        raise DataError("E1108", "the image path leads out of the image folder.")
    return read_object(filesystem, posixpath.normpath(f"{root}/{path}"), limit)


class Listing(NamedTuple):
    """What lies in a folder."""

    folder: names.Folder
    files: dict[str, tuple[int, int]]
    """Size and time by name."""


@lru_cache(maxsize=1024)
def listing(uri: str, folder: str) -> Listing:
    """A folder below the image folder, empty where none is. Raises DataError E1107."""
    filesystem, root = place_of(uri)
    path = f"{root}/{folder}" if folder else root
    files: dict[str, tuple[int, int]] = {}
    if is_local(uri):
        try:
            entries = list(os.scandir(path))
        except (OSError, ValueError):
            entries = []  # no such folder, a file where one should be, or no permission
        for entry in entries:
            try:
                if entry.is_file():
                    info = entry.stat()
                    files[entry.name] = (info.st_size, info.st_mtime_ns)
            except OSError:
                continue
        return Listing(names.Folder(entry.name for entry in entries), files)
    try:
        listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except ValueError:
        listed = []  # no name of a folder
    except OSError as error:
        # no network, say: what is there would count as missing
        message = f"the images that rows name cannot be listed ({reason_of(error)})."
        raise DataError("E1107", message) from error
    for info in listed:
        if info.type == fs.FileType.File:
            files[posixpath.basename(info.path)] = (info.size, info.mtime_ns or 0)
    return Listing(names.Folder(posixpath.basename(info.path) for info in listed), files)


def meant(archive: Archive, name: str) -> list[names.Found]:
    """The files that a name means, as `names.find`; a path below the image folder counts too."""
    uri = archive.images_uri
    root = place_of(uri)[1].rstrip("/")
    name = inside(archive, name)
    try:
        return names.find(name, posixpath.basename(root), lambda at: listing(uri, at).folder)
    except DataError as error:
        if error.code == "E1107":
            raise
        return []


def read_object(filesystem: Any, path: str, limit: int) -> bytes:
    """An object of a store; a failed read is E1107, as the object may be there another time."""
    try:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise DataError("E1111", "the image that the row names does not exist.")
        if info.type != fs.FileType.File:
            raise DataError("E1108", "the image path is not a file.")
        check_size(info.size, limit)
        with filesystem.open_input_file(path) as file:
            data: bytes = file.read()
    except pa.ArrowInvalid as error:
        raise DataError("E1108", "the image path is no name of an object.") from error
    except OSError as error:
        raise DataError("E1107", f"an image could not be read ({reason_of(error)}).") from error
    return data


def read_local(root: str, path: str, limit: int) -> bytes:
    """A regular file below `root`, links resolved. Never blocks on a pipe or a device."""
    full = real_path(root, path)
    if full is None:
        raise DataError("E1108", "the image path leads out of the image folder.")
    try:
        handle = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise DataError("E1111", "the image that the row names does not exist.") from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise DataError("E1108", "the image path is not a regular file.") from None
        # too many open files, say, or a stale handle, are no fault of the row
        code = "E1108" if error.errno in REFUSED else "E1107"
        raise DataError(code, f"the image cannot be opened ({reason_of(error)}).") from error
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise DataError("E1108", "the image path is not a regular file.")
        check_size(info.st_size, limit)
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise DataError("E1107", f"an image could not be read ({reason_of(error)}).") from error
    finally:
        os.close(handle)


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise DataError("E1112", f"the image has {size} bytes; at most {limit} are allowed.")


class NamedImages(NamedTuple):
    """The image files that rows name by path, as they lie there at planning."""

    digest: str
    """sha256 over path, size and time of each; empty when rows name none."""
    distinct: int
    missing: int
    examples: tuple[str, ...] = ()
    """Some of the missing names, as rows have them."""
    files: tuple[Stored, ...] = ()
    """Those that are there, by name."""


def look_up(archive: Archive, wanted: Iterable[str]) -> NamedImages:
    """List the folders of the named images and compare; no image is read.

    Raises DataError E1110 when a store cannot be listed.
    """
    named = sorted(wanted)
    if not named:
        return NamedImages("", 0, 0)
    listing.cache_clear()
    found: dict[str, tuple[int, int]] = {}
    missing = []
    try:
        for name in named:
            paths = [one.path for one in meant(archive, name)]
            facts = [_fact(archive.images_uri, path) for path in paths]
            if not paths or None in facts:
                missing.append(name)
            found.update((p, f) for p, f in zip(paths, facts, strict=True) if f is not None)
    except DataError as error:
        raise DataError("E1110", error.detail) from error
    digest = hashlib.sha256()
    files = tuple(Stored(path, *fact) for path, fact in sorted(found.items()))
    for file in files:
        digest.update(f"{file.name!a} {file.size} {file.mtime_ns}\n".encode())
    examples = tuple(name[:200] for name in missing[:EXAMPLES])
    return NamedImages(digest.hexdigest(), len(found), len(missing), examples, files)


def _fact(uri: str, path: str) -> tuple[int, int] | None:
    head, _, tail = path.rpartition("/")
    return listing(uri, head).files.get(tail)
