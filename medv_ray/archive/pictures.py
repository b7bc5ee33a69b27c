"""Image files that rows name by path: found, checked, and read without leaving their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from medv_ray.archive.sources import Archive, place_of
from medv_ray.archive.store import Stored, is_local, list_folder, reason_of
from medv_ray.errors import DataError

REFUSED = (
    errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO,
    errno.ENODEV,
)  # fmt: skip
"""Why a file is not opened today nor tomorrow."""


def named_image(archive: Archive, name: object) -> bytes:
    """The bytes of the image that a row names.

    Raises DataError E1108, E1111, E1112, and E1107 for one that is there but cannot be read now.
    """
    if name is None or name == "":
        raise DataError("E1111", "the row has neither image bytes nor an image path.")
    limit = archive.settings.max_image_bytes
    filesystem, root = place_of(archive.images_uri)
    path = relative_path(name)
    if is_local(archive.images_uri):
        return read_local(root, path, limit)
    if path.startswith("/"):
        raise DataError("E1108", "the image path leads out of the image folder.")
    return read_object(filesystem, posixpath.normpath(f"{root}/{path}"), limit)


def relative_path(name: object) -> str:
    r"""`images\test\1.jpg` -> `images/test/1.jpg`. Raises DataError E1108 for a way out."""
    if not isinstance(name, str) or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise DataError("E1108", "the image path is no text that can be a path.")
    path = name.replace("\\", "/")
    parts = path.split("/")
    if ".." in parts or ":" in parts[0]:
        raise DataError("E1108", "the image path has '..', a drive or a URL scheme.")
    return path


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
    real_root = os.path.realpath(root)
    full = os.path.realpath(os.path.join(real_root, path))
    if os.path.commonpath([real_root, full]) != real_root:
        raise DataError("E1108", "the image path leads out of the image folder.")
    try:
        handle = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise DataError("E1111", "the image that the row names does not exist.") from None
    except OSError as error:
        # too many open files, say, or a stale handle, are no fault of the row
        code = "E1108" if error.errno in REFUSED else "E1107"
        raise DataError(code, f"the image cannot be opened ({type(error).__name__}).") from error
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise DataError("E1108", "the image path is not a regular file.")
        check_size(info.st_size, limit)
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise DataError("E1107", f"an image could not be read ({type(error).__name__}).") from error
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
    files: tuple[Stored, ...] = ()
    """Those that are there, by name."""


def look_up(archive: Archive, names: set[str]) -> NamedImages:
    """List the folders of the named images and compare; no image is read."""
    if not names:
        return NamedImages("", 0, 0)
    filesystem, root = place_of(archive.images_uri)
    paths = set()
    missing = 0
    for name in names:
        try:
            paths.add(posixpath.normpath(posixpath.join(root, relative_path(name))))
        except DataError:
            missing += 1
    digest, found = hashlib.sha256(), []
    for folder in sorted({posixpath.dirname(path) for path in paths}):
        try:
            listed = list_folder(filesystem, folder, recursive=False).files
        except ValueError:
            continue  # no name of a folder: missing
        except OSError as error:
            if is_local(archive.images_uri):
                continue  # a file where a folder should be, or no permission: missing
            # no network, say: what is there would count as missing, and as changed the next time
            told = f"the images that rows name cannot be listed ({reason_of(error)})."
            raise DataError("E1110", told) from error
        for file in sorted(listed):
            if f"{folder}/{file.name}" in paths:
                name = posixpath.relpath(f"{folder}/{file.name}", root)
                digest.update(f"{name!a} {file.size} {file.mtime_ns}\n".encode())
                found.append(file._replace(name=name))
    left = missing + len(paths) - len(found)
    return NamedImages(digest.hexdigest(), len(paths), left, tuple(found))
