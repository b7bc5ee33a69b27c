"""Files that clients have sent and batches have written, in a folder that only its owner can read.

    files/ID/       content, about.json: whole, or not there
    incoming/ID/    the same, while it arrives or is written
    batches/ID/     about.json, ledger.jsonl, lock, cancel, and what has been written so far

Each belongs to the API key that made it: to another one it is not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from medv_ray import files
from medv_ray.serving.options import BatchSettings
from medv_ray.serving.protocol import BadRequest

ABOUT, CONTENT = "about.json", "content"
NAMES = re.compile(r"(file|batch)-[0-9a-f]{32}")
INCOMING_S = 86400
"""After which what never became a file is removed."""
MAX_NAME_CHARS = 255


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file. Times are in seconds since 1970."""

    id: str
    owner: str
    """The name of the API key; empty without keys."""
    filename: str
    purpose: Literal["batch", "batch_output"]
    bytes: int
    created_at: int
    expires_at: int

    def shown(self) -> dict[str, Any]:
        """As the client sees it."""
        about = asdict(self)
        del about["owner"]
        return {**about, "object": "file", "status": "processed", "status_details": None}


class Shelf:
    """The files. Any process that shares the folder may have one."""

    def __init__(self, settings: BatchSettings) -> None:
        """Raises OSError where the folder cannot be made."""
        assert settings.folder is not None
        self.settings, self.root = settings, settings.folder
        for name in ("", "files", "incoming", "batches"):
            os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)

    def path(self, *parts: str) -> str:
        """A place in the folder."""
        return os.path.join(self.root, *parts)

    def content(self, name: str) -> str:
        """The path of a file's content."""
        return self.path("files", name, CONTENT)

    def incoming(self, name: str) -> str:
        """The path that content is written to before there is a file of it."""
        os.makedirs(self.path("incoming", name), mode=0o700, exist_ok=True)
        return self.path("incoming", name, CONTENT)

    def put(self, about: StoredFile) -> StoredFile:
        """Make a file of what lies in `incoming`; once more is harmless. Raises OSError."""
        folder, place = self.path("incoming", about.id), self.path("files", about.id)
        if not os.path.isdir(place):
            write_about(folder, asdict(about))
            files.put_in_place(folder, place)
        self.forget_incoming(about.id)
        found = read_about(place, StoredFile)
        assert found is not None
        return found

    def forget_incoming(self, name: str) -> None:
        """Remove what has not become a file."""
        shutil.rmtree(self.path("incoming", name), ignore_errors=True)

    def get(self, owner: str, name: str, field: str = "id") -> StoredFile:
        """A file of an owner. Raises BadRequest E1706 that names the field."""
        about = read_about(self.path("files", name), StoredFile) if is_name(name) else None
        if about is None or about.owner != owner or about.expires_at <= time.time():
            raise BadRequest("E1706", "this key has no such file here.", field)
        return about

    def all(self, owner: str) -> list[StoredFile]:
        """An owner's files, the latest first."""
        found = [one for one in self._everyones() if one.owner == owner]
        found = [one for one in found if one.expires_at > time.time()]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def _everyones(self) -> Iterator[StoredFile]:
        for name in os.listdir(self.path("files")):
            about = read_about(self.path("files", name), StoredFile)
            if about is not None:
                yield about

    def check_room(self, owner: str, more: int) -> None:
        """Raises BadRequest E1714 where an owner would have too many files or bytes."""
        held, limits = self.all(owner), self.settings
        if len(held) >= limits.files_per_key:
            rule = f"this key has {len(held)} files here; the limit is {limits.files_per_key}."
            raise BadRequest("E1714", rule, "file")
        if sum(one.bytes for one in held) + more > limits.bytes_per_key:
            rule = f"this key's files would have over {limits.bytes_per_key} bytes, the limit."
            raise BadRequest("E1714", rule, "file")

    def remove(self, name: str) -> None:
        """Take a file away: first what is known of it, then its content."""
        with suppress(FileNotFoundError):
            os.unlink(self.path("files", name, ABOUT))
        shutil.rmtree(self.path("files", name), ignore_errors=True)

    def sweep(self, needed: set[str]) -> None:
        """Remove what has expired, and what never became a file; not what is `needed`."""
        now = time.time()
        for one in self._everyones():
            if one.expires_at <= now and one.id not in needed:
                self.remove(one.id)
        for name in os.listdir(self.path("incoming")):
            with suppress(FileNotFoundError):
                age_s = now - os.stat(self.path("incoming", name)).st_mtime
                if age_s > INCOMING_S and name not in needed:
                    self.forget_incoming(name)
        for name in os.listdir(self.path("files")):  # a removal that was cut short
            if not os.path.exists(self.path("files", name, ABOUT)):
                shutil.rmtree(self.path("files", name), ignore_errors=True)


A = TypeVar("A")


def is_name(name: str) -> bool:
    """Whether it can be a file's or a batch's: nothing else becomes part of a path."""
    return NAMES.fullmatch(name) is not None


def printable(filename: str) -> str:
    """A file's name as a client may have it back."""
    return "".join(mark for mark in filename if mark.isprintable())[:MAX_NAME_CHARS]


def write_about(folder: str, about: dict[str, Any]) -> None:
    """Write what is known of a file or a batch, readable by its owner alone. Raises OSError."""
    hidden = os.path.join(folder, f"{ABOUT}.tmp")
    files.write_durably(hidden, json.dumps(about).encode(), 0o600)
    files.put_in_place(hidden, os.path.join(folder, ABOUT))


def read_about(folder: str, kind: type[A]) -> A | None:
    """What is known of a file or a batch; None where there is none, or one of another version."""
    try:
        with open(os.path.join(folder, ABOUT), "rb") as file:
            return kind(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
