import os

import pytest

from medv_ray import files


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    for step in ("fsync", "replace"):

        def fail(*_: object) -> None:
            raise OSError(28, "no space")

        monkeypatch.setattr(os, step, fail)
        with pytest.raises(OSError, match="no space"):
            files.write_atomic(path, b"two")
        monkeypatch.undo()
        assert path.read_bytes() == b"one"
    files.write_atomic(str(path), b"three")
    assert path.read_bytes() == b"three"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
