import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from medv_ray.archive.lock import Lock, host
from medv_ray.archive.store import Store
from medv_ray.errors import RunError

HOLD = """
import sys, time
from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
store = Store(sys.argv[1])
store.make()
Lock(store).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def store(out) -> Store:
    made = Store(out)
    made.make()
    return made


@pytest.fixture
def holder(out):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def refused(store, **options) -> RunError:
    start = time.monotonic()
    with pytest.raises(RunError) as caught:
        Lock(store).acquire(**options)
    assert caught.value.code == "E1501"
    assert caught.value.exit_code == 4
    assert time.monotonic() - start < 5
    return caught.value


@pytest.mark.parametrize("call", ["flock", "stat"])
def test_a_disk_without_locks_is_told(store, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOLCK, "no locks", store.root)

    lock = Lock(store)
    if call == "flock":
        monkeypatch.setattr("fcntl.flock", fail)
        asked = lock.acquire
    else:
        lock.acquire()
        monkeypatch.setattr("os.path.samestat", fail)
        asked = lock.check
    if store.local:
        with pytest.raises(RunError, match="E1511: lock") as caught:
            asked()
        assert "ENOLCK" in str(caught.value)
        assert store.root not in str(caught.value)
    else:
        asked()
    monkeypatch.undo()
    lock.release()
    again = Lock(store)
    again.acquire()
    again.release()


def test_a_second_writer_is_refused_and_told_who_writes(store):
    first = Lock(store)
    first.acquire()
    error = refused(store)
    assert str(os.getpid()) in str(error)
    first.release()
    second = Lock(store)
    second.acquire()
    second.release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(store, holder):
    assert str(holder.pid) in str(refused(store))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(store)
    lock.acquire()
    lock.check()
    lock.release()


def test_a_stopped_process_still_holds_it(store, holder):
    holder.send_signal(signal.SIGSTOP)
    refused(store)


def plant(store, **owner) -> None:
    """A lock that a process of another machine left."""
    text = json.dumps({"token": "t", "host": "elsewhere/1", "pid": 1, "held": True, **owner})
    store.write("lock" if store.local else "lock/t.json", text.encode())


def test_another_machines_lock_needs_take_over(store):
    plant(store)
    assert "elsewhere" in str(refused(store))
    lock = Lock(store)
    lock.acquire(take_over=True)
    lock.check()
    lock.release()


def test_a_lock_from_before_a_reboot_is_no_obstacle(tmp_path):
    """The kernel grants it again, so its holder is gone."""
    store = Store(str(tmp_path))
    plant(store, host=f"{socket.gethostname()}/earlier")
    lock = Lock(store)
    lock.acquire()
    lock.check()
    lock.release()


def test_who_was_taken_over_notices(store):
    first = Lock(store, heartbeat_s=0.02)
    first.acquire()
    first.check()
    if store.local:  # as another machine would, whose flock this one does not see
        os.unlink(store.path("lock"))
    second = Lock(store)
    second.acquire(take_over=True)
    time.sleep(0.1)  # heartbeats of the first do not win it back
    with pytest.raises(RunError) as caught:
        first.check()
    assert caught.value.code == "E1501"
    first.release()
    second.check()
    second.release()


def test_the_heartbeat_shows(store):
    lock = Lock(store, heartbeat_s=0.02)
    lock.acquire()
    name = "lock" if store.local else f"lock/{lock.token}.json"
    said = store.read(name)
    before = json.loads(said)["beat"]
    deadline = time.monotonic() + 5
    while json.loads(store.read(name))["beat"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(store.read(name)) == len(said), "a reader would get a mixture of both"
    lock.release()


def test_a_process_number_that_was_given_away_again_is_no_owner(store):
    if store.local:
        pytest.skip("flock needs no process numbers")
    plant(store, host=host(), pid=os.getpid(), started="0")
    lock = Lock(store)
    lock.acquire()
    lock.release()


def test_of_many_at_once_at_most_one_gets_it(store):
    got, locks = [], [Lock(store) for _ in range(4)]

    def attempt(lock):
        with contextlib.suppress(RunError):
            lock.acquire()
            got.append(lock)

    threads = [threading.Thread(target=attempt, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) <= 1
    for lock in got:
        lock.check()
        lock.release()
    lock = Lock(store)
    lock.acquire()
    lock.release()


def test_a_garbled_lock_file_is_nobodys(tmp_path):
    (tmp_path / "lock").write_bytes(b"\xff{")
    lock = Lock(Store(str(tmp_path)))
    lock.acquire()
    lock.release()
