import contextlib
import os
import pickle
import subprocess

import pytest

from medv_ray.archive.store import Store
from medv_ray.errors import RunError
from tests.small_disk import small_disk


def test_files_by_name(out):
    store = Store(out)
    store.make()
    assert store.listing() == []
    assert store.listing("nowhere") == []
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"three")
    store.write("c.txt", b"")
    assert store.read("a/b.txt") == b"three"
    assert [(f.name, f.size) for f in store.listing()] == [("a/b.txt", 5), ("c.txt", 0)]
    assert [f.name for f in store.listing("a")] == ["a/b.txt"]
    assert store.top() == ["a", "c.txt"]
    assert store.exists("c.txt")
    store.delete("c.txt")
    store.delete("c.txt")
    assert not store.exists("c.txt")
    with pytest.raises(FileNotFoundError):
        store.read("c.txt")
    assert pickle.loads(pickle.dumps(store)).read("a/b.txt") == b"three"


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, step):
    store = Store(str(tmp_path))
    store.write("a.txt", b"old")

    def crash(*_, **__):
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr("builtins.open", crash)
    else:
        monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        store.write("a.txt", b"new")
    monkeypatch.undo()
    assert store.read("a.txt") == b"old"


def test_the_name_appears_only_after_the_bytes_are_durable(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (order.append(n), r(*a))[1])
    store.write("a.txt", b"new")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 400 kB."""
    with small_disk(tmp_path / "disk") as disk:
        yield disk.folder


def test_a_full_disk_is_named_with_the_missing_bytes(tiny_disk):
    store = Store(str(tiny_disk))
    store.write("a.txt", bytes(200_000))
    with pytest.raises(RunError) as caught:
        store.write("b.txt", bytes(300_000))
    assert (caught.value.code, caught.value.exit_code) == ("E1503", 5)
    assert "needs 300000 bytes" in str(caught.value)
    assert "missing" in str(caught.value)
    assert str(tiny_disk) not in str(caught.value)
    assert [f.name for f in store.listing()] == ["a.txt"]


def test_a_job_that_fills_the_disk_resumes_when_there_is_room(make, tiny_disk, committed_ids):
    make.parquet(rows=400, question=[os.urandom(1500).hex() for _ in range(400)])
    planned = make.plan(chunk_rows=32)
    out = tiny_disk / "run"
    with pytest.raises(RunError) as caught:
        make.job(planned, out)
    assert caught.value.code == "E1503"
    names = [p.name for p in (out / "rows").iterdir()]
    assert names
    assert not [name for name in names if name.endswith(".tmp")]
    before = committed_ids(out)
    assert 0 < len(before) < 400
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    assert make.job(planned, out).answered == 400
    assert len(set(committed_ids(out))) == 400


def test_a_file_where_the_run_folder_would_be(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(RunError, match="E1507: the run folder, or one above it, is a file"):
            Store(str(tmp_path / name)).read("run.json")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError) as caught:
        Store(str(tmp_path)).write("a.txt", b"x")
    assert caught.value.code == "E1511"
    assert "EACCES" in str(caught.value)
    with contextlib.suppress(RunError):
        (tmp_path / "file").write_text("")
        Store(str(tmp_path / "file" / "run")).make()
        pytest.fail("a folder below a file was made")
