"""Batch files of a test's own making, and an endpoint that needs no model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medv_ray.serving.batch.job import Ask, Job, Paths

CHAT = "/v1/chat/completions"
LIMIT = 2**20


def line(custom_id: str, /, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": custom_id}]}
    whole = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return {**whole, **fields}


def write(path: Path, lines: Iterable[dict[str, Any] | str | bytes]) -> Path:
    with path.open("wb") as file:
        for one in lines:
            data = json.dumps(one) if isinstance(one, dict) else one
            file.write((data.encode() if isinstance(data, str) else data) + b"\n")
    return path


def paths(folder: Path, requests: Path) -> Paths:
    names = (requests, folder / "output", folder / "errors", folder / "ledger.jsonl")
    return Paths(*map(str, names))


def echo(seconds: float = 0.0) -> Ask:
    """Answers each line with what it asked."""

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        await asyncio.sleep(seconds)
        said = json.loads(body)["messages"][0]["content"]
        if said.startswith("refuse"):
            error = {"message": "no.", "type": "x", "param": None, "code": "E1701"}
            return 400, json.dumps({"error": error}).encode()
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        return 200, json.dumps({"said": said, "usage": usage}).encode()

    return ask


def job(folder: Path, requests: Path, ask: Ask | None = None, **named: Any) -> Job:
    made = ask or echo()
    return Job("b", paths(folder, requests), made, lambda n: n < 8, LIMIT, **named)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_bytes().splitlines()]


def main() -> None:
    """A job that is killed after some of its answers, by the process that it runs in."""
    folder, requests, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    asked = 0
    plain = echo(0.001)

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        if asked == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return await plain(url, body, request_id)

    import medv_ray.serving.batch.job as module

    module.COMMIT_S = 0.005
    asyncio.run(job(folder, requests, ask).run())


if __name__ == "__main__":
    main()
