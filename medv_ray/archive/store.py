"""Where a run or an archive lies: a local folder, or a prefix of an object store.

A name is relative to the root, with forward slashes. On a local disk a file becomes visible by
`.tmp`, fsync, rename, fsync of the folder; on an object store by one PUT, which is atomic there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from medv_ray import files
from medv_ray.errors import RunError, SettingsError

T = TypeVar("T")
TRIES = 3
AT_ONCE = 16
"""Requests that one process has under way at an object store, at most, for its run folder."""
S3_TRIES = 9
"""Of a request that S3 refuses for now: six seconds, as pyarrow tries by itself."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
TROUBLE = (OSError, pa.ArrowException)
"""What disks and object stores raise through pyarrow. Its text may name hosts, keys and paths, and
goes into no message."""


class Stored(NamedTuple):
    """One file of a listing."""

    name: str
    size: int
    """Bytes."""
    mtime_ns: int


class Odd(NamedTuple):
    """An entry of a listing that is no file to be read."""

    name: str
    """Bytes that are no UTF-8 are escaped: `b\\xff.png`."""
    reason: str


class Listing(NamedTuple):
    """What lies in a folder, in no order."""

    files: list[Stored]
    odd: list[Odd]


def resolve(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem and a path in it, from a local path or a URI (s3, gs, hf, file).

    `AWS_ENDPOINT_URL` or `?endpoint_override=host:port&scheme=http` points s3 at another server.
    Raises SettingsError E1001 for a URI that pyarrow does not know.
    """
    if escaped(uri) != uri:
        raise SettingsError("E1001", "a path is not UTF-8; rename the folder.")
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if is_hub(uri):
        from medv_ray.archive import hub_files  # here, as few jobs need the hub's client

        return hub_files.opened(uri)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ValueError, *TROUBLE) as error:
        scheme = urlsplit(uri).scheme
        raise SettingsError(
            "E1001", f"{scheme}://...: not a place that can be opened (local, s3://, gs://, hf://)."
        ) from error
    return by_single_puts(filesystem), path.rstrip("/") or path


def by_single_puts(filesystem: Any) -> Any:
    """The same store, but small files go to S3 by one PUT. For any file pyarrow begins and ends an
    upload of several parts otherwise: three requests, one after the other."""
    if filesystem.type_name != "s3":
        return filesystem
    remake, (options,) = filesystem.__reduce__()  # without the tries of one made of an address
    patience = fs.AwsStandardS3RetryStrategy(max_attempts=S3_TRIES)
    return remake({**options, "allow_delayed_open": True, "retry_strategy": patience})


def escaped(name: str) -> str:
    r"""A name as it can be printed: bytes that are no UTF-8 as `\xff`."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return name.encode(errors="backslashreplace").decode()


def list_folder(
    filesystem: Any, base: str, recursive: bool = True, strict: bool = False
) -> Listing:
    """The files below a folder, named relative to it; nothing for a folder that is not there.

    On a local disk links are followed. pyarrow's own listing is not used there: one name that is
    not UTF-8 ends it. Raises OSError; for a local folder below `base` that cannot be listed only
    where `strict`, else that folder is odd.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        found = Listing([], [])
        if os.path.isdir(base):
            _scan(base, recursive, strict, found)
        return found
    selector = fs.FileSelector(base, recursive=recursive, allow_not_found=True)
    return Listing(
        [
            Stored(info.path[len(base) :].lstrip("/"), info.size, info.mtime_ns or 0)
            for info in filesystem.get_file_info(selector)
            if info.type == fs.FileType.File
        ],
        [],
    )


def _scan(base: str, recursive: bool, strict: bool, found: Listing) -> None:
    """A local folder and those below it, however deep they lie."""
    nobody: frozenset[tuple[int, int]] = frozenset()
    # each with the folders that it lies in, as a link may lead back
    waiting = [(base, "", nobody)]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            here = os.stat(folder)
            own = (here.st_dev, here.st_ino)
            if own in above:
                continue
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            if strict or not prefix:
                raise
            found.odd.append(Odd(escaped(prefix[:-1]), f"cannot be read ({reason_of(error)})"))
            continue
        for entry in listed:
            name = prefix + entry.name
            try:
                info = entry.stat()
            except OSError as error:
                found.odd.append(Odd(escaped(name), f"cannot be read ({reason_of(error)})"))
                continue
            if stat.S_ISDIR(info.st_mode):
                if recursive:
                    waiting.append((entry.path, f"{name}/", above | {own}))
            elif escaped(name) != name:
                found.odd.append(Odd(escaped(name), "name is not UTF-8"))
            elif not stat.S_ISREG(info.st_mode):
                found.odd.append(Odd(name, "no regular file"))
            else:
                found.files.append(Stored(name, info.st_size, info.st_mtime_ns))


def absolute(uri: str) -> str:
    """The same place, whatever folder a process works in."""
    return uri if "://" in uri else os.path.abspath(uri)


def is_hub(uri: str) -> bool:
    """Whether `uri` names something on the Hugging Face hub."""
    return uri.startswith("hf://")


def is_local(uri: str) -> bool:
    """Whether `uri` names a folder of this machine."""
    return "://" not in uri or uri.startswith("file://")


class Store:
    """A folder of files, read and written by name. Picklable: opened again where it arrives."""

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)
        self.local = is_local(uri)
        self.filesystem, self.root = resolve(uri)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    def path(self, name: str) -> str:
        """The file's path in the filesystem."""
        return f"{self.root}/{name}"

    def make(self) -> None:
        """Make the folder itself; nothing to do on an object store."""
        if self.local:
            with writing(self.root, 0):
                os.makedirs(self.root, exist_ok=True)

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError, RunError E1511."""
        tries = 1 if self.local else TRIES
        for left in reversed(range(tries)):
            try:
                with reading(name), self.filesystem.open_input_file(self.path(name)) as file:
                    data: bytes = file.read()
                return data
            except RunError:  # an object may be replaced between our HEAD and our GET
                if not left:
                    raise
        raise AssertionError("unreachable")

    def write(self, name: str, data: bytes, mode: int = 0o666) -> None:
        """Put the file in place as a whole, on a disk with these rights at most.

        Raises RunError E1503 when the disk is full.
        """
        if not self.local:
            stream = self.filesystem.open_output_stream
            with writing(name, len(data)), stream(self.path(name)) as file:
                file.write(data)
            return
        self.write_hidden(name + ".tmp", data, mode)
        self.reveal(name + ".tmp", name)

    def write_hidden(self, name: str, data: bytes, mode: int = 0o666) -> None:
        """Write and fsync a local file that no reader looks at; leave nothing on failure."""
        path = self.path(name)
        with writing(path, len(data)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            files.write_durably(path, data, mode)

    def reveal(self, hidden: str, name: str) -> None:
        """Rename a local file to its visible name and make the rename durable."""
        self.reveal_all([(hidden, name)])

    def reveal_all(self, names: Iterable[tuple[str, str]]) -> None:
        """Do so with several files, (hidden, name) each, with one wait for the disk a folder."""
        folders = set()
        for hidden, name in names:
            with writing(self.path(name), 0):
                os.replace(self.path(hidden), self.path(name))
            folders.add(os.path.dirname(self.path(name)))
        for folder in folders:
            with writing(folder, 0):
                files.sync(folder)

    def listing(self, prefix: str = "") -> list[Stored]:
        """All files below `prefix`, sorted by name; empty when there is no such folder."""
        base = f"{self.root}/{prefix}".rstrip("/")
        with reading(prefix):  # of a run, a part that is not seen would count as not there
            found = list_folder(self.filesystem, base, strict=True).files
        start = f"{prefix}/" if prefix else ""
        return sorted(file._replace(name=start + file.name) for file in found)

    def top(self) -> list[str]:
        """Names of the files and folders directly in the root."""
        with reading():
            if self.local:
                names = os.listdir(self.root) if os.path.isdir(self.root) else []
                return sorted(map(escaped, names))
            selector = fs.FileSelector(self.root, recursive=False, allow_not_found=True)
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        with reading(name):
            return bool(self.filesystem.get_file_info(self.path(name)).type == fs.FileType.File)

    def size(self, name: str) -> int | None:
        """Bytes of the file; None where it is not there."""
        with reading(name):
            found: int | None = self.filesystem.get_file_info(self.path(name)).size
            return found

    def each(self, call: Callable[..., T], *given: Iterable[Any]) -> list[T]:
        """As `list(map(call, *given))`; on an object store AT_ONCE calls at a time, as each waits
        for an answer."""
        if self.local:
            return list(map(call, *given))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(call, *given))

    def delete(self, name: str) -> None:
        """Remove the file; nothing happens when it is not there."""
        with suppress(FileNotFoundError), reading(name):
            self.filesystem.delete_file(self.path(name))


@contextmanager
def reading(name: str = "") -> Iterator[None]:
    """Turn a failed look at a run folder into RunError E1511, E1507 where a file has its name;
    FileNotFoundError is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError:
        raise RunError("E1507", "the run folder, or one above it, is a file.") from None
    except TROUBLE as error:
        text = f"{name or 'the output folder'}: no answer from the disk or the object store"
        raise RunError("E1511", f"{text} ({reason_of(error)}).") from error


def reason_of(error: Exception) -> str:
    """A word for what a disk or an object store raised, without its text."""
    number = error.errno if isinstance(error, OSError) else None
    return errno.errorcode.get(number or 0, type(error).__name__)


@contextmanager
def writing(path: str, num_bytes: int) -> Iterator[None]:
    """Turn a failed write into RunError: E1503 for a full disk, E1511 for the rest."""
    try:
        yield
    except TROUBLE as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            folder = os.path.dirname(path)
            free = shutil.disk_usage(folder if os.path.isdir(folder) else "/").free
            missing = max(num_bytes - free, 1)
            raise RunError(
                "E1503",
                f"{os.path.basename(path)} needs {num_bytes} bytes, {free} are free, "
                f"at least {missing} are missing.",
            ) from error
        raise RunError(
            "E1511", f"{os.path.basename(path)} could not be written ({reason_of(error)})."
        ) from error
