"""Pictures by URL: from the hosts that are named, at a public address, and nothing beside."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from medv_ray.errors import DataError
from medv_ray.serving import fetch
from medv_ray.serving.options import FetchSettings
from tests.unit.serving.conftest import until

pytestmark = pytest.mark.integration

HOST, PUBLIC = "images.example.org", "93.184.215.14"
DATA = b"\x89PNG of a patient"
Handler = Callable[[httpx2.Request], httpx2.Response]


class Net:
    """Names, and what answers; notes who was asked for what."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {HOST: [PUBLIC]}
        self.handler: Handler = lambda _: httpx2.Response(200, content=iter([DATA]))
        self.resolved: list[str] = []
        self.requests: list[httpx2.Request] = []

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.resolved.append(host)
        if host not in self.addresses:
            raise socket.gaierror(-2, f"{host} is not known")
        return [(2, 1, 6, "", (address, port)) for address in self.addresses[host]]

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return self.handler(request)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    made = Net()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    client = partial(httpx2.Client, transport=httpx2.MockTransport(made.handle))
    monkeypatch.setattr(httpx2, "Client", client)
    return made


def get(url: str = f"https://{HOST}/a.png", **settings: Any) -> bytes:
    return fetch.fetcher(FetchSettings(**{"hosts": (HOST,), **settings}))(url)


def refused(url: str = f"https://{HOST}/a.png", **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        get(url, **settings)
    assert caught.value.code == "E1704"
    assert "a.png" not in caught.value.detail
    assert PUBLIC not in caught.value.detail
    return caught.value.detail


def test_the_connection_goes_to_the_address_that_was_looked_at(net: Net) -> None:
    assert get(f"https://{HOST.upper()}:443/a.png?b=c") == DATA
    assert net.resolved == [HOST]
    [request] = net.requests
    assert str(request.url) == f"https://{PUBLIC}/a.png?b=c"
    assert request.headers["host"] == HOST
    assert request.extensions["sni_hostname"] == HOST, "whose certificate is asked for"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


def test_ipv6_is_taken_as_well(net: Net) -> None:
    net.addresses[HOST] = ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"]
    assert get() == DATA
    assert net.requests[0].url.host == net.addresses[HOST][0]


@pytest.mark.parametrize(
    "host", ["https://a.org", "a.org/", "a.org:443", "*.a.org", "[::1]", "ä.org", ""]
)
def test_what_is_no_host_name_is_no_setting(host: str) -> None:
    """No picture would ever come from it."""
    with pytest.raises(ValidationError, match="hosts"):
        FetchSettings(hosts=(host,))


def test_without_hosts_nothing_is_fetched(net: Net) -> None:
    assert "fetches no URL" in refused(hosts=())
    assert not net.resolved + net.requests  # type: ignore[operator]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.org/a.png",
        f"https://sub.{HOST}/a.png",
        f"https://{HOST}./a.png",
        f"https://{HOST}.evil.org/a.png",
        f"https://evil.org/{HOST}/a.png",
        f"https://evil.org#@{HOST}/a.png",
        f"https://{HOST}@evil.org/a.png",
        f"https://user:word@{HOST}/a.png",
        f"https://@{HOST}/a.png",
        f"https://evil.org\\@{HOST}/a.png",
        f"https://{HOST}:8443/a.png",
        f"https://{HOST}:0/a.png",
        f"https://{HOST}:99999/a.png",
        f"http://{HOST}/a.png",
        f"ftp://{HOST}/a.png",
        f"//{HOST}/a.png",
        "file:///etc/a.png",
        "https:///a.png",
        "https://[::1/a.png",
        "https://127.0.0.1/a.png",
        "",
    ],
)
def test_other_places(net: Net, url: str) -> None:
    refused(url)
    assert not net.resolved
    assert not net.requests


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::127.0.0.1",
        "64:ff9b::a00:1", "2002:a00:1::", "2001:db8::1", "2001::1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_addresses_that_are_no_public_ones(net: Net, address: str, first: bool) -> None:
    net.addresses[HOST] = [address, PUBLIC] if first else [PUBLIC, address]
    assert "no public one" in refused()
    assert not net.requests


