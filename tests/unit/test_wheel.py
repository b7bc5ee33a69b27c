"""The wheel holds the package and nothing else; built from the tree with setuptools alone."""

from __future__ import annotations

import email
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import wheel as built

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOTS = {"medv_ray": ROOT / "medv_ray", "medv_kernels": ROOT / "kernels/medv_kernels"}


def on_disk() -> set[str]:
    """What the packages are made of, by the name that each file has in the wheel."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in ROOTS.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return built.build("wheel", built.copy_of_tree(folder / "tree"), folder)


def test_every_package_on_disk_is_named() -> None:
    folders = {name.rpartition("/")[0] for name in on_disk() if name.endswith(".py")}
    packages = {folder.replace("/", ".") for folder in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_what_is_on_disk(made: Path) -> None:
    names = zipfile.ZipFile(made).namelist()
    info = [name for name in names if ".dist-info/" in name]
    assert set(names) - set(info) == on_disk()
    assert len(names) == len(set(names))
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("licenses/")[2] for name in info}
    needed = {"medv_ray/assets/medv-tiny/model.safetensors", "medv_ray/serving/page/index.html"}
    assert needed <= set(names)


def test_the_wheel_says_what_it_is(made: Path) -> None:
    with zipfile.ZipFile(made) as file:
        [name] = [one for one in file.namelist() if one.endswith("/METADATA")]
        about = email.message_from_bytes(file.read(name))
        entry = file.read(name.replace("METADATA", "entry_points.txt")).decode()
        top = file.read(name.replace("METADATA", "top_level.txt")).decode().split()
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == PROJECT["project"]["requires-python"]
    assert "medv = medv_ray.cli:main" in entry
    # never `kernels`: transformers imports a package of that name
    assert sorted(top) == ["medv_kernels", "medv_ray"]


@pytest.mark.integration
def test_the_sdist_holds_the_same_and_no_tests(tmp_path: Path) -> None:
    sdist = built.build("sdist", built.copy_of_tree(tmp_path / "tree"), tmp_path)
    with tarfile.open(sdist) as file:
        names = {one.name.partition("/")[2] for one in file.getmembers() if one.isfile()}
    inside = {name.replace("medv_kernels/", "kernels/medv_kernels/", 1) for name in on_disk()}
    assert inside <= names
    meta = {"PKG-INFO", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"}
    rest = {name for name in names - inside if ".egg-info/" not in name}
    assert rest == meta


def test_a_package_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: a folder with code that pyproject.toml does not name."""
    new = tmp_path / "medv_ray/new_part"
    new.mkdir(parents=True)
    (new / "__init__.py").touch()
    monkeypatch.setitem(ROOTS, "medv_ray", tmp_path / "medv_ray")
    with pytest.raises(AssertionError):
        test_every_package_on_disk_is_named()
