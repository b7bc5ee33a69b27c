"""Pictures by https, from hosts that the settings name and from nowhere else.

A name is resolved once; the connection goes to that address, which must be a public one, so that a
second answer of a name server can not lead elsewhere. No redirect is followed. One deadline holds
for name, connection and picture together.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from urllib.parse import urlsplit

import httpx2

from medv_ray.errors import DataError
from medv_ray.serving.options import FetchSettings

FETCHES = threading.BoundedSemaphore(128)
"""Pictures that are being fetched, those that nobody waits for any more included."""
_UNICAST = ipaddress.ip_network("2000::/3")
Fetch = Callable[[str], bytes]
"""An image by its URL. Raises DataError E1704."""


def fetcher(settings: FetchSettings) -> Fetch:
    """What brings pictures as the settings allow."""
    hosts = {host.lower() for host in settings.hosts}

    def fetch(url: str) -> bytes:
        host = _host(url, hosts)
        deadline = time.monotonic() + settings.seconds
        # the system's resolver knows no deadline, and a host may send byte by byte
        fetching = _beside(lambda: _get(url, host, _address(host), settings, deadline))
        try:
            return fetching.result(settings.seconds)
        except TimeoutError:
            raise _late(settings) from None

    return fetch if hosts else _none


def _beside(work: Callable[[], bytes]) -> Future[bytes]:
    """What some work gives, in a thread that may be left behind."""
    if not FETCHES.acquire(blocking=False):
        raise DataError("E1704", "too many pictures are being fetched; send it as a data: URL.")
    done: Future[bytes] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        finally:
            FETCHES.release()

    threading.Thread(target=run, name="medv-fetch", daemon=True).start()
    return done


def _late(settings: FetchSettings) -> DataError:
    return DataError("E1704", f"the picture took over {settings.seconds:g} s.")


def _none(url: str) -> bytes:
    raise DataError(
        "E1704", "pictures come as data:image/...;base64,... ; this endpoint fetches no URL."
    )


def _host(url: str, hosts: set[str]) -> str:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise DataError("E1704", "this is no URL.") from None
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc:
        raise DataError("E1704", "pictures are fetched by https, without port or user name, only.")
    if host not in hosts:
        raise DataError("E1704", "this host is none that pictures are fetched from.")
    return host


def _address(host: str) -> str:
    """The one address that is used. Raises DataError E1704 where any of the host's is private."""
    try:
        answers = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError:
        raise DataError("E1704", "the host's name has no address.") from None
    found = [str(address[0]) for *_, address in answers]
    for text in found:
        if not _is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise DataError("E1704", "the host's address is no public one.")
    return found[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        # 64:ff9b::/96 and 2002::/16, which count as global, lead to any IPv4 address
        return address in _UNICAST and address.sixtofour is None and address.is_global
    return address.is_global and not address.is_multicast


def _get(url: str, host: str, address: str, settings: FetchSettings, deadline: float) -> bytes:
    literal = f"[{address}]" if ":" in address else address
    pinned = urlsplit(url)._replace(netloc=literal).geturl()
    pieces, size = [], 0
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise _late(settings)
    try:
        with (
            httpx2.Client(timeout=left_s, trust_env=False) as client,
            client.stream(
                "GET",
                pinned,
                # what comes is taken as it is
                headers={"host": host, "accept-encoding": "identity"},
                extensions={"sni_hostname": host},
            ) as reply,
        ):
            if reply.status_code != 200:
                raise DataError("E1704", f"the host answered with status {reply.status_code}.")
            for piece in reply.iter_raw():
                pieces.append(piece)
                size += len(piece)
                if size > settings.max_bytes:
                    limit = settings.max_bytes
                    raise DataError("E1704", f"the picture has over {limit} bytes, the limit.")
                if time.monotonic() > deadline:
                    raise _late(settings)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DataError("E1704", f"the picture did not come ({type(error).__name__}).") from None
    return b"".join(pieces)
