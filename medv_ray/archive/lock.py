"""One writer a run folder.

Local: flock on the file `lock`, which the kernel lets go when its holder dies, however it dies.
The file also names host and process, for machines that share the folder without sharing locks.
Object store: each writer announces itself under `lock/`, then lists; whoever sees another one
withdraws. Listings are consistent there, so of two writers at least one sees the other. Whoever is
taken over is marked `.gone` for good: its heartbeat cannot win the folder back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import posixpath
import random
import socket
import threading
import time
from typing import Any
from uuid import uuid4

from medv_ray.archive.store import Store, reading, writing
from medv_ray.errors import RunError

NAME = "lock"
LIVE, GONE = ".json", ".gone"
HEARTBEAT_S = 10.0
TRIES = 5
OWNER_BYTES = 512  # host names have up to 255


class Lock:
    """Held from `acquire` to `release`; `check` tells whether it still is."""

    def __init__(self, store: Store, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.store = store
        self.heartbeat_s = heartbeat_s
        self.token = uuid4().hex
        self._handle: int | None = None
        self._held = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, take_over: bool = False) -> None:
        """Raises RunError E1501 when another writer holds the folder, naming host and process."""
        try:
            if self.store.local:
                self._acquire_file(take_over)
            else:
                self._acquire_object(take_over)
        except BaseException:
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def _acquire_file(self, take_over: bool) -> None:
        handle = self._flocked(os.O_CREAT)
        owner = owner_of(os.pread(handle, 4096, 0))
        if owner and machine(owner) != socket.gethostname():
            os.close(handle)
            if not take_over:
                raise in_use(owner)
            os.unlink(self.store.path(NAME))  # the other one's heartbeat goes on in the old file
            handle = self._flocked(os.O_CREAT | os.O_EXCL)
        self._handle, self._held = handle, True
        self._write_file()

    def _flocked(self, flags: int) -> int:
        """The lock file, opened and locked by this process."""
        path = self.store.path(NAME)
        with writing(path, 256):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
        try:
            with writing(path, 0), contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same_file(path, handle):
                    return handle
        except RunError:  # a shared disk that has no locks, say
            os.close(handle)
            raise
        owner = owner_of(os.pread(handle, 4096, 0))
        os.close(handle)
        raise in_use(owner)

    def _write_file(self) -> None:
        assert self._handle is not None
        text = self._owner_line()
        with writing(self.store.path(NAME), len(text)):
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))

    def _acquire_object(self, take_over: bool) -> None:
        for _ in range(TRIES):
            self.store.write(self._own(), self._owner_line())
            others = self._others()
            for token, owner in list(others.items()):
                if take_over or is_dead_here(owner):
                    self.store.write(f"{NAME}/{token}{GONE}", b"{}\n")
                    self.store.delete(f"{NAME}/{token}{LIVE}")
                    del others[token]
            if not others:
                self._held = True
                self.store.write(self._own(), self._owner_line())
                return
            self.store.delete(self._own())
            if any(owner.get("held") for owner in others.values()):
                break  # no announcement that will be withdrawn
            time.sleep(random.uniform(0.1, 0.9))
        raise in_use(next(iter(others.values())))

    def _others(self) -> dict[str, dict[str, Any]]:
        """Announcements of other writers by token, without those that were taken over."""
        names = {posixpath.basename(file.name) for file in self.store.listing(NAME)}
        found = {}
        for token in sorted(name.removesuffix(LIVE) for name in names if name.endswith(LIVE)):
            if token == self.token or token + GONE in names:
                continue
            with contextlib.suppress(FileNotFoundError):
                found[token] = owner_of(self.store.read(f"{NAME}/{token}{LIVE}"))
        return found

    def _own(self) -> str:
        return f"{NAME}/{self.token}{LIVE}"

    def _owner_line(self) -> bytes:
        owner = {
            "token": self.token,
            "host": host(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "held": self._held,
            "beat": time.time(),
        }
        # of one length: a reader of an object store asks for the length first, and then, if the
        # object was replaced by a shorter one, gets bytes of nobody behind it
        return json.dumps(owner).encode().ljust(OWNER_BYTES) + b"\n"

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_s):
            try:
                self.check()
                if self.store.local:
                    self._write_file()
                else:
                    self.store.write(self._own(), self._owner_line())
            except (RunError, OSError):
                continue  # the next commit meets the same failure, in the thread that can tell it

    def check(self) -> None:
        """Raises RunError E1501 when somebody took the folder over."""
        if self.store.local:
            assert self._handle is not None
            if is_same_file(self.store.path(NAME), self._handle):
                return
        else:
            names = {posixpath.basename(file.name) for file in self.store.listing(NAME)}
            is_there = self.token + LIVE in names or self.store.exists(self._own())
            if is_there and self.token + GONE not in names:  # a listing may be late
                return
        raise RunError("E1501", "another job took this output folder over; this one stops.")

    def release(self) -> None:
        """Let go; harmless when it was never held."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.store.local:
            self._let_go()
        else:
            self.store.delete(self._own())

    def _let_go(self) -> None:
        """Of the lock file, where it is held."""
        if self._handle is not None:
            with contextlib.suppress(OSError):  # what nobody holds is no obstacle on this machine
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None


def host() -> str:
    """This machine, until its next boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()}/{file.read().strip()[:8]}"
    except OSError:
        return socket.gethostname()


def machine(owner: dict[str, Any]) -> str:
    """The name of the machine on which a lock was written, whatever its boot: where the kernel
    grants the lock again, that process is gone."""
    return str(owner.get("host", "another machine")).partition("/")[0]


def is_same_file(path: str, handle: int) -> bool:
    """Whether the file of this name is the one that was opened. Raises RunError E1511."""
    try:
        with reading(NAME):
            return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


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
    beat = owner.get("beat")
    age = f", last sign of life {max(0, time.time() - beat):.0f} s ago" if beat else ""
    return RunError(
        "E1501",
        f"written by process {owner.get('pid', '?')} on {machine(owner)}{age}. "
        "If that one is surely dead: --take-over.",
    )
