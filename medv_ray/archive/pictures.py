"""Image files that rows name by path: found, checked, and read without leaving their folder."""

from __future__ import annotations

import os
import posixpath
import stat
from typing import Any

from pyarrow import fs

from medv_ray.archive.sources import Archive, place_of
from medv_ray.archive.store import is_local
from medv_ray.errors import DataError


def named_image(archive: Archive, name: object) -> bytes:
    """The bytes of the image that a row names. Raises DataError E1108, E1111, E1112."""
    if name is None or name == "":
        raise DataError("E1111", "the row has neither image bytes nor an image path.")
    if not isinstance(name, str) or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise DataError("E1108", "the image path is no text that can be a path.")
    limit = archive.settings.max_image_bytes
    filesystem, root = place_of(archive.images_uri)
    path = relative_path(name)
    if is_local(archive.images_uri):
        return read_local(root, path, limit)
    info = filesystem.get_file_info(f"{root}/{path}")
    if info.type == fs.FileType.NotFound:
        raise DataError("E1111", "the image that the row names does not exist.")
    if info.type != fs.FileType.File:
        raise DataError("E1108", "the image path is not a file.")
    return read_object(filesystem, f"{root}/{path}", info.size, limit)


def relative_path(name: str) -> str:
    r"""`images\test\1.jpg` -> `images/test/1.jpg`. Raises DataError E1108 for a way out."""
    path = name.replace("\\", "/")
    parts = path.split("/")
    if ".." in parts or ":" in parts[0]:
        raise DataError("E1108", "the image path has '..', a drive or a URL scheme.")
    return path


def read_object(filesystem: Any, path: str, size: int, limit: int) -> bytes:
    """An object of a store; a failed read is E1107, as the object may be there another time."""
    check_size(size, limit)
    try:
        with filesystem.open_input_file(path) as file:
            data: bytes = file.read()
    except OSError as error:
        raise DataError("E1107", f"an image could not be read ({type(error).__name__}).") from error
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
        raise DataError("E1108", f"the image cannot be opened ({type(error).__name__}).") from error
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise DataError("E1108", "the image path is not a regular file.")
        check_size(info.st_size, limit)
        return file.read()


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise DataError("E1112", f"the image has {size} bytes; at most {limit} are allowed.")


def folder_name(path: str) -> str:
    """`a/b/c.jpg` -> `a/b`."""
    return posixpath.dirname(path)
