"""`medv doctor`: who may run code through Ray's dashboard, and whether the clocks agree.

A dashboard that answers without a token runs the code of whoever reaches it (CVE-2023-48022,
ShadowRay); on the loopback address that is every user and program of this machine. So it is asked,
as a stranger would ask it: what an environment variable says of a Ray that was started elsewhere
proves nothing.
"""

from __future__ import annotations

import ctypes
import http.client
import ipaddress
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from medv_ray.on_ray.findings import Check

PORT = 8265
TRIED = 6
"""Ports from there on: Ray takes the next one where another program has it."""
TABLES, LISTEN = ("/proc/net/tcp", "/proc/net/tcp6"), "0A"
NAMED = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
JOBS, MODE = "/api/jobs/", "/api/authentication_mode"
ASK_S = 10.0
ANSWER_BYTES = 2**20
START = "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1"
TOKEN_FIX = f"`ray stop`, `ray get-auth-token --generate`, then `{START}`"
LOOPBACK_FIX = f"start the head with `{START}` and reach it through an SSH tunnel"

OFF_S = 5.0
"""By which the clocks of two machines may differ."""
TIMEX_BYTES, STATUS_OFFSET, UNSYNCHRONISED = 256, 40, 0x40
"""Linux's `struct timex` with room to spare, where its status stands, and STA_UNSYNC."""


class Reply(NamedTuple):
    """What an address says to a stranger who asks for its jobs."""

    kind: Literal["open", "token", "other", "silent"]
    status: int = 0
    date: str | None = None


def check_cluster(named: str | None = None) -> Iterator[Check]:
    """Each dashboard that is named, here or in Ray's environment variables, and those of this
    machine."""
    told = [named] if named else []
    told += [given for name in NAMED if (given := os.environ.get(name))]
    asked: set[tuple[str, int]] = set()
    for address in told:
        try:
            where = urlsplit(address if "://" in address else f"http://{address}")
            host, port = where.hostname or "", where.port or PORT
        except ValueError:
            host, port = "", 0
        if not host or where.scheme not in ("http", "https"):
            said = "an address that was named is none of HTTP"
            yield Check("fault", "ray dashboard", said, "give it as http://HOST:8265")
        elif (host, port) not in asked:
            asked.add((host, port))
            yield from _dashboard(host, port, where.scheme, True)
    ports = range(PORT, PORT + TRIED)
    found = [(port, one) for port in ports for one in sorted(listeners(port), key=str)]
    for port, listener in found:
        host = listener
        if ipaddress.ip_address(listener).is_unspecified:
            host = "::1" if ":" in listener else "127.0.0.1"
        if (host, port) in asked:
            continue
        # what else listens at one of the others is nobody's concern
        if port == PORT or ask(host, port).kind in ("open", "token"):
            asked.add((host, port))
            yield from _dashboard(host, port, "http", False)
    if not asked and not told:
        said = f"none at ports {ports[0]} .. {ports[-1]} of this machine"
        yield Check("ok", "ray dashboard", said)


def _dashboard(host: str, port: int, scheme: str, must_answer: bool) -> Iterator[Check]:
    name = f"ray dashboard {host}:{port}"
    reply = ask(host, port, scheme)
    beyond = is_beyond(host, port)
    if reply.kind == "open":
        who = "who reaches that address" if beyond else "every user and program of this machine"
        yield Check("fault", name, f"it takes jobs without a token: {who} can run code", TOKEN_FIX)
    elif reply.kind == "token" and beyond and scheme == "http":
        said = "it asks for a token, which others of the network could read on its way (no TLS)"
        yield Check("warning", name, said, LOOPBACK_FIX)
    elif reply.kind == "token":
        yield Check("ok", name, "it asks for a token" + ("" if beyond else "; this machine only"))
    elif reply.kind == "other":
        said = f"what answers there (HTTP {reply.status}) is no dashboard of Ray that is known here"
        yield Check("warning", name, said, "find out what listens there, and who can reach it")
    elif must_answer:
        yield Check("fault", name, "nothing answers", "check the address; does the head run?")
    else:
        said = f"something listens there and has not answered within {ASK_S:g} s"
        yield Check("warning", name, said, "find out what it is, and who can reach it")
    if reply.date is not None:
        yield from _agrees(name, reply.date)


