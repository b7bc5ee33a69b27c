"""Real clients against `medv serve` (the embedded toy), each in an environment of its own.

    python tests/clients/run_clients.py                      # installs, serves, asks; minutes
    python tests/clients/run_clients.py --only llm --url http://127.0.0.1:8000 --folder /tmp/clients

A client is a file `with_NAME.py` here; what it is asked to do stands there, and its answers are
compared with those of plain HTTP. Prints the table of docs/serving.md; 1 if something failed. No
part of `make test`, as it installs packages.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CLIENTS = {
    "openai": "openai",
    "litellm": "litellm",
    "langchain-openai": "langchain-openai",
    "pydantic-ai": "pydantic-ai",
    "instructor": "instructor",
    "llm": "llm",
}
"""Package by the client's name."""
KEY = "none"


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask an endpoint through real clients.")
    parser.add_argument("--url", help="a running endpoint; default: `medv serve` for the time")
    parser.add_argument("--folder", type=Path, help="of the environments, which are kept there")
    parser.add_argument("--only", nargs="*", choices=CLIENTS, default=list(CLIENTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, serving(args.url) as url:
        folder = args.folder or Path(temporary)
        given = what_is_asked(url, Path(temporary))
        failed = 0
        print("| client | version | what was tried | |\n|---|---|---|---|")
        for name in args.only:
            python = environment(folder / name, CLIENTS[name])
            found = version(python, CLIENTS[name])
            for one in run(python, name, given):
                failed += not one["worked"]
                outcome = one["note"] or "works" if one["worked"] else f"FAILED: {one['note']}"
                print(f"| `{name}` | {found} | {one['case']} | {outcome} |", flush=True)
    return int(failed > 0)


@contextmanager
def serving(url: str | None) -> Iterator[str]:
    """The address of an endpoint."""
    if url is not None:
        yield url.rstrip("/")
        return
    command = [sys.executable, "-c", "from medv_ray.cli import main; main()", "serve"]
    kept = tempfile.TemporaryDirectory()
    command += ["--port", "8765", "--batch-folder", kept.name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.match(r"(http://\S+?)/ answers", line)
        if found is None:
            raise SystemExit(f"medv serve did not start: {line}")
        yield found.group(1)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        kept.cleanup()


def what_is_asked(url: str, folder: Path) -> dict[str, Any]:
    """A picture, two questions, and what plain HTTP is answered."""
    from medv_ray.data.synthetic import rows

    tile, *others = rows(12, seed=5, per_image=12)
    image = folder / "tile.jpg"
    image.write_bytes(tile.image)
    picture = f"data:image/jpeg;base64,{base64.b64encode(tile.image).decode()}"
    content = [
        {"type": "text", "text": tile.question},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    model = post(f"{url}/v1/models")["data"][0]["id"]

    def answer(*messages: dict[str, Any]) -> str:
        body = {"model": model, "messages": messages}
        return str(post(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"])

    asked = {"role": "user", "content": content}
    first = answer(asked)
    back = {"role": "assistant", "content": first}
    for other in others:  # some clients take an empty answer for none
        second = answer(asked, back, {"role": "user", "content": other.question})
        if second and second != first:
            break
    return {
        "url": f"{url}/v1", "key": KEY, "model": model, "image": str(image),
        "first": tile.question, "second": other.question, "answers": [first, second],
    }  # fmt: skip


def post(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def environment(folder: Path, package: str) -> Path:
    """The interpreter of an environment that holds the package."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", package]
        subprocess.run(install, check=True)
    return python


def version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def run(python: Path, name: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What a client did, case by case."""
    # of ours nothing is in its way: neither packages nor keys
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    file = HERE / f"with_{name.replace('-', '_')}.py"
    done = subprocess.run(
        [python, "-W", "ignore", file],
        env=kept | {"MEDV_CLIENT": json.dumps(given), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        lines.append({"case": "the script", "worked": False, "note": last[:300]})
    return lines


if __name__ == "__main__":
    sys.exit(main())
