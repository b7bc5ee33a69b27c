"""Builds wheel and sdist, and uses the wheel as a new user does: an empty environment, no clone.

    python -m tests.wheel --out dist    # as `make dist`: installs the closure from the index
    python -m tests.wheel --borrow      # the packages of this environment, nothing is downloaded

The wheel is built from the sdist and from the tree, and both are compared. Then in a temporary
folder, with neither PYTHONPATH nor a clone in reach: `medv demo`, `medv score` of a folder of
pictures, `medv serve` with one chat request. With --out the wheel, the sdist and a CycloneDX SBOM
of what was installed are left there. Prints one line of JSON; ends with 1 at the first fault.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "kernels", "medv_ray")
BUILD = (
    "import sys; from setuptools import build_meta as setup\n"
    "print(getattr(setup, sys.argv[1])(sys.argv[2]))"
)
QUESTION = "How many large cells are there?"


def build(kind: str, source: Path, out: Path) -> Path:
    """`kind`: sdist or wheel; with setuptools alone. `source` gets a build folder."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, env=clean(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind} was not built:\n{done.stderr[-2000:]}")
    return out / done.stdout.split()[-1]


def copy_of_tree(folder: Path) -> Path:
    """What the build reads, so that nothing is written into the clone."""
    folder.mkdir()
    for name in SOURCE:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, folder / name)
    return folder


def contents(wheel: Path) -> dict[str, str]:
    """Name of each file to its digest; RECORD follows from the others."""
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/RECORD")]
        return {name: hashlib.sha256(file.read(name)).hexdigest() for name in names}


def build_both(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it, which equals the one built from the tree."""
    sdist = build("sdist", copy_of_tree(folder / "tree"), folder)
    straight = build("wheel", copy_of_tree(folder / "again"), folder / "straight")
    shutil.unpack_archive(sdist, folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    wheel = build("wheel", unpacked, folder)
    if contents(wheel) != contents(straight):
        sys.exit("the wheel of the sdist is another one than the tree's")
    return sdist, wheel


def clean() -> dict[str, str]:
    """The environment without what would let a clone or this environment be found."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: text for name, text in os.environ.items() if name not in left_out}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONNOUSERSITE": "1"}


