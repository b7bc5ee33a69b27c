"""Kill replicas under load, flood and attack an endpoint; every client must get what is promised.

    python -m tests.chaos.serve_runs [--short] [--only kills]
    python -m tests.chaos.serve_runs --only soak [--requests 100000] [--samples FILE]

Each run starts `medv serve` with the toy. kills: SIGKILL of replicas under 20 clients, half of
them streaming. stuck: SIGSTOP of a replica. burst: 300 requests at once. overload: many times what
it can answer. soak: 100,000 requests of many shapes; memory and descriptors stay. attacks: hostile
requests. leave: clients that do not wait. redeploy: `serve deploy` of changed settings under load.
One JSON line each; exit code 1 if anything is not what the endpoint promises.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any

import httpx2
import yaml

from medv_ray.data import synthetic
from medv_ray.serving.options import LimitSettings
from tests.chaos.ray_nodes import START_S, end_all, free_port, join, wait_for
from tests.integration.processes import descendants

ROOT = Path(__file__).parents[2]
END_S = 60.0
RECOVERY_S = 30.0
ALLOWED = {200, 429, 503}
SOAK = ("--set", "engine.image_cache_bytes=4194304")
SOAK_CLIENTS = 4
LONG = {"gen_length": 448, "block_length": 448, "steps": 448, "forbidden": ["<|eot_id|>"]}
"""Settings by which the toy goes on for seconds: as many steps as fit, and no end of text."""
MIB = 2**20
CHAT = "/v1/chat/completions"
REQUEST_LINE = f"POST {CHAT} HTTP/1.1\r\n".encode()
LOCAL_JSON = b"host: localhost\r\ncontent-type: application/json\r\n"
MEDV = [sys.executable, "-c", "from medv_ray.cli import main; main()"]
ENVIRONMENT = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "MEDV_CHAOS": str(os.getpid()),
}
OPEN = ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"}
"""For a head of its own, whose token would lie in the home folder."""
MARK = f"MEDV_CHAOS={os.getpid()}\0".encode()


@dataclass
class Endpoint:
    """A running one."""

    port: int
    mark: bytes = b""
    """In the environment of its processes, so that those of another Ray are left alone."""
    dashboard: int = 0
    """The port to which `serve deploy` goes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pids(self, name: str) -> list[int]:
        """Processes of Ray by the name that they show."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                ours = line.startswith(f"ray::{name}".encode())
                if ours and self.mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def rss_bytes(self) -> int:
        """Of proxy and replicas together."""
        return sum(map(_rss, self._serving()))

    def _serving(self) -> list[int]:
        proxies, replicas = self.pids("ProxyActor"), self.pids("ServeReplica")
        assert proxies, "no proxy runs"
        assert replicas, "no replica runs"
        return [*proxies, *replicas]


@dataclass
class Seen:
    """What clients got."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    begun_s: list[float] = field(default_factory=list)
    """When the requests that were answered began, in the order of their answers."""

    def said(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        at = {f"p{p}": round(ordered[len(ordered) * p // 100], 3) for p in (50, 99) if ordered}
        return {"statuses": dict(sorted(self.statuses.items())), "latency_s": at}


class Clients:
    """Ask one question about one tile, again and again, and look at every answer."""

    def __init__(self, endpoint: Endpoint, seen: Seen) -> None:
        [tile] = list(synthetic.rows(1, 5))
        url = "data:image/jpeg;base64," + base64.b64encode(tile.image).decode()
        parts = [
            {"type": "text", "text": tile.question},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        messages = [{"role": "user", "content": parts}]
        self.body: dict[str, Any] = {"model": "medv-tiny", "messages": messages}
        self.endpoint, self.seen = endpoint, seen
        self.expected: str | None = None
        self.http = httpx2.AsyncClient(
            base_url=endpoint.url,
            timeout=150,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def ask(self, stream: bool = False) -> httpx2.Response | None:
        """One request; anything that is not promised is a problem."""
        begun_s = time.monotonic()
        try:
            reply = await self.http.post(CHAT, json={**self.body, "stream": stream})
        except httpx2.HTTPError as error:
            self.seen.problems.append(f"client met {type(error).__name__}")
            return None
        self.seen.statuses[reply.status_code] += 1
        if reply.status_code not in ALLOWED:
            self.seen.problems.append(f"status {reply.status_code}")
        elif reply.status_code == 200:
            self.seen.seconds.append(time.monotonic() - begun_s)
            self.seen.begun_s.append(begun_s)
            text = _streamed(reply.text) if stream else _whole(reply)
            self.expected = text if self.expected is None else self.expected
            if text != self.expected:
                self.seen.problems.append("an answer is another one than the first")
        elif "retry-after" not in reply.headers:
            self.seen.problems.append(f"status {reply.status_code} without Retry-After")
        elif "error" not in reply.json():
            self.seen.problems.append("an error without our words")
        return reply

    async def must_answer(self) -> None:
        """One request, whole and streamed, that nothing but the right answer does for."""
        for stream in (False, True):
            reply = await self.ask(stream)
            if reply is None or reply.status_code != 200 or not self.expected:
                self.seen.problems.append("it does not answer")

    async def ongoing(self) -> int:
        """Requests that the replica has not answered yet."""
        return int((await self.http.get("/health")).json()["ongoing"])

    async def again_and_again(self, over: Callable[[], bool], stream: bool) -> None:
        while not over():
            reply = await self.ask(stream)
            if reply is None or reply.status_code != 200:
                headers = {} if reply is None else reply.headers
                await asyncio.sleep(float(headers.get("retry-after", 0.2)))

    async def many(
        self, clients: int, seconds: float, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """A closed loop, so long or until there is enough; every second client streams."""
        until_s = time.monotonic() + seconds

        def over() -> bool:
            return time.monotonic() >= until_s or enough()

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self.again_and_again(over, stream=bool(number % 2)))


def _whole(reply: httpx2.Response) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def _streamed(text: str) -> str | None:
    """The answer of a stream; None for one that was cut."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    if not events or events[-1] != "[DONE]":
        return None
    deltas = [c["delta"] for e in events[:-1] for c in json.loads(e).get("choices", [])]
    return "".join(delta.get("content") or "" for delta in deltas)


async def kills(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """SIGKILLs of replicas under 20 clients; the time until five answers to what was asked after
    each."""
    seen, recoveries = Seen(), []
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    count = 2 if short else 10

    async def killer() -> None:
        for _ in range(count):
            await asyncio.sleep(3.0)
            [pid, *_] = endpoint.pids("ServeReplica")  # the one that answered
            os.kill(pid, signal.SIGKILL)
            killed_s, before = time.monotonic(), len(seen.begun_s)
            while (
                sum(begun_s > killed_s for begun_s in seen.begun_s[before:]) < 5
                and time.monotonic() < killed_s + 60
            ):
                await asyncio.sleep(0.05)
            recoveries.append(round(time.monotonic() - killed_s, 2))
            await asyncio.sleep(1.0)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(killer())
        group.create_task(clients.many(20, count * 2 * RECOVERY_S, task.done))
    task.result()
    if len(recoveries) < count:
        seen.problems.append(f"{len(recoveries)} of {count} kills")
    if max(recoveries, default=0.0) > RECOVERY_S:
        seen.problems.append(f"five more answers took {max(recoveries):.0f} s")
    await clients.must_answer()
    return {
        "kills": len(recoveries),
        "recovery_s": sorted(recoveries),
        **seen.said(),
    }, seen.problems


async def stuck(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """A replica that hangs is replaced within 60 s."""
    seen = Seen()
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    [pid] = endpoint.pids("ServeReplica")
    os.kill(pid, signal.SIGSTOP)
    begun_s = time.monotonic()
    while seen.statuses[200] < 3 and time.monotonic() < begun_s + 100:
        try:  # those that went to the stopped one are answered 503 at their end
            async with asyncio.timeout(1):
                await clients.ask()
        except TimeoutError:
            continue
    seconds = time.monotonic() - begun_s
    os.kill(pid, signal.SIGKILL)  # Ray's own way to end a process does not reach a stopped one
    if seconds > 60:
        seen.problems.append(f"answered again after {seconds:.0f} s")
    return {"replaced_s": round(seconds, 1), **seen.said()}, seen.problems


async def burst(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """300 requests at once."""
    seen = Seen()
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    for _ in range(1 if short else 20):
        before = seen.statuses[200]
        await asyncio.gather(*(clients.ask() for _ in range(300)))
        if seen.statuses[200] < before + LimitSettings().ongoing:
            seen.problems.append("fewer answers than a replica has room for")
    if set(seen.statuses) - {200, 429}:
        seen.problems.append("other statuses than 200 and 429")
    await clients.must_answer()
    return seen.said(), seen.problems


async def overload(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """Ten times what it can answer, for minutes."""
    seen = Seen()
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    before_s, before_answers = time.monotonic(), seen.statuses[200]
    await clients.many(4, 5)  # what it can
    rate = 10 * (seen.statuses[200] - before_answers) / (time.monotonic() - before_s)
    assert rate > 10, "it hardly answers four clients"
    calm = seen.statuses[200]
    before, most, begun_s = endpoint.rss_bytes(), 0, time.monotonic()
    seconds, tasks = 20.0 if short else 300.0, set()
    while (now_s := time.monotonic() - begun_s) < seconds:
        while len(tasks) < 1000 and sum(seen.statuses.values()) + len(tasks) < rate * now_s:
            tasks.add(task := asyncio.create_task(clients.ask()))
            task.add_done_callback(tasks.discard)
        most = max(most, endpoint.rss_bytes())
        await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)
    growth = (max(most, endpoint.rss_bytes()) - before) / MIB
    if growth > 200:
        seen.problems.append(f"memory grew by {growth:.0f} MiB")
    if seen.statuses[200] - calm < seconds:
        seen.problems.append("less than an answer a second")
    await clients.must_answer()
    return {
        "asked_per_s": round(rate, 1),
        "rss_growth_mib": round(growth),
        **seen.said(),
    }, seen.problems


@dataclass
class Memory:
    """What proxy, replicas and their decoders hold while they are asked, sample by sample."""

    endpoint: Endpoint
    file: Path | None
    """Gets each sample as a line, for who watches, or when the run is cut short."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    begun_s: float = field(default_factory=time.monotonic)

    def take(self, seen: Seen) -> None:
        roles = {
            "proxy": self.endpoint.pids("ProxyActor"),
            "replicas": self.endpoint.pids("ServeReplica"),
        }
        roles["decoders"] = [one for pid in roles["replicas"] for one in descendants(pid)]
        rss = {name: sum(map(_rss, pids)) / MIB for name, pids in roles.items()}
        self.samples.append(
            {
                "seconds": round(time.monotonic() - self.begun_s, 1),
                "requests": sum(seen.statuses.values()),
                "statuses": dict(seen.statuses), "errors": len(seen.problems),
                "rss_mib": {name: round(mib, 2) for name, mib in rss.items()},
                "descriptors": sum(_descriptors(pid) for pids in roles.values() for pid in pids),
                "processes": {name: len(pids) for name, pids in roles.items()},
            }
        )  # fmt: skip
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(self.samples[-1]) + "\n")

    def warm(self, warm_up: int) -> list[dict[str, Any]]:
        """The samples after so many requests."""
        return [one for one in self.samples if one["requests"] >= warm_up]

    def slope(self, warm_up: int, role: str = "") -> float | None:
        """MiB per 1,000 requests: the line of least squares through what a role held, or all."""
        warm = self.warm(warm_up)
        if len(warm) < 3:
            return None
        held = [one["rss_mib"] for one in warm]
        mib = [one[role] if role else sum(one.values()) for one in held]
        requests = [one["requests"] / 1000 for one in warm]
        return round(linear_regression(requests, mib).slope, 3)


class Mixture:
    """Requests of many shapes, and for each its right answer: the first one that was given."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._expected: dict[str, str] = {}
        self._tiles = list(synthetic.rows(60, 7))  # 20 pictures
        self.shapes: Counter[str] = Counter()

    def body(self, rng: random.Random) -> tuple[str, str, dict[str, Any]]:
        """Shape, what makes two requests the same, and the request."""
        tile = rng.randrange(len(self._tiles))
        length = rng.choice((2, 4, 8))
        name = rng.choice(("picture", "picture", "new picture", "text", "dialogue", "two answers"))
        image = self._tiles[tile].image
        if name == "new picture":  # one that nobody has asked about, so that caches give some up
            image = _png(rng.randbytes(3))
        same = f"{name} {tile} {length} {zlib.crc32(image)}"
        kind = "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"
        url = f"data:{kind};base64," + base64.b64encode(image).decode()
        shown = {"type": "image_url", "image_url": {"url": url}}
        asked = {"type": "text", "text": self._tiles[tile].question}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [asked, shown]}]
        if name == "text":
            messages = [{"role": "user", "content": self._tiles[tile].question}]
        elif name == "dialogue":
            messages += [{"role": "assistant", "content": "yes"}]
            messages += [{"role": "user", "content": "where?"}]
        diffusion = {"gen_length": length, "block_length": length, "steps": 2}
        body = {"model": "medv-tiny", "messages": messages, "diffusion": diffusion}
        return name, same, body | ({"n": 2} if name == "two answers" else {})

    async def ask(self, rng: random.Random) -> None:
        """One request; one of 50 is to be refused."""
        name, same, body = self.body(rng)
        refused = rng.random() < 0.02
        if refused:
            name = "refused"
            body |= rng.choice(({"stepps": 3}, {"n": 10**9}, {"diffusion": {"steps": 0}}))
        stream = "n" not in body and rng.random() < 0.5
        self.shapes[f"{name}, streamed" if stream else name] += 1
        clients, seen = self._clients, self._clients.seen
        begun_s = time.monotonic()
        try:
            reply = await clients.http.post(CHAT, json={**body, "stream": stream})
        except httpx2.HTTPError as error:
            seen.problems.append(f"client met {type(error).__name__}")
            return
        seen.statuses[reply.status_code] += 1
        if refused:
            if reply.status_code != 400 or "error" not in reply.json():
                seen.problems.append(f"status {reply.status_code} to what must be refused")
        elif reply.status_code != 200:
            seen.problems.append(f"status {reply.status_code}")
        else:
            seen.seconds.append(time.monotonic() - begun_s)
            text = _streamed(reply.text) if stream else _all_choices(reply)
            if text is None or self._answer_to(name, same, text) != text:
                seen.problems.append("an answer is another one than the first")

    def _answer_to(self, name: str, same: str, text: str) -> str:
        """New pictures do not come twice: their answers are not kept."""
        return text if name == "new picture" else self._expected.setdefault(same, text)


async def soak(
    endpoint: Endpoint, short: bool, requests: int | None = None, samples: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Four clients until so many requests are done or Ctrl-C: no error, and nothing grows. The
    replica keeps few picture features (SOAK), so that they come and go from the beginning."""
    wanted = requests or (600 if short else 100_000)
    warm_up = max(100, wanted // 10)  # caches fill, allocators find their size
    seen, stop = Seen(), asyncio.Event()
    mixture, memory = Mixture(Clients(endpoint, seen)), Memory(endpoint, samples)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    begun = 0

    async def client(number: int) -> None:
        nonlocal begun
        rng = random.Random(number)
        while begun < wanted and not stop.is_set():
            begun += 1
            await mixture.ask(rng)

    async def watch() -> None:
        step = max(20, wanted // 500)
        while not stop.is_set():
            done = sum(seen.statuses.values())
            if done >= step * len(memory.samples):
                memory.take(seen)
                if len(memory.samples) % 25 == 1:
                    sys.stderr.write(json.dumps(memory.samples[-1]) + "\n")
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(client, range(SOAK_CLIENTS)))
    cut_short, errors = stop.is_set(), len(seen.problems)
    stop.set()
    await watching
    memory.take(seen)
    done, seconds = memory.samples[-1]["requests"], memory.samples[-1]["seconds"]
    warm = memory.warm(warm_up) or memory.samples
    slope, files = memory.slope(warm_up), warm[-1]["descriptors"] - warm[0]["descriptors"]
    if not short and (slope is None or slope > 1):
        seen.problems.append(f"memory grows by {slope} MiB per 1,000 requests")
    if abs(files) > 10:
        seen.problems.append(f"descriptors grew by {files}")
    if warm[0]["processes"] != warm[-1]["processes"]:
        seen.problems.append("a process was replaced")
    if cut_short:
        seen.problems.append(f"cut short after {done} of {wanted} requests")
    ends = {"start": warm[0], "end": warm[-1]}
    return {
        "requests": done, "requests_per_s": round(done / max(seconds, 0.1), 1),
        "shapes": dict(sorted(mixture.shapes.items())), **seen.said(),
        "errors": errors, "warm_up_requests": warm_up,
        "rss_mib": {end: one["rss_mib"] for end, one in ends.items()},
        "rss_slope_mib_per_1000_requests": {
            "all": slope, **{role: memory.slope(warm_up, role) for role in warm[0]["rss_mib"]},
        },
        "descriptors": {end: one["descriptors"] for end, one in ends.items()},
        "samples": len(memory.samples),
    }, seen.problems  # fmt: skip


def _all_choices(reply: httpx2.Response) -> str:
    return " | ".join(str(one["message"]["content"]) for one in reply.json()["choices"])


def _chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(d).to_bytes(4) + k + d + zlib.crc32(k + d).to_bytes(4) for k, d in chunks
    )


def _png(colour: bytes) -> bytes:
    """64 x 64 pixels of one colour."""
    rows = b"".join(b"\0" + colour * 64 for _ in range(64))
    header = (64).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    return _chunked((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


async def leave(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """Clients that do not wait: what they asked for, 20 times 6 s, is not computed any more."""
    seen = Seen()
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    slowest_s = 0.0
    for number in range(20):
        stream = number % 2 == 0
        payload = json.dumps({**clients.body, "stream": stream, "diffusion": LONG}).encode()
        head = LOCAL_JSON + f"content-length: {len(payload)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(REQUEST_LINE + head + payload)
        if stream and b" 200 " not in await reader.readline():
            seen.problems.append("a stream did not begin")
        await asyncio.sleep(0.3)
        if await clients.ongoing() != 1:
            seen.problems.append("it was not being answered when its client left")
        writer.close()
        left_s = time.monotonic()
        while await clients.ongoing() and time.monotonic() < left_s + 10:
            await asyncio.sleep(0.01)
        slowest_s = max(slowest_s, time.monotonic() - left_s)
    if slowest_s > 2:
        seen.problems.append(f"a request ended {slowest_s:.1f} s after its client had left")
    await clients.must_answer()
    return {"slowest_end_s": round(slowest_s, 2), **seen.said()}, seen.problems


def hostile() -> dict[str, tuple[str, bytes, bytes]]:
    """Requests that must be refused at once: the code for it, header lines, body."""
    json_head = b"content-type: application/json\r\n"

    def chat(content: Any = "a question", **more: Any) -> tuple[bytes, bytes]:
        body = {"model": "medv-tiny", "messages": [{"role": "user", "content": content}], **more}
        return json_head, json.dumps(body).encode()

    def picture(url: str) -> tuple[bytes, bytes]:
        return chat(
            [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]
        )

    def data_url(data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    huge = (12_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    png = _chunked((b"IHDR", huge), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    steps = lambda value: chat(diffusion={"steps": value})  # noqa: E731
    return {
        "144 megapixels": ("E1204", *picture(data_url(png))),
        "pickle": ("E1202", *picture(data_url(b"\x80\x04\x95" + bytes(100)))),
        "file URL": ("E1704", *picture("file:///etc/passwd")),
        "URL of the cloud's metadata": (
            "E1704",
            *picture("http://169.254.169.254/latest/meta-data"),
        ),
        "URL of this machine": ("E1704", *picture("http://[::ffff:127.0.0.1]/")),
        "no base64": ("E1701", *picture("data:image/png;base64,!!!")),
        "64 images": (
            "E1701",
            *chat([{"type": "image_url", "image_url": {"url": data_url(b"x")}}] * 64),
        ),
        "steps 0": ("E1001", *steps(0)),
        "steps NaN": ("E1701", *steps(float("nan"))),
        "steps 1e9": ("E1701", *steps(10**9)),
        "steps text": ("E1001", *steps("many")),
        "n": ("E1701", *chat(n=10**9)),
        "max_tokens -1": ("E1701", *chat(max_tokens=-1)),
        "max_tokens 1e12": ("E1701", *chat(max_tokens=10**12)),
        "a million messages": (
            "E1701",
            json_head,
            b'{"model":"m","messages":[' + b"{}," * 10**6 + b"{}]}",
        ),
        "deep": ("E1701", json_head, b"[" * 10**5),
        "unknown field": ("E1701", *chat(stepps=3)),
        "no JSON": ("E1701", json_head, b"\xff\xfe"),
        "form": ("E1710", b"content-type: application/x-www-form-urlencoded\r\n", b"a=b"),
        "gzip": ("E1710", json_head + b"content-encoding: gzip\r\n", b"\x1f\x8b" + bytes(100)),
        "large header": ("E1711", json_head + b"x-a: " + b"a" * MIB + b"\r\n", b"{}"),
        "other host": ("E1705", json_head + b"host: attacker.example\r\n", b"{}"),
    }


async def attacks(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """Hostile requests: the refusal that is meant, within 100 ms, and hardly any memory."""
    seen, slowest = Seen(), {}
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    await clients.many(4, 3)
    before, most = endpoint.rss_bytes(), 0
    hundred = LOCAL_JSON + b"content-length: 100\r\n"
    slow_sender = asyncio.create_task(raw(endpoint, hundred, b"{"))
    for name, (meant, head, body) in hostile().items():
        times = []
        for _ in range(3):
            head_all = b"" if b"host:" in head else b"host: localhost\r\n"
            head_all += head + f"content-length: {len(body)}\r\n".encode()
            status, code, seconds = await raw(endpoint, head_all, body)
            times.append(seconds)
            if not 400 <= status < 500 or code != meant:
                seen.problems.append(f"{name}: status {status}, {code or 'no code'}, not {meant}")
        slowest[name] = min(times)
        most = max(most, endpoint.rss_bytes())
    length = f"content-length: {300 * MIB}\r\n".encode()
    tries = [await raw(endpoint, LOCAL_JSON + length, bytes(300 * MIB)) for _ in range(3)]
    slowest["300 MiB"] = min(seconds for *_, seconds in tries)
    if {(status, code) for status, code, _ in tries} != {(413, "E1703")}:
        seen.problems.append("300 MiB: another answer than 413")
    most = max(most, endpoint.rss_bytes())
    growth = (most - before) / MIB
    limit_s = 1.0 if short else 0.1  # a short run is for machines that do other things, too
    late = {name: round(s, 3) for name, s in slowest.items() if s > limit_s}
    if late:
        seen.problems.append(f"slower than {limit_s:g} s: {late}")
    if growth > 32:
        seen.problems.append(f"memory grew by {growth:.0f} MiB")
    status, code, seconds = await slow_sender
    if (status, code) != (408, "E1709"):
        seen.problems.append(f"slow sender: status {status}, {code or 'no code'}")
    await clients.must_answer()
    said = {"requests": len(slowest), "slowest_s": round(max(slowest.values()), 3)}
    said["slow_sender_s"] = round(seconds, 1)
    return {**said, "rss_growth_mib": round(growth, 1)}, seen.problems


async def raw(endpoint: Endpoint, head: bytes, body: bytes) -> tuple[int, str, float]:
    """Status, error code, and seconds from the end of the headers to the first byte of the
    answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(REQUEST_LINE + b"connection: close\r\n" + head + b"\r\n")
    begun_s = time.monotonic()

    async def send() -> None:
        try:
            for start in range(0, len(body), MIB):
                writer.write(body[start : start + MIB])
                await writer.drain()
                await asyncio.sleep(0)  # drain alone need not let the answer be seen
        except ConnectionError:
            return

    sending = asyncio.create_task(send())
    line, rest = b"", b""
    try:
        line = await asyncio.wait_for(reader.readline(), 60)
        seconds = time.monotonic() - begun_s
        rest = await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        seconds = time.monotonic() - begun_s
    await sending
    writer.close()
    code = re.search(rb'"code": ?"(E\d{4})"', rest)
    return int(line.split()[1]) if line else 0, code[1].decode() if code else "", seconds


async def redeploy(endpoint: Endpoint, short: bool) -> tuple[dict[str, Any], list[str]]:
    """Changed settings are deployed under load; no request fails."""
    seen, times = Seen(), 2 if short else 20
    clients = Clients(endpoint, seen)
    await clients.must_answer()
    settings = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
    settings["http_options"]["port"] = endpoint.port
    deployed = 0

    async def deployer() -> None:
        nonlocal deployed
        for number in range(times):
            await asyncio.sleep(2)
            old = set(endpoint.pids("ServeReplica"))
            assert old, "no replica runs"
            settings["applications"][0]["args"]["seed"] = number + 1
            await asyncio.to_thread(deploy, settings, endpoint.dashboard)
            for _ in range(600):
                now = set(endpoint.pids("ServeReplica"))  # by a name they get when they are ready
                if now and not old & now:
                    deployed += 1
                    break
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(deployer())
        while not working.done():
            await clients.many(8, 2)
    if set(seen.statuses) != {200}:
        seen.problems.append("other statuses than 200")
    if deployed < times:
        seen.problems.append(f"{deployed} of {times} deployments")
    return {"deployments": deployed, **seen.said()}, seen.problems


def deploy(settings: dict[str, Any], dashboard: int) -> None:
    """`serve deploy` of a file with these settings, at a head's dashboard."""
    file = Path(f"/tmp/medv-serve-{os.getpid()}.yaml")
    file.write_text(yaml.safe_dump(settings))
    address = f"http://127.0.0.1:{dashboard}"
    command = [str(Path(sys.executable).with_name("serve")), "deploy", "--address", address]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env=OPEN)
    file.unlink()
    if done.returncode:
        raise RuntimeError(f"serve deploy: {done.stderr.strip()[-300:]}")


@contextmanager
def medv_serve(*more: str, environment: dict[str, str] = ENVIRONMENT) -> Iterator[Endpoint]:
    """`medv serve` with the toy, on a free port. Raises SystemExit where it does not start, or
    end, in time."""
    port = free_port()
    process = subprocess.Popen(
        [*MEDV, "serve", "--port", str(port), *more], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        came, *_ = select.select([process.stdout], [], [], START_S)
        if not came or "answers as" not in process.stdout.readline():
            raise SystemExit("medv serve did not start")
        yield Endpoint(port, MARK)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise SystemExit("medv serve did not end") from None
    finally:
        end_all(process)


@contextmanager
def head() -> Iterator[Endpoint]:
    """A head of its own, and cluster/serve.yaml deployed on it."""
    from medv_ray.on_ray.front import CALLBACK

    port, gcs, dashboard = free_port(), free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="mh", dir="/tmp"))
    environment = OPEN | {CALLBACK: "medv_ray.on_ray.front:middlewares"}
    ports = {"port": gcs, "dashboard-port": dashboard}
    ports |= {"dashboard-agent-listen-port": free_port(), "ray-client-server-port": free_port()}
    how = ["--head", "--node-ip-address", "127.0.0.1", "--temp-dir", str(folder)]
    how += [word for name, one in ports.items() for word in (f"--{name}", str(one))]
    process = join(environment, f"127.0.0.1:{gcs}", 1, *how, cpus=2)
    try:
        settings = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text())
        settings["http_options"]["port"] = port
        wait_for(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), "the dashboard")
        deploy(settings, dashboard)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), "the application")
        yield Endpoint(port, MARK, dashboard)
    finally:
        end_all(process)
        shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> bool:
    """Whether it answers 200."""
    try:
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def _descriptors(pid: int) -> int:
    """Open files of a process; 0 for one that is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


Run = Callable[[Endpoint, bool], Awaitable[tuple[dict[str, Any], list[str]]]]
RUNS: dict[str, Run] = {
    run.__name__: run for run in (attacks, leave, soak, burst, overload, kills, stuck, redeploy)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=RUNS, action="append")
    parser.add_argument("--requests", type=int, help="of soak")
    parser.add_argument("--samples", type=Path, help="file for what soak measures on its way")
    args = parser.parse_args()
    failed = False
    runs = RUNS | {"soak": partial(soak, requests=args.requests, samples=args.samples)}
    for name in args.only or RUNS:
        served = medv_serve(*(SOAK if name == "soak" else ()))
        with head() if name == "redeploy" else served as endpoint:
            begun_s = time.monotonic()
            said, problems = asyncio.run(runs[name](endpoint, args.short))
        failed |= bool(problems)
        seconds = round(time.monotonic() - begun_s, 1)
        counted = dict(Counter(problems).most_common(10))
        print(
            json.dumps({"run": name, **said, "seconds": seconds, "problems": counted}), flush=True
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
