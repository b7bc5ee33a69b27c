"""One writer a run folder.

Local: flock on the file `lock`, which the kernel lets go when its holder dies, however it dies.
The file also names host and process, for machines that share the folder without sharing locks.
Object store: each writer announces itself under `lock/`, then lists; whoever sees another one
withdraws. Listings are consistent there, so of two writers at least one sees the other.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import threading
import time
from typing import Any
from uuid import uuid4

from medv_ray.archive.store import Store, writing
from medv_ray.errors import RunError

NAME = "lock"
HEARTBEAT_S = 10.0
TRIES = 5


class Lock:
    """Held from `acquire` to `release`; `check` tells whether it still is."""

    def __init__(self, store: Store, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.store = store
        self.heartbeat_s = heartbeat_s
        self.token = uuid4().hex
        self._handle: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, take_over: bool = False) -> None:
        """Raises RunError E1501 when another writer holds the folder, naming host and process."""
        if self.store.local:
            self._acquire_file(take_over)
        else:
            self._acquire_object(take_over)
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def _acquire_file(self, take_over: bool) -> None:
        path = self.store.path(NAME)
        with writing(path, 256):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise in_use(owner_of(os.pread(handle, 4096, 0))) from None
            owner = owner_of(os.pread(handle, 4096, 0))
            if owner and owner.get("host") != host() and not take_over:
                raise in_use(owner)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        self._write_file()

    def _write_file(self) -> None:
        assert self._handle is not None
        text = self._told()
        with writing(self.store.path(NAME), len(text)):
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))

    def _acquire_object(self, take_over: bool) -> None:
        for _ in range(TRIES):
            self.store.write(self._own(), self._told())
            others = self._others()
            for name, owner in list(others.items()):
                if take_over or is_dead_here(owner):
                    self.store.delete(name)
                    del others[name]
            if not others:
                return
            self.store.delete(self._own())
            if any(owner.get("age_s", 0) > self.heartbeat_s for owner in others.values()):
                break  # no announcement that will be withdrawn: a holder, or one that died
            time.sleep(random.uniform(0.1, 0.9))
        raise in_use(next(iter(others.values())))

    def _others(self) -> dict[str, dict[str, Any]]:
        """Announcements of other writers, with their age by the store's clock."""
        listed = self.store.listing(NAME)
        now = max((f.mtime_ns for f in listed if f.name == self._own()), default=0)
        found = {}
        for file in listed:
            if file.name == self._own():
                continue
            try:
                owner = owner_of(self.store.read(file.name))
            except FileNotFoundError:
                continue
            found[file.name] = {**owner, "age_s": (now - file.mtime_ns) / 1e9}
        return found

    def _own(self) -> str:
        return f"{NAME}/{self.token}.json"

    def _told(self) -> bytes:
        owner = {
            "token": self.token,
            "host": host(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "beat": time.time(),
        }
        return json.dumps(owner).encode() + b"\n"

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_s):
            try:
                self.check()
                if self.store.local:
                    self._write_file()
                else:
                    self.store.write(self._own(), self._told())
            except (RunError, OSError):
                continue  # the next commit meets the same failure, in the thread that can tell it

    def check(self) -> None:
        """Raises RunError E1501 when somebody took the folder over."""
        if self.store.local:
            assert self._handle is not None
            path = self.store.path(NAME)
            same = os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(self._handle))
            owner = owner_of(os.pread(self._handle, 4096, 0))
            if same and owner.get("token") == self.token:
                return
        elif self.store.exists(self._own()):
            return
        raise RunError("E1501", "another job took this output folder over; this one stops.")

    def release(self) -> None:
        """Let go; harmless when it was never held."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._handle is not None:
            if owner_of(os.pread(self._handle, 4096, 0)).get("token") == self.token:
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None
        elif not self.store.local:
            self.store.delete(self._own())


def host() -> str:
    """This machine, until its next boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()}/{file.read().strip()[:8]}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str:
    """When a process of this machine started, in its own unit; empty for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_dead_here(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    if owner.get("host") != host():
        return False
    return process_start(int(owner.get("pid", 0))) != owner.get("started")


def owner_of(data: bytes) -> dict[str, Any]:
    """Who wrote a lock; empty when nobody did."""
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def in_use(owner: dict[str, Any]) -> RunError:
    name = str(owner.get("host", "another machine")).partition("/")[0]
    beat = owner.get("beat")
    age = f", last sign of life {max(0, time.time() - beat):.0f} s ago" if beat else ""
    return RunError("E1501", f"written by process {owner.get('pid', '?')} on {name}{age}.")
