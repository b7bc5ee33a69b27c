"""Forms that bring a file: on disk as they arrive, and what is said of those that are none."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medv_ray.serving.auth import Keys, _digest
from medv_ray.serving.batch.shelf import Shelf
from medv_ray.serving.batch.upload import Spool
from medv_ray.serving.guard import UPLOAD, Guard, Policy, Receive, Scope, Send
from medv_ray.serving.options import BatchSettings, LimitSettings
from tests.unit.serving.client import KEY, Connection, Reply

BOUNDARY = "a-boundary-0123"
FILE = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
BEARER = {"authorization": f"Bearer {KEY}"}


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    kind = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n'
    more = "Content-Type: application/octet-stream\r\n" if filename is not None else ""
    return f"{head}{more}\r\n".encode() + data + b"\r\n"


def form(file: bytes = FILE, purpose: str = "batch", filename: str = "in.jsonl") -> bytes:
    return part("purpose", purpose.encode()) + part("file", file, filename) + end()


def end() -> bytes:
    return f"--{BOUNDARY}--\r\n".encode()


class Behind:
    """The application behind the guard: what it is given of an upload."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = BatchSettings(folder=str(folder), **settings)
        self.shelf = Shelf(self.settings)
        self.taken: dict[str, Any] = {}
        self.content = b""
        keys = Keys({"alice": _digest(KEY)})
        policy = Policy(LimitSettings(), keys, uploads=Spool(self.shelf))
        self.app = Guard(self._answer, policy)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.taken = scope[UPLOAD]
        path = self.shelf.incoming(self.taken["id"])
        self.content = Path(path).read_bytes()
        assert os.stat(path).st_mode & 0o77 == 0
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def send(self, body: Any, **named: Any) -> Reply:
        async def run() -> Reply:
            headers = {**FORM, **BEARER, **named.pop("headers", {})}
            connection = Connection(body, path="/v1/files", headers=headers, **named)
            return await asyncio.wait_for(connection.run(self.app), 30)

        reply = asyncio.run(run())
        assert os.listdir(self.shelf.path("incoming")) == []  # nothing is left, whatever it was
        return reply


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_a_form_in_pieces_of_any_size(tmp_path: Path, size: int) -> None:
    behind, body = Behind(tmp_path), form()
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    assert behind.send(pieces).status == 200
    assert behind.content == FILE
    assert behind.taken["filename"] == "in.jsonl"
    assert (behind.taken["bytes"], behind.taken["fields"]) == (len(FILE), {"purpose": "batch"})


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    line = b'{"custom_id": "a", "pad": "' + b"x" * 2**16 + b'"}\n'
    behind = Behind(tmp_path)

    def pieces() -> Iterator[bytes]:
        yield form().partition(FILE)[0]
        for _ in range(300):
            yield line
        yield b"\r\n" + end()

    sizes = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        sizes.append(scope[UPLOAD]["bytes"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    behind.app._app = answer
    tracemalloc.start()
    assert behind.send(pieces()).status == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [300 * len(line)]
    assert sizes[0] > 19_000_000
    assert peak < 6_000_000


PNG = b"\x89PNG\r\n\x1a\n\0\0"
REFUSED: dict[str, tuple[Any, str, str]] = {
    "empty": (form(b""), "E1701", "file: it is empty"),
    "blank": (form(b"\n \n"), "E1701", "it is empty"),
    "a picture": (form(PNG + b"x" * 99), "E1701", "no text in UTF-8"),
    "UTF-16": (form("{}\n".encode("utf-16")), "E1701", "no text in UTF-8"),
    "a NUL": (form(b"{}\n\0\n"), "E1701", "no text in UTF-8"),
    "gzip": (form(b"\x1f\x8b\x08xxxx"), "E1701", "no text in UTF-8"),
    "no file": (part("purpose", b"batch") + end(), "E1701", "file: is missing"),
    "cut": (form()[:-9], "E1701", "before its last boundary"),
    "no form": (b"{}", "E1701", "no form that can be read"),
    "another field": (part("user", b"x") + form(), "E1701", "another field"),
    "twice": (part("file", FILE, "x") + form(), "E1701", "or one twice"),
    "a long field": (part("purpose", b"x" * 2000) + form(), "E1701", "purpose: over 1024"),
    "long headers": (part("file", FILE, "x" * 9000) + form(), "E1701", "form"),
    "too large": (form(b"x" * 5001), "E1703", "file: it has over 5000 bytes"),
    "too many lines": (form(b"{}\n" * 101), "E1701", "over 100 lines"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(tmp_path: Path, what: str) -> None:
    body, code, words = REFUSED[what]
    behind = Behind(tmp_path, max_file_bytes=5000, max_lines=100)
    error = behind.send(body).error
    assert error["code"] == code
    assert words in error["message"]
    field, colon, _ = error["message"].partition(": ")
    assert error["param"] == (field if colon and field in ("file", "purpose") else None)
    assert behind.taken == {}


def test_a_file_of_the_largest_size_and_cut_in_a_character(tmp_path: Path) -> None:
    behind = Behind(tmp_path, max_file_bytes=5000, max_lines=100)
    text = ("x" * 4095 + "ä" * 3).encode()  # judged by 4096 bytes, the last of which is half of one
    assert behind.send(form(text + b"\n" * 99 + b"y" * (5000 - len(text) - 99))).status == 200
    assert len(behind.content) == 5000


def test_an_announced_size_is_refused_unread(tmp_path: Path) -> None:
    behind = Behind(tmp_path)
    reply = behind.send([b"x"], headers={"content-length": str(10**12)})
    assert reply.error["code"] == "E1703"
    for headers, code in (
        ({"content-type": "multipart/form-data"}, "E1701"),
        ({"content-encoding": "gzip"}, "E1710"),
        ({"authorization": "Bearer x"}, "E1702"),
    ):
        assert behind.send(form(), headers=headers).error["code"] == code


def test_a_client_that_leaves_or_dawdles(tmp_path: Path) -> None:
    behind = Behind(tmp_path, upload_seconds=0.05)

    async def run(leave: bool) -> Reply:
        class Slow(Connection):
            async def receive(self) -> Any:
                if self.taken:
                    if leave:
                        return {"type": "http.disconnect"}
                    await asyncio.sleep(30)
                return await super().receive()

        slow = Slow([form()[:99], form()[99:]], path="/v1/files", headers={**FORM, **BEARER})
        return await asyncio.wait_for(slow.run(behind.app), 30)

    for leave, words in ((True, "ended early"), (False, "over 0.05 s")):
        error = asyncio.run(run(leave)).error
        assert error["code"] == "E1709"
        assert words in error["message"]
        assert os.listdir(behind.shelf.path("incoming")) == []


def test_blank_lines_before_the_first_request(tmp_path: Path) -> None:
    behind = Behind(tmp_path)
    data = b"\n \r\n" * 5000 + FILE
    assert behind.send([form(data)[:30_000], form(data)[30_000:]]).status == 200
    assert behind.content == data


def test_a_front_hands_on_a_file_longer_than_a_body(tmp_path: Path) -> None:
    """Serve's proxy has put it on disk; the replica sees the length that the client announced."""
    front = Behind(tmp_path)
    replica = Guard(front._answer, Policy(LimitSettings(max_body_bytes=10), Keys({})))
    front.app = Guard(replica, Policy(LimitSettings(), Keys({}), uploads=Spool(front.shelf)))
    assert front.send(form()).status == 200
    assert front.content == FILE


def test_so_many_at_once(tmp_path: Path) -> None:
    behind = Behind(tmp_path, uploads=1)

    async def run() -> list[int]:
        headers = {**FORM, **BEARER}
        waiting = Connection([form()[:99], form()[99:]], path="/v1/files", headers=headers)
        held = asyncio.Event()

        async def receive() -> Any:
            if waiting.taken:
                await held.wait()
            return await Connection.receive(waiting)

        waiting.receive = receive  # type: ignore[method-assign]
        first = asyncio.ensure_future(waiting.run(behind.app))
        while not waiting.taken:
            await asyncio.sleep(0.001)
        second = await Connection(form(), path="/v1/files", headers=headers).run(behind.app)
        held.set()
        third = await first
        return [second.status, third.status]

    assert asyncio.run(run()) == [429, 200]


def test_a_page_of_another_site_without_keys(tmp_path: Path) -> None:
    behind = Behind(tmp_path)
    policy = Policy(LimitSettings(), Keys({}), uploads=Spool(behind.shelf))
    behind.app = Guard(behind._answer, policy)
    for origin in ("https://example.org", "null", "http://localhost.example.org"):
        assert behind.send(form(), headers={"origin": origin}).error["code"] == "E1705"
    for origin in ("http://localhost:8000", "http://127.0.0.1"):
        assert behind.send(form(), headers={"origin": origin}).status == 200


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import medv_ray.serving.batch.upload as module

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(module, "_flush", full)
    reply = Behind(tmp_path).send(form())
    assert (reply.status, reply.error["code"]) == (503, "E1503")


def test_what_came_whole_is_not_waited_for(tmp_path: Path) -> None:
    behind = Behind(tmp_path)

    async def run() -> Reply:
        connection = Connection(form(b""), path="/v1/files", headers={**FORM, **BEARER})
        ended = False

        async def receive() -> Any:
            nonlocal ended
            assert not ended, "the client has sent all"
            message = await Connection.receive(connection)
            ended = not message.get("more_body", False)
            return message

        connection.receive = receive  # type: ignore[method-assign]
        return await asyncio.wait_for(connection.run(behind.app), 30)

    assert asyncio.run(run()).error["code"] == "E1701"