class Empty:
    """A new environment in `folder`, and an empty working directory beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.away = folder / "env", folder / "away"
        self.away.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder], check=True)

    @property
    def site(self) -> Path:
        return next((self.folder / "lib").glob("python*/site-packages"))

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def pip(self, *words: str) -> None:
        """This environment's pip installs into the empty one, which then holds nothing else."""
        command = [sys.executable, "-m", "pip", "--python", self.program("python"), *words]
        subprocess.run(command, env=clean(), cwd=self.away, check=True, stdout=sys.stderr)

    def run(self, *words: str) -> str:
        """stdout of a program of the environment; it must end with 0."""
        command = [self.program(words[0]), *words[1:]]
        done = subprocess.run(command, env=clean(), cwd=self.away, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def borrow(self) -> None:
        """Packages of the present environment, but not its editable install of this project."""
        import torch  # where the packages lie

        packages = Path(torch.__file__).parents[1]
        (self.site / "borrowed.pth").write_text(f"{packages}\n")

    def lies_inside(self) -> None:
        code = "import medv_ray, medv_kernels; print(medv_ray.__file__, medv_kernels.__file__)"
        for file in self.run("python", "-c", code).split():
            if not Path(file).is_relative_to(self.site):
                sys.exit("a package was imported from elsewhere than site-packages")


def score(env: Empty) -> int:
    """Rows answered of a folder of pictures that the demo wrote."""
    (env.away / "pictures").mkdir()
    for number in range(6):
        shutil.copy(env.away / f"demo-run/images/{number}.png", env.away / "pictures")
    words = ["--archive", "pictures", "--question", QUESTION, "--model", "toy", "--out", "scored"]
    env.run("medv", "score", *words)
    return int(json.loads((env.away / "scored/metrics.json").read_text())["answered"])


def chat(url: str, picture: Path) -> str:
    """The endpoint's answer about a picture."""
    data = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": "medv-tiny", "messages": [{"role": "user", "content": parts}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def serve(env: Empty, wait_s: float) -> dict[str, Any]:
    """Seconds until the endpoint answers, its page's size, one answer, and its exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    command = [env.program("medv"), "serve", "--port", str(port)]
    with open(env.away / "serve.log", "w") as log:
        server = subprocess.Popen(command, env=clean(), cwd=env.away, stdout=log, stderr=log)
    try:
        while "answers as" not in (said := (env.away / "serve.log").read_text()):
            if server.poll() is not None or time.monotonic() > began + wait_s:
                sys.exit(f"medv serve:\n{said[-2000:]}")
            time.sleep(0.5)
        ready_s = time.monotonic() - began
        answer = chat(url, env.away / "demo-run/images/0.png")
        with urllib.request.urlopen(url, timeout=60) as page:
            page_bytes = len(page.read())
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=wait_s)
    finally:
        if server.poll() is None:
            server.kill()
    return {"ready_s": round(ready_s), "answer": answer, "page_bytes": page_bytes, "exit": code}


def write_sbom(env: Empty, folder: Path, file: Path) -> int:
    """Components of a CycloneDX file about the environment; made from one beside it."""
    tools = Empty(folder)
    tools.pip(
        *("install", "--quiet", "--require-hashes", "-r"),
        str(ROOT / "cluster/requirements/sbom.txt"),
    )
    out = ["--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml")]
    tools.run(
        "cyclonedx-py", "environment", *out, "--output-file", str(file), env.program("python")
    )
    return len(json.loads(file.read_text())["components"])


def measure(folder: Path, out: Path | None, borrow: bool, wait_s: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"check": "wheel", "borrow": borrow}
    sdist, wheel = build_both(folder)
    figures["wheel_bytes"] = wheel.stat().st_size
    figures["sdist_bytes"] = sdist.stat().st_size
    env, began = Empty(folder), time.monotonic()
    if borrow:
        env.pip("install", "--quiet", "--no-deps", "--no-index", str(wheel))
        env.borrow()
    else:
        limits = ("--constraint", str(ROOT / "constraints.txt"))
        env.pip("install", "--quiet", *limits, "torch")
        env.pip("install", "--quiet", *limits, str(wheel))
        env.pip("check")
        figures["install_s"] = round(time.monotonic() - began)
        files = [path for path in env.site.rglob("*") if path.is_file()]
        figures["install_mib"] = sum(path.stat().st_size for path in files) >> 20
        figures["packages"] = len(list(env.site.glob("*.dist-info")))
    env.lies_inside()
    began = time.monotonic()
    if "600 rows: 600 answered" not in env.run("medv", "demo"):
        sys.exit("medv demo did not answer its 600 rows")
    figures["demo_s"] = round(time.monotonic() - began)
    figures["scored"] = score(env)
    figures["serve"] = serve(env, wait_s)
    if figures["scored"] != 6 or figures["serve"]["exit"] != 0:
        sys.exit(f"not as it should be: {json.dumps(figures)}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for file in (sdist, wheel):
            shutil.copy(file, out)
        if not borrow:
            (folder / "sbom").mkdir()
            name = f"{wheel.name.split('-py3')[0]}.cdx.json"
            figures["sbom"] = write_sbom(env, folder / "sbom", (out / name).resolve())
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Try the wheel in an empty environment.")
    parser.add_argument("--out", type=Path, help="folder for wheel, sdist and SBOM")
    parser.add_argument("--borrow", action="store_true", help="download nothing")
    parser.add_argument("--wait-s", type=float, default=300, help="for the endpoint, seconds")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="medv-wheel-") as folder:
        print(json.dumps(measure(Path(folder), args.out, args.borrow, args.wait_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
