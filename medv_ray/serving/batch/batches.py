"""Batches on disk: what was asked for, how far each has come, and that one is to be cancelled."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medv_ray import files
from medv_ray.errors import RunError
from medv_ray.serving.batch.job import Over, Paths, digest
from medv_ray.serving.batch.journal import Progress, last
from medv_ray.serving.batch.shelf import Shelf, StoredFile, is_name, read_about, write_about
from medv_ray.serving.protocol import BadRequest, Wire

log = logging.getLogger(__name__)
HOURS = r"^[1-9][0-9]{0,2}h$"
JOURNAL, CANCEL = "ledger.jsonl", "cancel"


class ExpiresAfter(Wire):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]
    """At most `batch.keep_seconds` count."""


class BatchRequest(Wire):
    """The body of /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/responses"]
    completion_window: Annotated[str, Field(json_schema_extra={"pattern": HOURS})]
    """Hours, up to 168h; OpenAI's clients say 24h. What is not answered by then is not asked."""
    metadata: dict[str, str] | None = None
    """Comes back with the batch."""
    output_expires_after: ExpiresAfter | None = None

    @model_validator(mode="after")
    def _bounded(self) -> BatchRequest:
        window = self.completion_window
        if not re.fullmatch(HOURS, window) or int(window[:-1]) > 168:
            raise ValueError("completion_window: must be whole hours, from 1h to 168h; 24h, say")
        given = self.metadata or {}
        if len(given) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in given.items()):
            raise ValueError("metadata: at most 16 names of 64 characters, values of 512")
        return self


@dataclass(frozen=True)
class Batch:
    """What was asked for. Times are in seconds since 1970."""

    id: str
    owner: str
    """The name of the API key; empty without keys."""
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int
    keep_seconds: int
    """Of the files that it writes."""
    metadata: dict[str, str] | None

    @property
    def output_file_id(self) -> str:
        return f"file-{digest(self.id, 'output')}"

    @property
    def error_file_id(self) -> str:
        return f"file-{digest(self.id, 'errors')}"


