"""What a server may do wrong, and what becomes of it."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.dicomweb.multipart import media_type
from medv_ray.dicomweb.search import Instance
from medv_ray.dicomweb.token import Token, token_of
from medv_ray.errors import SettingsError
from tests.dicomweb_server import BOUNDARY, Pacs, Reply, basic, picture, serving

pytestmark = pytest.mark.integration

ONE = picture(1)
PATH = Instance("2.25.1", "2.25.1.1", "2.25.1.1.1").path
KIND = {"content-type": f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'}
HEAD = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
END = f"\r\n--{BOUNDARY}--".encode()


def fail(pacs: Pacs, *replies: Reply) -> None:
    """The next requests are answered so; those after them as they should."""
    left = list(replies)
    pacs.faults.append(lambda method, path: left.pop(0) if left else None)


def test_an_object_comes_whole_in_its_own_syntax_and_nothing_is_logged(
    pacs: Pacs, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pacs.add(ONE)
    assert client.instance(PATH, 10_000) == ONE
    assert "transfer-syntax=*" in pacs.headers[0]["accept"]
    assert "authorization" not in pacs.headers[0]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"content-type": "application/dicom"}, ONE),
        Reply(200, KIND, b"preamble\r\n" + HEAD + ONE + END),
        Reply(200, KIND, HEAD + ONE + END + b"\r\nepilogue"),
        Reply(
            200,
            {"content-type": f"multipart/related; boundary*=utf-8''{BOUNDARY}"},
            HEAD + ONE + END,
        ),
    ],
    ids=["one part", "preamble", "epilogue", "RFC 2231"],
)
def test_other_forms_of_an_answer(pacs: Pacs, client: Client, reply: Reply) -> None:
    fail(pacs, reply)
    assert client.instance(PATH, 10_000) == ONE
    assert len(pacs.seen) == 1


@pytest.mark.parametrize("charset", ["utf\0-8", "no-such", "", "\xff"])
def test_a_boundary_in_a_charset_that_is_none_is_taken_as_it_is(charset: str) -> None:
    kind = f"multipart/related; boundary*={charset}''abc"
    assert media_type(kind) == ("multipart/related", {"boundary": "abc"})


@pytest.mark.parametrize(
    ("reply", "waits"),
    [
        (Reply(503, {"retry-after": "7"}), [7.0]),
        (Reply(429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), [0.0]),
        (Reply(429, {"retry-after": "100000"}), [60.0]),
        (Reply(504), None),
        (Reply(500), None),
        (Reply(200, KIND, HEAD + ONE[:500], cut=900), None),
        (Reply(200, KIND, HEAD + ONE[:500]), None),
        (Reply(200, KIND, b""), None),
    ],
    ids=["503", "date", "long", "504", "500", "connection", "multipart", "empty"],
)
def test_what_passes_is_tried_again(
    pacs: Pacs, client: Client, reply: Reply, waits: list[float] | None
) -> None:
    pacs.add(ONE)
    fail(pacs, reply)
    assert client.instance(PATH, 10_000) == ONE
    waited = client.waited  # type: ignore[attr-defined]
    assert waited == waits if waits else 0.5 <= waited[0] <= 1.0


@pytest.mark.parametrize(
    ("reply", "kind", "said", "tries"),
    [
        (Reply(503), "away", "it answered 503", 3),
        (Reply(500), "odd", "it answered 500", 3),
        (Reply(200, KIND, HEAD + ONE[:500]), "odd", "its answer is cut short", 3),
        (Reply(200, KIND, HEAD + ONE[:500], cut=900), "away", "no whole answer", 3),
        (Reply(200, {"content-type": "text/html"}, b"<html>log in"), "odd", "no DICOM object", 1),
        (Reply(200, {"content-type": "multipart/related"}, HEAD + ONE + END), "odd", "no DICOM", 1),
        (Reply(200, KIND, b"x" * 70_000), "large", "over the limit", 1),
        (Reply(200, KIND | {"content-encoding": "gzip"}, b"x"), "odd", "compressed", 1),
        (Reply(404), "gone", "it answered 404", 1),
        (Reply(410), "gone", "it answered 410", 1),
        (Reply(401), "refused", "it answered 401", 1),
        (Reply(403), "refused", "it answered 403", 1),
        (Reply(400), "odd", "it answered 400", 1),
        (Reply(302, {"location": "https://elsewhere.example/"}), "refused", "another server", 1),
        (Reply(302, {"location": "//["}), "refused", "another server", 1),
        (Reply(307, {"location": ""}), "refused", "redirects more than", 4),
    ],
)
def test_what_does_not_pass_is_told_by_kind(
    pacs: Pacs, client: Client, reply: Reply, kind: str, said: str, tries: int
) -> None:
    pacs.faults.append(lambda method, path: reply)
    with pytest.raises(Trouble) as caught:
        client.instance(PATH, 2000)
    assert (caught.value.kind, said in caught.value.said) == (kind, True)
    assert len(pacs.seen) == tries
    assert "2.25" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_a_server_that_is_not_there_is_away() -> None:
    with serving(Pacs()) as pacs:
        url = pacs.url
    waited: list[float] = []
    client = Client(url, tries=4, sleep=waited.append)
    with pytest.raises(Trouble, match="ConnectError") as caught:
        client.instance(PATH, 2000)
    assert caught.value.kind == "away"
    assert [0.5 <= w / 2**k <= 1 for k, w in enumerate(waited)] == [True] * 3


def test_no_more_is_read_than_the_limit(pacs: Pacs, client: Client) -> None:
    """Whatever length the server announces."""
    pacs.faults.append(lambda method, path: Reply(200, KIND, b"", cut=10**12))
    with pytest.raises(Trouble) as caught:
        client.instance(PATH, 2000)
    assert caught.value.kind == "large"
    pacs.faults[:] = [lambda method, path: Reply(200, KIND, HEAD + bytes(2001) + END)]
    with pytest.raises(Trouble) as caught:
        client.instance(PATH, 2000)
    assert caught.value.kind == "large"


def test_a_server_that_knows_no_choice_of_syntax_is_asked_without(
    pacs: Pacs, client: Client
) -> None:
    pacs.add(ONE)
    fail(pacs, Reply(406))
    assert client.instance(PATH, 10_000) == ONE
    assert [("transfer-syntax" in h["accept"]) for h in pacs.headers] == [True, False]


def test_a_token_stays_on_its_server_and_is_read_anew_when_refused(
    pacs: Pacs, tmp_path: Path
) -> None:
    pacs.add(ONE)
    file = tmp_path / "token"
    file.write_text("first\n")
    pacs.authorization = "Bearer second"
    client = Client(pacs.url, Token(str(file)), tries=2, sleep=lambda wait_s: None)
    with pytest.raises(Trouble, match="401"):
        client.instance(PATH, 10_000)
    file.write_text("second")
    assert client.instance(PATH, 10_000) == ONE
    with serving(Pacs()) as other:
        other.add(ONE)
        target = {"location": f"{other.url}/{PATH}"}
        pacs.faults.append(lambda method, path: Reply(302, target))
        with pytest.raises(Trouble, match="another server"):
            client.instance(PATH, 10_000)
        assert other.seen == []
        pacs.faults[:] = []
    fail(pacs, Reply(307, {"location": f"/dicom-web/{PATH}?again"}))
    assert client.instance(PATH, 10_000) == ONE  # inside the same server


def test_a_token_that_another_thread_has_renewed_is_used(pacs: Pacs, tmp_path: Path) -> None:
    """Both requests went out with the old one; the second refusal comes after the first renewal."""
    pacs.add(ONE)
    file = tmp_path / "token"
    file.write_text("first")
    pacs.authorization = "Bearer second"
    both, later = threading.Barrier(2), threading.Event()
    left = [None, None]

    def hold(method: str, path: str) -> None:
        if left:
            is_first = left.pop() is None and both.wait(10) == 0
            assert is_first or later.wait(10)

    pacs.faults.append(hold)
    client = Client(pacs.url, Token(str(file)), tries=2, sleep=lambda wait_s: None)

    def first() -> bytes:
        try:
            return client.instance(PATH, 10_000)
        finally:
            later.set()

    with ThreadPoolExecutor(2) as pool:
        file.write_text("second")
        assert [one.result() for one in [pool.submit(first) for _ in range(2)]] == [ONE, ONE]


def test_a_new_token_is_no_reason_to_go_on_for_ever(pacs: Pacs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")

    def waited(wait_s: float) -> None:
        file.write_text("second")
        assert len(pacs.seen) < 10

    client = Client(pacs.url, Token(str(file)), tries=2, sleep=waited)
    fail(pacs, Reply(503), Reply(401), *[Reply(503)] * 20)
    with pytest.raises(Trouble, match="503"):
        client.instance(PATH, 10_000)
    assert len(pacs.seen) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", "/CANARY/none.pem"),
        ("SSL_CERT_FILE", __file__),
        ("HTTPS_PROXY", "ftp://CANARY"),
        ("HTTPS_PROXY", "socks5://CANARY:1080"),
    ],
)
def test_an_environment_that_cannot_be_used_is_told(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"E1001: .*{name}") as caught:
        Client("https://pacs.example/x")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://\u2603.example/x", "https://pacs.example/\x01"])
def test_a_host_that_is_none_is_told(url: str) -> None:
    with pytest.raises(SettingsError, match="E1001: a PACS"):
        Client(url)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("abc\n", "Bearer abc"),
        ("Bearer abc", "Bearer abc"),
        ("Basic u:p w", basic("u", "p w")),
        ("Basic dTpw", "Basic dTpw"),
    ],
)
def test_forms_of_a_token(tmp_path: Path, text: str, header: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    assert Token(str(file)).header() == header


@pytest.mark.parametrize("text", ["", "\n", "a\nb", "\xe4", "x" * 20_000])
def test_no_token_is_refused_without_its_text(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "CANARY"
    file.write_text(text)
    monkeypatch.setenv("MEDV_DICOMWEB_TOKEN_FILE", str(file))
    with pytest.raises(SettingsError, match="E1001: --token-file") as caught:
        token_of(None)
    assert "CANARY" not in str(caught.value)
    file.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        token_of(None)


def test_a_token_is_sent_over_https_or_to_this_machine_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abc")
    for url in ("https://pacs.example/x", "http://localhost:8042/x", "http://[::1]/x"):
        Client(url, Token(str(file))).close()
    with pytest.raises(SettingsError, match="https only"):
        Client("http://pacs.example/x", Token(str(file)))
    Client("http://pacs.example/x").close()
