"""Datasets of the Hugging Face hub as a filesystem to read from: `hf://datasets/org/name@commit/...`

A commit never changes, so what a job planned is what it reads, on every machine. The hub tells no
times; in their place stands a number made of the content's own digest, so that a resume notices a
file that changed between two commits, and not the rest of the dataset.
"""

from __future__ import annotations

import errno
import re
from typing import Any
from urllib.parse import quote, unquote

import httpx2
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_file_system import HfFileSystemFile
from pyarrow import PythonFile, fs

from medv_ray import hub
from medv_ray.errors import DataError, SettingsError

SCHEME = "hf://datasets/"
TRIES = 3
BLOCK = 2**20
"""Bytes that a read brings at least."""
ADDRESS = re.compile(rf"hf://datasets/({hub.NAME}/{hub.NAME})(?:@([^/?*]+))?((?:/.*)?)", re.DOTALL)


def pinned(uri: str) -> str:
    """The same place at a commit: what a branch, `main` by default, is now.

    Raises SettingsError E1001 for what is no dataset, DataError E1415 to E1417.
    """
    found = ADDRESS.fullmatch(uri)
    if found is None:
        raise SettingsError(
            "E1001", "an archive on the hub is a dataset: hf://datasets/org/name@revision/folder."
        )
    revision = unquote(found[2] or "main")
    commit = hub.commit_of(hub.Reference(found[1], revision), "dataset", DataError)
    return f"{SCHEME}{found[1]}@{commit}{found[3]}"


def opened(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem and a path in it. Raises SettingsError E1001 for what is no dataset."""
    found = ADDRESS.fullmatch(uri)
    if found is None:
        raise SettingsError("E1001", "hf://...: only datasets: hf://datasets/org/name/folder.")
    with hub.hub_errors(uri):  # its log is silent from here on
        files = HfFileSystem()
    revision = f"@{quote(unquote(found[2]), safe='')}" if found[2] else ""
    path = f"datasets/{found[1]}{revision}{found[3]}".rstrip("/")
    return fs.PyFileSystem(Handler(files)), path


class Handler(fs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's view of the hub's filesystem."""

    def get_file_info(self, paths: list[str]) -> list[Any]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> Any:
        try:
            return self._create_file_info(path, self.fs.info(path))
        except FileNotFoundError:
            return fs.FileInfo(path, fs.FileType.NotFound)
        except httpx2.TransportError as error:
            raise OSError(errno.EIO, type(error).__name__) from None

    @staticmethod
    def _create_file_info(path: str, info: dict[str, Any]) -> Any:
        """With digits of the content's digest for a time."""
        if info["type"] == "directory":
            return fs.FileInfo(path, fs.FileType.Directory)
        digits = int(str(info.get("blob_id") or "0")[:15], 16)
        return fs.FileInfo(path, fs.FileType.File, size=info["size"], mtime_ns=digits)

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        try:
            found: list[Any] = super().get_file_info_selector(selector)
        except httpx2.TransportError as error:
            raise OSError(errno.EIO, type(error).__name__) from None
        return found

    def open_input_file(self, path: str) -> Any:
        if self._info(path).type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return PythonFile(Ranges(self.fs, path, mode="rb", block_size=BLOCK), mode="r")

    open_input_stream = open_input_file


class Ranges(HfFileSystemFile):
    """A file that is read by ranges: a range that comes short is asked for again, and is never
    taken for the file's end."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        wanted = min(end, self.size) - start
        for _ in range(TRIES):
            try:
                data: bytes = super()._fetch_range(start, end)
            except httpx2.TransportError:
                continue
            if len(data) == wanted:
                return data
        raise OSError(errno.EIO, "the hub sends less than was asked for")

    def read(self, length: int = -1) -> bytes:
        """As ranges in any case; the class above has another way for whole files."""
        left = self.size - self.loc
        wanted = left if length is None or length < 0 else min(length, left)
        data: bytes = super().read(wanted)  # type: ignore[no-untyped-call]
        return data