class Batches:
    """The batches of a shelf. Any process that shares the folder may have one."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def path(self, name: str, *parts: str) -> str:
        """A place in a batch's folder."""
        return self.shelf.path("batches", name, *parts)

    def paths(self, batch: Batch) -> Paths:
        """Where its job reads and writes."""
        return Paths(
            self.shelf.content(batch.input_file_id),
            self.path(batch.id, "output"),
            self.path(batch.id, "errors"),
            self.path(batch.id, JOURNAL),
        )

    def create(self, owner: str, asked: BatchRequest, identity: tuple[str, int]) -> Batch:
        """A batch that waits for its turn. `identity`: a second try of the same request makes no
        second batch.

        Raises BadRequest E1706 where this key has no such file, E1701, E1714; OSError.
        """
        name = f"batch-{digest(owner, *identity, asked.model_dump_json())}"
        found = read_about(self.path(name), Batch)
        if found is not None:
            return found
        about = self.shelf.get(owner, asked.input_file_id, "input_file_id")
        if about.purpose != "batch":
            rule = "input_file_id: a file that a batch wrote can not be asked."
            raise BadRequest("E1701", rule, "input_file_id")
        limit = self.shelf.settings.files_per_key
        if sum(one.owner == owner for one in self.everyones()) >= limit:
            raise BadRequest("E1714", f"this key has {limit} batches here, the limit.", None)
        now = int(time.time())
        wanted = asked.output_expires_after
        keep = self.shelf.settings.keep_seconds
        batch = Batch(
            id=name,
            owner=owner,
            input_file_id=asked.input_file_id,
            endpoint=asked.endpoint,
            completion_window=asked.completion_window,
            created_at=now,
            expires_at=now + 3600 * int(asked.completion_window[:-1]),
            keep_seconds=keep if wanted is None else min(keep, wanted.seconds),
            metadata=asked.metadata,
        )
        os.makedirs(self.path(name), mode=0o700, exist_ok=True)
        write_about(self.path(name), asdict(batch))
        files.sync(self.shelf.path("batches"))
        return batch

    def get(self, owner: str, name: str) -> Batch:
        """A batch of an owner. Raises BadRequest E1706."""
        batch = read_about(self.path(name), Batch) if is_name(name) else None
        if batch is None or batch.owner != owner:
            raise BadRequest("E1706", "this key has no such batch here.", "id")
        return batch

    def all(self, owner: str) -> list[Batch]:
        """An owner's batches, the latest first."""
        found = [one for one in self.everyones() if one.owner == owner]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def everyones(self) -> Iterator[Batch]:
        """All batches."""
        for name in os.listdir(self.shelf.path("batches")):
            batch = read_about(self.path(name), Batch)
            if batch is not None:
                yield batch

    def unfinished(self) -> list[Batch]:
        """Those that have lines to ask or files to put in place, the oldest first."""
        found = [one for one in self.everyones() if not self._is_over(one)]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def _is_over(self, batch: Batch) -> bool:
        done = self.progress(batch)
        return done is not None and done.is_over

    def progress(self, batch: Batch) -> Progress | None:
        """How far it has come. One whose journal is damaged has failed, and the others go on."""
        path = self.path(batch.id, JOURNAL)
        try:
            return last(path)
        except RunError as error:
            began, at = batch.created_at, os.stat(path).st_mtime
            code, message = error.code, error.detail
            return Progress(began, at, total=0, status="failed", code=code, message=message)

    def cancel(self, batch: Batch) -> None:
        """Have whoever works on it end it. Raises BadRequest E1701 where it is over."""
        if self._is_over(batch):
            raise BadRequest("E1701", "the batch is over; there is nothing to cancel.", "id")
        path = self.path(batch.id, CANCEL)
        if not os.path.exists(path):
            files.write_durably(path, b"", 0o600)
            files.sync(self.path(batch.id))

    def over(self, batch: Batch) -> Over:
        """Why it is to end early, if it is."""
        if os.path.exists(self.path(batch.id, CANCEL)):
            return "cancelled"
        return "expired" if time.time() >= batch.expires_at else None

    def needed(self, unfinished: list[Batch]) -> set[str]:
        """Files that those batches read and write."""
        ids = [(one.input_file_id, one.output_file_id, one.error_file_id) for one in unfinished]
        return {name for three in ids for name in three}

    def publish(self, batch: Batch, done: Progress) -> None:
        """Make files of what a batch has written; once more is harmless. Raises OSError."""
        now = int(done.finishing or time.time())
        for name, kind, size in (
            (batch.output_file_id, "output", done.output_bytes),
            (batch.error_file_id, "errors", done.error_bytes),
        ):
            written = self.path(batch.id, kind)
            if size:
                with suppress(FileNotFoundError):  # moved already
                    os.replace(written, self.shelf.incoming(name))
                about = StoredFile(
                    name, batch.owner, f"{batch.id}_{kind}.jsonl", "batch_output", size, now,
                    now + batch.keep_seconds,
                )  # fmt: skip
                self.shelf.put(about)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(written)

    def sweep(self) -> None:
        """Remove batches that ended long ago."""
        for batch in self.everyones():
            done = self.progress(batch)
            keep_s = self.shelf.settings.keep_seconds
            if done is None or not done.is_over:
                continue
            if done.code == "E1506":
                log.error("the journal of a batch is damaged (E1506); it has failed")
            if done.time + keep_s < time.time():
                shutil.rmtree(self.path(batch.id), ignore_errors=True)

    def shown(self, batch: Batch) -> dict[str, Any]:
        """A batch as OpenAI's clients see it."""
        done = self.progress(batch)
        cancel = self.path(batch.id, CANCEL)
        cancelling = int(os.stat(cancel).st_mtime) if os.path.exists(cancel) else None
        status = "validating" if done is None else str(done.status)
        if cancelling is not None and status in ("validating", "in_progress"):
            status = "cancelling"
        is_over = done is not None and done.is_over

        def at(name: str) -> int | None:
            return int(done.time) if done is not None and status == name else None

        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "errors": _errors(done),
            "input_file_id": batch.input_file_id,
            "completion_window": batch.completion_window,
            "status": status,
            "output_file_id": batch.output_file_id
            if is_over and done is not None and done.output_bytes
            else None,
            "error_file_id": batch.error_file_id
            if is_over and done is not None and done.error_bytes
            else None,
            "created_at": batch.created_at,
            "in_progress_at": None if done is None else int(done.began),
            "expires_at": batch.expires_at,
            "finalizing_at": None if done is None or not done.finishing else int(done.finishing),
            "completed_at": at("completed"),
            "failed_at": at("failed"),
            "expired_at": at("expired"),
            "cancelling_at": cancelling,
            "cancelled_at": at("cancelled"),
            "request_counts": {
                "total": 0 if done is None else done.total,
                "completed": 0 if done is None else done.completed,
                "failed": 0 if done is None else done.failed,
            },
            "usage": _usage(done),
            "metadata": batch.metadata,
        }


def _errors(done: Progress | None) -> dict[str, Any] | None:
    if done is None or done.code is None:
        return None
    error = {"code": done.code, "message": done.message, "param": None, "line": None}
    return {"object": "list", "data": [error]}


def _usage(done: Progress | None) -> dict[str, Any] | None:
    if done is None or not done.is_over:
        return None
    return {
        "input_tokens": done.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": done.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": done.input_tokens + done.output_tokens,
    }
