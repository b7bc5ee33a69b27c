"""The files that a name, a folder or a pattern stands for, on a disk or an object store."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import fs

from medv_ray.archive.dicomdir import indexed
from medv_ray.archive.left_out import LeftOut, is_index
from medv_ray.archive.store import TROUBLE, Listing, Odd, Stored, list_folder, reason_of, resolve
from medv_ray.errors import DataError


@contextmanager
def listing_errors() -> Iterator[None]:
    """Turn a failed listing into DataError E1110."""
    try:
        yield
    except TROUBLE as error:
        text = f"archive: cannot be listed ({reason_of(error)}: rights or network)."
        raise DataError("E1110", text) from error


def list_files(pattern: str, left_out: LeftOut | None = None) -> list[Stored]:
    """All files that a file name, folder or pattern with `*` stands for, sorted by name; of a
    DICOMDIR the files that it names.

    What cannot be read as a file is counted in `left_out`. Raises DataError E1110 when there are
    none, or when they cannot be listed.
    """
    with listing_errors():
        found = find_files(pattern)
    return some_files(found, LeftOut() if left_out is None else left_out)


def some_files(found: Listing, left_out: LeftOut) -> list[Stored]:
    """See `list_files`."""
    for odd in found.odd:
        left_out.add(odd.name, odd.reason)
    if not found.files:
        why = f"; left out: {left_out}" if left_out.total else ""
        raise DataError("E1110", f"archive: no such file or folder, or it is empty{why}.")
    return sorted(found.files)


def find_files(pattern: str) -> Listing:
    """`list_files` without its complaints."""
    filesystem, path = resolve(pattern)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File and is_index(path):
        return indexed(filesystem, path)
    if info.type == fs.FileType.File:
        return Listing([Stored(posixpath.basename(path), info.size, info.mtime_ns or 0)], [])
    if info.type == fs.FileType.Unknown:
        return Listing([], [Odd(posixpath.basename(path), "no regular file")])
    base, glob = (path, "") if info.type == fs.FileType.Directory else split_glob(path)
    found = list_folder(filesystem, base)
    if not glob:
        return found
    matches = re.compile(glob_regex(glob)).fullmatch
    return Listing(
        [file for file in found.files if matches(file.name)],
        [odd for odd in found.odd if matches(odd.name) or may_hold(glob, odd.name)],
    )


def may_hold(glob: str, folder: str) -> bool:
    """Whether files in a folder may match a pattern: one that cannot be listed is counted then."""
    above = [glob[: at.end()] for at in re.finditer(r"\*\*", glob)]
    above += [glob[: at.start()] for at in re.finditer("/", glob)]
    return any(re.fullmatch(glob_regex(part), folder) for part in above)


def folder_of(pattern: str) -> str:
    """The URI of the folder that the names of `list_files` are relative to."""
    filesystem, path = resolve(pattern)
    kind = filesystem.get_file_info(path).type
    base = path if kind == fs.FileType.Directory else posixpath.dirname(path)
    if kind == fs.FileType.NotFound and "*" in path:
        base = split_glob(path)[0]
    if "://" not in pattern:
        return base
    scheme, _, rest = pattern.partition("://")
    query = "?" + rest.partition("?")[2] if "?" in rest else ""
    location = rest.partition("?")[0]
    cut = len(path) - len(base)
    return f"{scheme}://{location.rstrip('/')[:-cut] if cut else location}{query}"


@listing_errors()
def would_list(pattern: str, name: str) -> bool:
    """Whether a file `name`, relative to the pattern's folder, would be part of the archive."""
    filesystem, path = resolve(pattern)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        return False
    glob = split_glob(path)[1]
    return not glob or re.fullmatch(glob_regex(glob), name) is not None


def split_glob(path: str) -> tuple[str, str]:
    """`a/b/*/c.parquet` -> (`a/b`, `*/c.parquet`); no pattern gives an empty second part."""
    if "*" not in path:
        return path, ""
    base = path[: path.index("*")].rpartition("/")[0]
    return base, path[len(base) :].lstrip("/")


def glob_regex(pattern: str) -> str:
    """`*` stays inside a folder, `**` crosses folders."""
    marked = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    return re.sub(r"\\\*", "[^/]*", marked)


@lru_cache(maxsize=16)
def place_of(uri: str) -> tuple[Any, str]:
    """`resolve`, once per process."""
    return resolve(uri)
