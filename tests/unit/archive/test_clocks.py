"""A scoring job while the wall clock is set: an hour on, an hour back, to 2038 and behind it."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medv_ray.archive.ledger import Ledger
from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
from medv_ray.errors import RunError

HOUR_S = 3600.0
END_OF_32_BITS = 2.0**31
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
JOB = """
import pickle, sys, time
from medv_ray.archive.run import Run
from medv_ray.archive.rows import write_part
from medv_ray.archive.reading import read_rows

SETS = ("+3600", "-3600", "@2038-01-19 03:14:06", "@2040-02-29 12:00:00", "-7200")
planned, clock, seen = pickle.load(open(sys.argv[1], "rb")), sys.argv[3], []
with Run.open(sys.argv[2], planned, {}) as run:
    for number, chunk in enumerate(run.todo()):
        open(clock, "w").write(SETS[number % len(SETS)])
        seen.append(time.time())
        rows = read_rows(planned.archive, chunk)
        records = [{"id": r.id, "row": r.row, "status": "answered"} for r in rows]
        run.commit(write_part(run.store, chunk, records))
    run.finish()
print(min(seen), max(seen), time.monotonic())
"""


def check(out: Path, rows: int, committed_ids) -> list[float]:
    """Rows, the order of the ledger and of the events; the events' times as they were told."""
    found = committed_ids(out)
    assert len(found) == len(set(found)) == rows
    numbers = [commit.number for commit in Ledger.load(Store(str(out))).commits.values()]
    assert sorted(numbers) == numbers
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["open", "finish"]
    return [event["time"] for event in events]


def test_a_clock_that_jumps_at_every_look(make, tmp_path, monkeypatch, committed_ids):
    make.parquet(rows=40)
    planned = make.plan()
    real = time.time
    jumps = itertools.cycle((HOUR_S, -HOUR_S, END_OF_32_BITS + 7 - real()))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    began = time.monotonic()
    assert make.job(planned, tmp_path / "run").answered == 40
    assert time.monotonic() - began < 20
    check(tmp_path / "run", 40, committed_ids)


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S, 15 * 365 * 24 * HOUR_S])
def test_a_lock_is_neither_let_go_nor_kept_by_the_clock(out, monkeypatch, jump):
    store = Store(out)
    store.make()
    lock = Lock(store, heartbeat_s=0.02)
    lock.acquire()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    with pytest.raises(RunError, match="E1501") as caught:
        Lock(store).acquire()
    age = re.search(r"last sign of life (-?\d+) s ago", str(caught.value))
    assert age is not None
    assert int(age[1]) >= 0
    time.sleep(0.1)  # some heartbeats by the new clock
    lock.check()
    lock.release()
    second = Lock(store)
    second.acquire()
    second.release()


@pytest.mark.integration
@pytest.mark.chaos
def test_a_clock_that_the_system_sets(make, tmp_path, committed_ids):
    """Below Python, by libfaketime; the monotonic clock is left alone, as by a real system."""
    if not LIBRARY.exists():
        pytest.skip("needs libfaketime (apt-get install faketime)")
    make.parquet(rows=40)
    (tmp_path / "plan").write_bytes(pickle.dumps(make.plan()))
    clock = tmp_path / "clock"
    clock.write_text("+0")
    said = subprocess.run(
        [sys.executable, "-c", JOB, str(tmp_path / "plan"), str(tmp_path / "run"), str(clock)],
        env={
            **os.environ, "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        },
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    first, last, monotonic = map(float, said.stdout.split())
    assert first < time.time() - HOUR_S / 2, "the clock was not put back"
    assert last > END_OF_32_BITS, "the clock was not put forward"
    assert monotonic < time.monotonic() + HOUR_S / 2
    opened, finished = check(tmp_path / "run", 40, committed_ids)
    assert opened - finished != pytest.approx(0, abs=HOUR_S / 2), "what it shows is the wall clock"