def ask(host: str, port: int, scheme: str = "http") -> Reply:
    """Ask for the list of jobs without a token, for `ASK_S` altogether: a name may take long to
    resolve, and what listens there may send a byte now and then. Proxies and redirects are left
    alone."""
    replies: list[Reply] = []
    asking = threading.Thread(
        target=lambda: replies.append(_asked(host, port, scheme == "https")), daemon=True
    )
    asking.start()
    asking.join(ASK_S)
    return replies[0] if replies else Reply("silent")


def _asked(host: str, port: int, secure: bool) -> Reply:
    def connection() -> http.client.HTTPConnection:
        if not secure:
            return http.client.HTTPConnection(host, port, timeout=ASK_S)
        # a stranger who means harm takes a certificate that nobody has signed
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(host, port, timeout=ASK_S, context=context)

    try:
        status, date, body = _get(connection(), JOBS)
        if status in (401, 403):
            _, _, shown = _get(connection(), MODE)
            guarded = _field(shown, "authentication_mode") == "token"
            return Reply("token" if guarded else "other", status, date)
    except (OSError, http.client.HTTPException, ValueError):
        return Reply("silent")
    is_list = status == 200 and isinstance(_json(body), list)
    return Reply("open" if is_list else "other", status, date)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, str | None, bytes]:
    try:
        connection.request("GET", path, headers={"accept": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.getheader("date"), reply.read(ANSWER_BYTES)
    finally:
        connection.close()


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        # a long list of jobs is cut; a page of HTML begins otherwise
        return [] if len(body) == ANSWER_BYTES and body.lstrip().startswith(b"[") else None


def _field(body: bytes, name: str) -> object:
    found = _json(body)
    return found.get(name) if isinstance(found, dict) else None


def is_beyond(host: str, port: int) -> bool:
    """Whether others than this machine can reach a port: by its own address, or as its process
    listens at one besides the loopback."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return not loopback or any(not ipaddress.ip_address(one).is_loopback for one in listeners(port))


def listeners(port: int) -> set[str]:
    """Addresses of this machine at which a port is listened at."""
    tables = [path for path in map(Path, TABLES) if path.exists()]
    found = set()
    for fields in (line.split() for table in tables for line in table.read_text().splitlines()[1:]):
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == LISTEN and int(hexadecimal, 16) == port:
            found.add(_address(address))
    return found


def _address(words: str) -> str:
    """Of an address in /proc/net/tcp: words of 4 bytes, each in the machine's order."""
    parts = [bytes.fromhex(words[i : i + 8]) for i in range(0, len(words), 8)]
    packed = b"".join(part[::-1] if sys.byteorder == "little" else part for part in parts)
    found = ipaddress.ip_address(packed)
    return str(getattr(found, "ipv4_mapped", None) or found)


def check_clock() -> Iterator[Check]:
    """Whether the time of day is likely, and something keeps it."""
    fix = "let chrony or systemd-timesyncd keep it: object stores refuse requests 15 minutes off"
    if time.time() < Path(__file__).stat().st_mtime - 86400:
        yield Check("fault", "clock", "it stands before this package was installed", fix)
        return
    kept = is_kept()
    if kept is None:
        yield Check("warning", "clock", "the kernel does not tell whether something keeps it", fix)
    elif not kept:
        yield Check("warning", "clock", "no time service keeps it", fix)
    else:
        yield Check("ok", "clock", "a time service keeps it")


def is_kept() -> bool | None:
    """Whether the kernel holds its clock for synchronised; None where it does not tell."""
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)  # modes = 0: nothing is set
    try:
        if ctypes.CDLL(None).adjtimex(buffer) < 0:
            return None
    except (AttributeError, OSError):
        return None
    status = int.from_bytes(buffer.raw[STATUS_OFFSET : STATUS_OFFSET + 4], sys.byteorder)
    return not status & UNSYNCHRONISED


def _agrees(name: str, date: str) -> Iterator[Check]:
    """A finding where the head's clock differs from this machine's."""
    try:
        off_s = parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return
    if abs(off_s) > OFF_S:
        said = f"its clock is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} this one"
        yield Check("warning", name, said, "let a time service keep both clocks")
