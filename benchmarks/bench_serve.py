"""What HTTP costs over a call in the same process, and what many clients at once cost.

    python benchmarks/bench_serve.py [--rows 200] [--repeats 5]

Starts `medv serve` with the toy. Checked first: every answer over HTTP is the one of
`Predictor.answer`. Then, request by request in turns, one question in process and over HTTP, on
a machine that is idle but for this, and with a busy process on each core; and blocks of one client
and of 20 by turns. One JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import torch

from circumstances import circumstances
from medv_ray.client.endpoint import CHAT, messages_of
from medv_ray.data import synthetic
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.on_ray.options import serve_settings

CLIENTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as a replica on one core
    rows = list(synthetic.rows(args.rows, seed=11, per_image=1))
    settings = serve_settings({"model": "toy"})
    with (
        medv_serve() as url,
        httpx2.Client(base_url=url, timeout=120, trust_env=False) as http,
        Predictor.load(settings.model, settings.answer) as predictor,
    ):
        shown: dict[str, Any] = {"bench": "serve", "rows": args.rows, "repeats": args.repeats}
        shown["idle"] = overhead(rows, predictor, http)
        with busy_cores():
            shown["loaded"] = overhead(rows, predictor, http)
        shown["clients"] = asyncio.run(many(rows, url, args.repeats))
    print(json.dumps(shown | circumstances()))


def overhead(
    rows: list[synthetic.Row], predictor: Predictor, http: httpx2.Client
) -> dict[str, float]:
    """Milliseconds, request by request in turns. Raises AssertionError for a wrong answer."""
    inside, outside = [], []
    for number, row in enumerate(rows):
        body = json.dumps(
            {"model": "medv-tiny", "messages": messages_of(row.question, [row.image])}
        ).encode()
        for arm in ((0, 1), (1, 0))[number % 2]:
            begun_s = time.perf_counter()
            if arm == 0:
                [answer] = predictor.answer([Request(row.question, (row.image,))])
                inside.append(time.perf_counter() - begun_s)
            else:
                reply = http.post(CHAT, content=body, headers={"content-type": "application/json"})
                outside.append(time.perf_counter() - begun_s)
        assert isinstance(answer, Answer)
        said = reply.json()["choices"][0]["message"]["content"]
        assert said == answer.text, "wrong answer: not timed"
    gaps = [1e3 * (b - a) for a, b in zip(inside, outside, strict=True)]
    return {
        "in_process_p50_ms": round(1e3 * statistics.median(inside), 2),
        "http_p50_ms": round(1e3 * statistics.median(outside), 2),
        "added_p50_ms": round(statistics.median(gaps), 2),
    }


async def many(rows: list[synthetic.Row], url: str, repeats: int) -> dict[str, Any]:
    """Answers per second of one client and of 20, in blocks by turns."""
    bodies = [
        {"model": "medv-tiny", "messages": messages_of(row.question, [row.image])} for row in rows
    ]
    rates: dict[int, list[float]] = {1: [], CLIENTS: []}
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:

        async def block(clients: int) -> float:
            waiting = iter(bodies)

            async def client() -> None:
                for body in waiting:
                    (await http.post(CHAT, json=body)).raise_for_status()

            begun_s = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(clients)))
            return len(bodies) / (time.perf_counter() - begun_s)

        for _ in range(repeats):
            for clients, found in rates.items():
                found.append(await block(clients))
    ratios = [b / a for a, b in zip(rates[1], rates[CLIENTS], strict=True)]
    return {
        "one_per_s": round(statistics.median(rates[1]), 1),
        f"{CLIENTS}_per_s": round(statistics.median(rates[CLIENTS]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


@contextmanager
def medv_serve() -> Iterator[str]:
    """The address of an endpoint of the toy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", "from medv_ray.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "serve", "--port", port], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert b"answers as" in process.stdout.readline(), "medv serve did not start"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(60)


@contextmanager
def busy_cores() -> Iterator[None]:
    """A process on each core that does nothing but count."""
    start = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0))
    processes = [start.Process(target=_spin, daemon=True) for _ in range(cores)]
    for process in processes:
        process.start()
    time.sleep(2.0)
    yield
    for process in processes:
        process.kill()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
