"""A disk that fails under a scoring job: the job ends with the disk's code, readers see whole
files, and the same job goes on once the disk works. Each call and each kilobyte may be the one.
"""

from __future__ import annotations

import errno
import json
import os
import time

import pytest

from medv_ray.archive.store import Store
from medv_ray.errors import RunError
from tests.small_disk import small_disk

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
CALLS = ("open", "write", "fsync", "replace", "truncate", "ftruncate", "pwrite", "makedirs")
"""All that writes to a run folder goes through these of `os`, but for bytes of new files."""
ERRORS = ((errno.ENOSPC, "E1503"), (errno.EIO, "E1511"), (errno.EROFS, "E1511"))


def clean(said: str, tmp_path) -> bool:
    return str(tmp_path) not in said and "/" not in said


def ended(make, planned, out) -> RunError | None:
    """How the job ended."""
    try:
        make.job(planned, out)
    except RunError as error:
        return error
    return None


def check_folder(out, committed_ids) -> int:
    """What a reader sees: every row once, every line whole. How many rows."""
    found = committed_ids(out)
    assert len(found) == len(set(found))
    events = out / "events.jsonl"
    for line in events.read_bytes().splitlines(keepends=True) if events.exists() else []:
        assert line.endswith(b"\n")
        json.loads(line)
    return len(found)


@pytest.mark.parametrize("once", [True, False], ids=["once", "for good"])
def test_a_disk_that_fails_at_any_call(make, tmp_path, monkeypatch, committed_ids, once):
    make.parquet(rows=4)
    planned = make.plan(chunk_rows=2)
    for step in range(once, 200, 2):
        out, left = tmp_path / f"run{step}", [step]
        number, code = ERRORS[step % 3]

        def failing(real, left=left, number=number):
            def call(*given, **more):
                left[0] -= 1
                if left[0] == -1 or (left[0] < 0 and not once):
                    raise OSError(number, os.strerror(number))
                return real(*given, **more)

            return call

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name)))
            error = ended(make, planned, out)
        assert error is None or (error.code == code and clean(str(error), tmp_path)), str(error)
        if left[0] >= 0:
            break
        check_folder(out, committed_ids)
        assert make.job(planned, out).answered == 4
        assert check_folder(out, committed_ids) == 4
        assert not list(out.rglob("*.tmp"))
    assert 20 < step < 198, "hardly any call was met"


def test_a_disk_that_is_full_at_any_size(make, tmp_path, committed_ids):
    """Rows, ledger, run.json, events.jsonl, the merged file: whichever finds no room."""
    make.parquet(rows=20, question=[f"{row} {os.urandom(500).hex()}" for row in range(20)])
    planned = make.plan(chunk_rows=4)
    had = set()
    with small_disk(tmp_path / "disk", "600k") as disk:
        for free in (*range(0, 24, 4), *range(24, 300, 24)):
            out = disk.folder / f"run{free}"
            with disk.filled(free * 1024):
                error = ended(make, planned, out)
            if error is not None:
                assert (error.code, error.exit_code) == ("E1503", 5), str(error)
                assert clean(str(error), tmp_path), str(error)
            had.add(check_folder(out, committed_ids) if out.exists() else 0)
            assert make.job(planned, out).answered == 20
            assert check_folder(out, committed_ids) == 20
            for file in out.rglob("*"):
                if file.is_file():
                    file.unlink()
    assert {0, 20} < had, "all ended the same"


def test_a_disk_that_becomes_read_only(make, tmp_path, committed_ids):
    make.parquet(rows=12)
    planned = make.plan(chunk_rows=4)
    with small_disk(tmp_path / "disk") as disk:
        out = disk.folder / "run"
        make.job(planned, out, stop_after=2)
        disk.mount("ro")
        with pytest.raises(RunError, match=r"E1511: .*\(EROFS\)") as caught:
            make.job(planned, out)
        assert clean(str(caught.value), tmp_path)
        assert len(committed_ids(out)) == 8, "what is there can be read"
        disk.mount("rw")
        assert make.job(planned, out).answered == 12
        assert check_folder(out, committed_ids) == 12


def test_slow_storage_costs_time_alone(make, tmp_path, monkeypatch, committed_ids):
    """Every call 20 ms later; the lock's heartbeat goes on meanwhile."""
    make.parquet(rows=12)
    planned = make.plan(chunk_rows=4)
    slept = []

    def slow(real):
        def call(*given, **more):
            slept.append(time.sleep(0.02))
            return real(*given, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, slow(getattr(os, name)))
    assert make.job(planned, tmp_path / "run").answered == 12
    assert len(slept) > 20
    monkeypatch.undo()
    assert check_folder(tmp_path / "run", committed_ids) == 12
    assert Store(str(tmp_path / "run")).read("lock") == b"", "the folder was let go"
