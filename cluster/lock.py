"""Requirements with hashes for the image: cluster/requirements/{build,cpu,gpu,sbom}.txt.

    make lock TORCH_CPU=FOLDER_OR_URL    # a folder of PyTorch's builds for CPUs, or their index

`uv` resolves `pyproject.toml` within `constraints.txt`; kept are the digests of those wheels only
that Python 3.11 on x86-64 Linux can install, and of the source where a package has no wheel.
The builds of torch differ: the one for CPUs (`+cpu`) is not on the usual index and asks for none of
CUDA's packages. The other one asks for one release of Triton, which constraints.txt names too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
OUT = ROOT / "cluster/requirements"
PYTHON = (3, 11)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
EXTRAS = ("train", "dicom", "report", "cloud")
TOOLS = {"build": "pip\nsetuptools\n", "sbom": "cyclonedx-bom\n"}
HEADER = """\
# Written by cluster/lock.py (`make lock`) for Python 3.11 on x86-64 Linux; do not edit.
# pip install --require-hashes -r this file; docs: cluster/README.md, "Image"
"""


def accepted() -> set[Tag]:
    return {
        *cpython_tags(PYTHON, platforms=PLATFORMS),
        *compatible_tags(PYTHON, "cp311", PLATFORMS),
    }


def resolve(source: Path, constraints: str, *options: str) -> dict[str, Any]:
    """uv's answer as pylock.toml has it."""
    with tempfile.TemporaryDirectory() as folder:
        limits, lock = Path(folder, "constraints.txt"), Path(folder, "pylock.toml")
        limits.write_text(constraints)
        platform = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            str(source),
            "-c",
            str(limits),
            "-o",
            str(lock),
        ]
        command += ["--quiet", "--generate-hashes", *platform, *options]
        if subprocess.run(command, cwd=ROOT).returncode:
            sys.exit(f"uv finds no set of packages for {source.name}")
        return tomllib.loads(lock.read_text())


def lines(lock: dict[str, Any]) -> Iterator[str]:
    """`name==version` and a digest for each file that can be installed there."""
    tags = accepted()
    for package in sorted(lock["packages"], key=lambda one: str(one["name"])):
        wheels = package.get("wheels", [])
        fitting = [one for one in wheels if tags & parse_wheel_filename(name(one))[3]]
        files = fitting or [package["sdist"]]
        digests = sorted(one["hashes"]["sha256"] for one in files)
        yield " \\\n    ".join(
            [f"{package['name']}=={package['version']}", *(f"--hash=sha256:{d}" for d in digests)]
        )


def name(file: dict[str, Any]) -> str:
    """Of a file that the lock names by name, path or URL."""
    text = file.get("name") or file.get("path") or file["url"]
    return str(text).rsplit("/", 1)[-1].replace("%2B", "+")


def write(target: str, lock: dict[str, Any]) -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / f"{target}.txt").write_text(HEADER + "\n".join(lines(lock)) + "\n")
    print(f"{target}: {len(lock['packages'])} packages")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write cluster/requirements/*.txt.")
    parser.add_argument("--torch-cpu", required=True, help="folder or index of torch's CPU builds")
    where = parser.parse_args().torch_cpu
    if not where:
        parser.error("--torch-cpu is empty; make lock TORCH_CPU=FOLDER_OR_URL")
    constraints = (ROOT / "constraints.txt").read_text()
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    project = ROOT / "pyproject.toml"
    with tempfile.TemporaryDirectory() as folder:
        for target, text in TOOLS.items():
            source = Path(folder, f"{target}.in")
            source.write_text(text)
            write(target, resolve(source, constraints))
    write("gpu", resolve(project, constraints, *extras))
    cpu = re.sub(r"^(torch==[\d.]+)$", r"\1+cpu", constraints, flags=re.M)
    source_of = "--find-links" if Path(where).is_dir() else "--extra-index-url"
    write("cpu", resolve(project, cpu, *extras, source_of, where))


if __name__ == "__main__":
    main()
