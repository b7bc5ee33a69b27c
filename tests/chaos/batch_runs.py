"""Batch files under kills, and one of a million lines.

    python tests/chaos/batch_runs.py client --lines 60 --kills 2  # `openai`; SIGKILL of the server
    python tests/chaos/batch_runs.py million --lines 1000000      # memory of a whole job

One JSON line each; exit code 1 if a line was lost or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEY = "key-of-alice-0123456789"
CHAT = "/v1/chat/completions"


def main() -> int:
    parser = argparse.ArgumentParser(description="Batch files under kills.")
    parser.add_argument("what", choices=["client", "million", "serve"])
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.what == "serve":
        serve(args.folder, args.port)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if args.what == "million":
            return million(folder, args.lines)
        return client(folder, args.lines, args.kills)


def serve(folder: Path, port: int) -> None:
    """The toy behind one process, without Ray: what a replica is."""
    import uvicorn

    from medv_ray.on_ray.options import serve_settings
    from medv_ray.serving.app import make_app
    from medv_ray.serving.auth import Keys
    from medv_ray.serving.service import Service

    keys = folder / "keys"
    sampler = {"gen_length": 8, "block_length": 8, "steps": 8}
    given = {"batch": {"folder": str(folder / "kept")}, "keys_file": str(keys), "sampler": sampler}
    settings = serve_settings(given)
    app = make_app(Service.load(settings), Keys.load(str(keys)))
    uvicorn.run(app, port=port, log_level="error", access_log=False)


def client(folder: Path, lines: int, kills: int) -> int:
    """`openai`: upload, batch, SIGKILL of the server in between, output and error files."""
    from openai import APIConnectionError, OpenAI

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys").write_text(f"alice {KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=60)
    server = start(folder, port, asked)
    started_s, killed = time.monotonic(), 0
    file = asked.files.create(file=("in.jsonl", b"".join(requests(lines))), purpose="batch")
    batch: Any = asked.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"of": "a test"}
    )
    seen = [0]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.1)
        try:
            batch = asked.batches.retrieve(batch.id)
        except APIConnectionError:
            continue
        done = batch.request_counts.completed
        if killed < kills and done > seen[-1] and done >= lines * (killed + 1) // (kills + 2):
            server.send_signal(signal.SIGKILL)
            server.wait()
            killed, seen = killed + 1, [*seen, done]
            server = start(folder, port, asked)
    answers = asked.files.content(batch.output_file_id).text.splitlines()
    errors = asked.files.content(batch.error_file_id).text.splitlines()
    server.terminate()
    server.wait(60)
    counted = Counter(json.loads(one)["custom_id"] for one in answers)
    wanted = {f"r{i}" for i in range(lines)}
    figures = {
        "bench": "batch_client", "status": batch.status, "lines": lines + 1, "kills": killed,
        "answered_before_each_kill": seen[1:], "answers": len(answers), "errors": len(errors),
        "lost": len(wanted - counted.keys()), "doubled": sum(n > 1 for n in counted.values()),
        "seconds": round(time.monotonic() - started_s, 1),
    }  # fmt: skip
    print(json.dumps(figures))
    sound = figures["lost"] == figures["doubled"] == 0 and killed == kills and len(errors) == 1
    return int(not sound)


def start(folder: Path, port: int, asked: Any) -> subprocess.Popen[bytes]:
    from openai import APIConnectionError

    given = [sys.executable, __file__, "serve", "--folder", str(folder), "--port", str(port)]
    server = subprocess.Popen(given)
    while True:
        try:
            asked.models.list()
            return server
        except APIConnectionError:
            if server.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.2)


def requests(lines: int) -> Iterator[bytes]:
    """Of OpenAI's format; one is none."""
    for i in range(lines):
        messages = [{"role": "user", "content": f"Is tile {i} bright?"}]
        body = {"model": "medv-tiny", "messages": messages}
        line = {"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": body}
        yield json.dumps(line).encode() + b"\n"
        if i == lines // 2:
            yield b"{no request\n"


def million(folder: Path, lines: int) -> int:
    """A whole job whose answers cost nothing."""
    from medv_ray.serving.batch.job import Job, Paths
    from medv_ray.serving.batch.lines import survey

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "in"
    with path.open("wb") as file:
        file.writelines(requests(lines))
    before, started_s = memory_mib(), time.monotonic()
    found = survey(str(path), 2**20)
    looked_s, after = time.monotonic() - started_s, memory_mib()
    reply = json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        return 200, reply.encode()

    names = [str(path), *(str(folder / name) for name in ("output", "errors", "ledger.jsonl"))]
    done = asyncio.run(Job("m", Paths(*names), ask, lambda n: n < 64, 2**20).run())
    figures = {
        "bench": "batch_million", "lines": found.total, "file_mib": path.stat().st_size >> 20,
        "before_mib": before, "survey_mib": after, "job_mib": memory_mib(),
        "survey_s": round(looked_s, 1), "seconds": round(time.monotonic() - started_s, 1),
        "cpu_s": round(time.process_time(), 1), "answered": done.completed, "errors": done.failed,
    }  # fmt: skip
    print(json.dumps(figures))
    return int(done.completed != lines or done.failed != 1)


def memory_mib() -> int:
    """The most this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
