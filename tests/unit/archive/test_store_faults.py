"""A scoring job whose object store is busy, far away, or late with its listings."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
from medv_ray.errors import MedvError

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
DELAY_S = 0.1
LOSS = 0.05
RESEND_S = 0.2
"""Until a packet is sent again, at such a delay."""
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
PAGE = re.compile(rb"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", re.DOTALL)


class Faulty:
    """Before an S3 server: a share of 503, and seconds until a new object stands in listings."""

    def __init__(self, app: Any, busy: float = 0, late_s: float = 0) -> None:
        self.app, self.busy, self.late_s = app, busy, late_s
        self.rng = random.Random(0)
        self.since: dict[str, float] = {}
        self.refused = self.hidden = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if self.rng.random() < self.busy:
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("content-type", "application/xml")])
            return [BUSY]
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].split("/", 2)[-1]
        if method == "PUT":
            self.since.setdefault(path, time.monotonic())
        if not (self.late_s and method == "GET" and "list-type" in environ["QUERY_STRING"]):
            return self.app(environ, start)
        head: list[Any] = []
        body = b"".join(self.app(environ, lambda *given: head.extend(given)))
        listed = PAGE.sub(self._seen, body)
        sent = [(name, value) for name, value in head[1] if name.lower() != "content-length"]
        start(head[0], [*sent, ("content-length", str(len(listed)))])
        return [listed]

    def _seen(self, found: re.Match[bytes]) -> bytes:
        late = time.monotonic() - self.since.get(found[1].decode(), -99.0) < self.late_s
        self.hidden += late
        return b"" if late else found[0]


@contextmanager
def faulty(name: str, **faults: float) -> Iterator[tuple[Faulty, str]]:
    """The server, and the address of a run folder on it."""
    from moto.server import create_backend_app
    from werkzeug import serving

    class Quiet(serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *said: object) -> None:
            pass

    app = Faulty(create_backend_app("s3"), **faults)
    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    where = f"endpoint_override={server.host}:{server.port}&scheme=http"
    try:
        yield app, f"s3://bucket/{name}?{where}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def far(server: str) -> Iterator[tuple[list[int], str]]:
    """A way to the server that takes its time; the packets that were sent again, and the address of
    a run folder behind it. TCP shows a lost packet to nobody: what follows waits for it."""
    host, _, port = server.rpartition(":")
    rng, resent, loop = random.Random(0), list[int](), asyncio.new_event_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                lost = rng.random() < LOSS
                resent.extend([len(data)] * lost)
                await asyncio.sleep(DELAY_S + lost * RESEND_S)
                writer.write(data)
        writer.close()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    listening = loop.run_until_complete(asyncio.start_server(both, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    near = listening.sockets[0].getsockname()[1]
    try:
        yield resent, f"s3://bucket/far?endpoint_override=127.0.0.1:{near}&scheme=http"
    finally:
        for task in asyncio.all_tasks(loop):
            loop.call_soon_threadsafe(task.cancel)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def until_done(make, planned, out: str, rows: int, tries: int) -> list[str]:
    """Start the job until it is done; the codes of the ends before."""
    codes = []
    for _ in range(tries):
        try:
            assert make.job(planned, out).answered == rows
            return codes
        except MedvError as error:
            said = str(error)
            assert not any(word in said for word in ("127.0.0.1", "bucket", "AWS", "/")), said
            codes.append(error.code)
    pytest.fail(f"not done after {tries} tries: {codes}")


def test_a_third_of_all_requests_is_refused(make, s3_server, committed_ids):
    make.parquet(rows=12)
    planned = make.plan()
    with faulty("busy") as (server, out):
        server.busy = 0.3
        codes = until_done(make, planned, out, 12, 20)
        server.busy = 0
        found = committed_ids(out)
    assert len(found) == len(set(found)) == 12
    assert server.refused > 10
    assert set(codes) <= {"E1511"}


def test_a_store_that_is_far_away_costs_time_alone(make, s3_server, committed_ids):
    """200 ms there and back, and 5 % of the packets are sent again."""
    make.parquet(rows=2)
    planned = make.plan()
    with far(s3_server) as (resent, out):
        began = time.monotonic()
        assert until_done(make, planned, out, 2, 1) == []
        assert time.monotonic() - began > 10 * DELAY_S
        assert resent
    found = committed_ids("s3://bucket/far")
    assert len(found) == len(set(found)) == 2


def test_new_objects_that_listings_do_not_show_yet(make, s3_server, committed_ids):
    """As of stores before 2020: the job that goes on does again what it does not see."""
    make.parquet(rows=12)
    planned = make.plan()
    with faulty("late", late_s=3600) as (server, out):
        make.job(planned, out, stop_after=1)
        server.late_s = 0
        make.job(planned, out, stop_after=1)
        server.late_s = 3600
        assert until_done(make, planned, out, 12, 1) == []
        assert server.hidden
        server.late_s = 0
        found = committed_ids(out)
    assert len(found) == len(set(found)) == 12


def test_a_part_that_listings_do_not_show_yet_is_not_called_missing(make, s3_server):
    make.parquet(rows=8)
    planned = make.plan()
    with faulty("part") as (server, out):
        make.job(planned, out, stop_after=1)
        server.late_s = 3600
        server.since = {path: at for path, at in server.since.items() if "/rows/" in path}
        assert until_done(make, planned, out, 8, 1) == []
        assert server.hidden


def test_a_lock_is_kept_where_listings_are_late(s3_server):
    with faulty("lock", late_s=3600) as (server, out):
        lock = Lock(Store(out))
        lock.acquire()
        lock.check()
        assert server.hidden
        lock.release()
