"""cluster/lock.py: which files of a package the images may install, and their digests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "cluster/lock.py"


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", FILE)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def file(name: str, digest: str) -> dict[str, Any]:
    return {"url": f"https://host/a/{name}", "hashes": {"sha256": digest}}


def package(*wheels: dict[str, Any], name: str = "one", version: str = "1.0") -> dict[str, Any]:
    source = file(f"{name}-{version}.tar.gz", "source")
    return {"name": name, "version": version, "wheels": list(wheels), "sdist": source}


def test_only_what_the_image_can_install(lock: ModuleType) -> None:
    given = package(
        file("one-1.0-cp311-cp311-manylinux_2_17_x86_64.whl", "b"),
        file("one-1.0-cp311-abi3-manylinux2014_x86_64.whl", "a"),
        file("one-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "newer"),
        file("one-1.0-cp311-cp311-manylinux_2_17_aarch64.whl", "other"),
        file("one-1.0-cp311-cp311-macosx_11_0_x86_64.whl", "other"),
        file("one-1.0-cp311-cp311-manylinux_2_39_x86_64.whl", "of a newer libc"),
    )
    [line] = lock.lines({"packages": [given]})
    assert line == "one==1.0 \\\n    --hash=sha256:a \\\n    --hash=sha256:b"


def test_a_package_without_a_wheel_is_built_of_its_source(lock: ModuleType) -> None:
    packages = [package(name="two"), package(file("one-1.0-py3-none-any.whl", "any"))]
    assert list(lock.lines({"packages": packages})) == [
        "one==1.0 \\\n    --hash=sha256:any",
        "two==1.0 \\\n    --hash=sha256:source",
    ]


def test_names_of_a_folders_files(lock: ModuleType) -> None:
    assert lock.name({"path": "../wheels/torch-2.0%2Bcpu-cp311.whl"}) == "torch-2.0+cpu-cp311.whl"
    assert lock.name({"name": "a.whl", "url": "https://host/b.whl"}) == "a.whl"


def test_the_builds_for_cpus_must_be_named(
    lock: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make lock` without TORCH_CPU calls it; nothing is resolved before."""
    monkeypatch.setattr(sys, "argv", ["lock.py", "--torch-cpu", ""])
    monkeypatch.setattr(lock, "resolve", None)
    with pytest.raises(SystemExit, match="2"):
        lock.main()
    assert "make lock TORCH_CPU=FOLDER_OR_URL" in capsys.readouterr().err
