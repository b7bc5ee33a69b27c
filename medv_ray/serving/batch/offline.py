"""A batch file answered without a server, by the same code.

out.jsonl         lines that were answered
out.errors.jsonl  lines that were not, each with its error
out.jsonl.run/    how far it has come, and a lock; the same command goes on
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medv_ray import files
from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
from medv_ray.disk import disk_errors
from medv_ray.errors import RunError, SettingsError
from medv_ray.serving.app import Routes
from medv_ray.serving.batch.job import Job, Paths
from medv_ray.serving.batch.journal import Journal, Progress, last
from medv_ray.serving.service import Service

ABOUT = "run.json"


@dataclass(frozen=True)
class BatchRun:
    """A file of requests, and where what comes of it goes."""

    input: str
    output: str

    @property
    def errors(self) -> str:
        """Beside the output."""
        stem = self.output.removesuffix(".jsonl")
        return f"{stem}.errors.jsonl"

    @property
    def folder(self) -> str:
        """How far it has come."""
        return f"{self.output}.run"

    @property
    def paths(self) -> Paths:
        """For its job."""
        journal = os.path.join(self.folder, "ledger.jsonl")
        return Paths(self.input, self.output, self.errors, journal)

    def check(self) -> None:
        """Raises SettingsError E1001 for an input that is none, RunError E1507 for an output that
        stands there already and is no run's."""
        name = os.path.basename(self.input)
        try:
            with open(self.input, "rb") as file:
                holds = any(piece.strip() for piece in iter(partial(file.read, 2**20), b""))
        except OSError as error:
            kind = type(error).__name__
            raise SettingsError("E1001", f"{name} cannot be read ({kind}).") from None
        if not holds:
            raise SettingsError("E1001", f"{name} is empty; it has a request a line.")
        for path in (self.output, self.errors):
            if os.path.exists(path) and not os.path.isdir(self.folder):
                rule = f"{os.path.basename(path)} is there and no run's; name another output."
                raise RunError("E1507", rule)
            if os.path.exists(path) and os.path.samefile(path, self.input):
                raise RunError("E1507", "the output is the input; name another one.")


def answer_file(
    run: BatchRun,
    identity: dict[str, Any],
    load: Callable[[], Service],
    tell: Callable[[Progress], None] = lambda done: None,
) -> Progress:
    """Answer what is left of a file.

    `identity`: what answers depend on, beside the input; a run goes on with the same one only.
    `load`: makes the service, which is closed again; not called where nothing is left.
    `tell`: is told how far it has come, after each commit.
    Raises RunError E1501 while another process works on it, E1502 for a run of another input or
    identity, E1503, E1506, E1511, E1708.
    """
    run.check()
    with disk_errors("the run's folder"):
        os.makedirs(run.folder, mode=0o700, exist_ok=True)
    lock = Lock(Store(run.folder))
    lock.acquire()
    try:
        with disk_errors("the run's folder"):
            name = _same(run, {**identity, "input": files.file_sha256(run.input)})
        found = last(run.paths.journal)
        if found is not None and found.is_over:
            return found
        with closing(load()) as service:
            routes = Routes(service, None)
            limit = service.settings.limits.max_body_bytes
            ask, has_room = routes.asking(""), routes.has_room

            def count(*_: int) -> None:
                tell(job.progress)

            job = Job(name, run.paths, ask, has_room, limit, check=lock.check, count=count)
            return _ended(run, asyncio.run(job.run()))
    finally:
        lock.release()


def _same(run: BatchRun, identity: dict[str, Any]) -> str:
    """What tells the run from others. Raises RunError E1502 where it was begun otherwise."""
    path = os.path.join(run.folder, ABOUT)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    whole = {**identity, "sha256": digest}
    if not os.path.exists(path):
        files.write_atomic(path, json.dumps(whole, indent=1).encode())
        return digest
    with open(path, "rb") as file:
        found = json.load(file)
    if found != whole:
        changed = [name for name in whole if found.get(name) != whole[name] and name != "sha256"]
        rule = f"{', '.join(changed)} changed since this run began; name another output, or delete "
        raise RunError("E1502", f"{rule}the output, its .errors.jsonl and its .run folder.")
    return digest


def _ended(run: BatchRun, done: Progress) -> Progress:
    """Note the end, and leave no empty file of errors."""
    if not done.error_bytes:
        Path(run.errors).unlink(missing_ok=True)
    journal = Journal(run.paths.journal)
    try:
        done = replace(done, status="completed")
        journal.append(done)
    finally:
        journal.close()
    return done