def test_a_name_without_address(net: Net) -> None:
    net.addresses.clear()
    refused()


@pytest.mark.parametrize("status", [301, 302, 307, 308, 204, 206, 403, 500])
def test_no_redirect_is_followed_and_only_200_counts(net: Net, status: int) -> None:
    there = {"location": "https://127.0.0.1/a.png"}
    net.handler = lambda _: httpx2.Response(status, headers=there, content=DATA)
    assert str(status) in refused()
    assert len(net.requests) == 1


def test_a_large_answer_is_left_as_soon_as_it_is_too_large(net: Net) -> None:
    given: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            given.append(1000)
            yield b"x" * 1000

    net.handler = lambda _: httpx2.Response(200, content=endless())
    assert "5000 bytes" in refused(max_bytes=5000)
    assert sum(given) <= 6000
    net.handler = lambda _: httpx2.Response(200, content=iter([b"x" * 5000]))
    assert len(get(max_bytes=5000)) == 5000


def test_a_slow_answer_is_left(net: Net) -> None:
    def slow() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.02)
            yield b"x"

    net.handler = lambda _: httpx2.Response(200, content=slow())
    started_s = time.monotonic()
    assert "0.1 s" in refused(seconds=0.1)
    assert time.monotonic() - started_s < 1.8


def test_a_slow_name_server_is_left_and_nothing_is_asked_after_it(net: Net) -> None:
    goes_on, quick = threading.Event(), net.getaddrinfo

    def slow(*given: Any, **named: Any) -> list[Any]:
        goes_on.wait(10)
        return quick(*given, **named)

    socket.getaddrinfo = slow  # undone by `net`
    started_s = time.monotonic()
    assert "0.1 s" in refused(seconds=0.1)
    assert time.monotonic() - started_s < 5
    goes_on.set()
    until(lambda: fetch.FETCHES._value == 128)
    assert net.resolved == [HOST]
    assert not net.requests


def test_a_host_that_says_nothing_after_a_slow_name_has_what_is_left(net: Net) -> None:
    """0.3 s for the name and 0.3 s for the host are over 0.4 s together."""
    quick = net.getaddrinfo

    def slow(*given: Any, **named: Any) -> list[Any]:
        time.sleep(0.3)
        return quick(*given, **named)

    def silent(_: httpx2.Request) -> httpx2.Response:
        time.sleep(0.3)
        return httpx2.Response(200, content=iter([DATA]))

    socket.getaddrinfo, net.handler = slow, silent
    assert "0.4 s" in refused(seconds=0.4)
    assert get(seconds=5) == DATA


def test_those_that_are_left_behind_are_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCHES", threading.BoundedSemaphore(1))
    goes_on = threading.Event()
    socket.getaddrinfo = lambda *_, **__: goes_on.wait(10) and [(2, 1, 6, "", (PUBLIC, 443))]
    assert "0.05 s" in refused(seconds=0.05)
    assert "too many" in refused()
    goes_on.set()
    until(lambda: fetch.FETCHES._value == 1)
    assert get() == DATA


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ReadTimeout, httpx2.ProxyError])
def test_what_goes_wrong_on_the_way(net: Net, error: type[Exception]) -> None:
    def fails(_: httpx2.Request) -> httpx2.Response:
        raise error(f"a.png at {PUBLIC}")

    net.handler = fails
    assert error.__name__ in refused()


@pytest.mark.parametrize("path", ["/\x00a.png", "/\x7fa.png", "/" + "a.png" * 20_000])
def test_urls_that_the_client_does_not_take(net: Net, path: str) -> None:
    refused(f"https://{HOST}{path}")
    assert not net.requests
