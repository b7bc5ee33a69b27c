"""One DICOMweb server over HTTP: bounded, tried again where that may help, and silent.

httpx2 and not dicomweb-client: that one reads a whole answer before its size is known, follows
redirects, and logs every address, which holds patients' UIDs.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, TypeVar

import httpx2

from medv_ray.dicomweb.multipart import OVERHEAD, Incomplete, first_part, media_type
from medv_ray.dicomweb.token import Token
from medv_ray.errors import SettingsError
from medv_ray.loopback import LOOPBACK, no_proxy

T = TypeVar("T")
Kind = Literal["away", "refused", "gone", "large", "odd"]
TRIES = 6
WAIT_S, MOST_WAIT_S = 1.0, 60.0
"""Before the second try, doubled with each; Retry-After counts up to the second number."""
CONNECT_S, READ_S, WHOLE_S = 10.0, 60.0, 900.0
"""Of one try: for a connection, without any byte, for the whole answer."""
AGAIN = (408, 429, 500, 502, 503, 504)
REDIRECTS, MOST_REDIRECTS = (301, 302, 303, 307, 308), 3
MOST_JSON = 2**26
OBJECT = 'multipart/related; type="application/dicom"'
ANY_SYNTAX = f"{OBJECT}; transfer-syntax=*"
"""As the server has it: without that, servers may decode and even compress anew."""


class Trouble(Exception):
    """What a server did instead of answering. Its text names no host, path or UID."""

    def __init__(self, kind: Kind, said: str) -> None:
        super().__init__(kind, said)
        self.kind = kind
        """away: no answer at all, or it is overloaded. refused: a token, a certificate or another
        address is needed. gone: no such object. large: over the limit. odd: all else."""
        self.said = said


class Answer(NamedTuple):
    """An answer of status 2xx."""

    status: int
    headers: httpx2.Headers
    body: bytes


class _Again(Exception):
    """This try failed as the next one may not."""

    def __init__(self, trouble: Trouble, wait_s: float | None = None) -> None:
        self.trouble, self.wait_s = trouble, wait_s


class Client:
    """A DICOMweb service. May be used by several threads."""

    def __init__(
        self,
        base: str,
        token: Token | None = None,
        *,
        tries: int = TRIES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`base` as in `Address`. Raises SettingsError E1001 for a token over plain HTTP, a host
        that is none, and an environment whose certificates or proxies cannot be used."""
        try:
            url = httpx2.URL(base)
        except httpx2.InvalidURL:
            raise SettingsError("E1001", "a PACS: its URL holds what no URL may hold.") from None
        if token is not None and url.scheme != "https" and url.host not in LOOPBACK:
            raise SettingsError("E1001", "a token is sent over https only, but to this machine.")
        self._base, self._token = base, token
        self._origin = (url.scheme, url.host, url.port)
        self._tries, self._sleep = tries, sleep
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        mounts = no_proxy(url.host)
        try:
            self._http = httpx2.Client(timeout=timeout, follow_redirects=False, mounts=mounts)
        except OSError as error:  # ssl's own are among these
            said = f"SSL_CERT_FILE or SSL_CERT_DIR: no certificates there ({type(error).__name__})."
            raise SettingsError("E1001", said) from None
        except (ImportError, ValueError) as error:
            said = "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: http://host:port is what can be used"
            raise SettingsError("E1001", f"{said} ({type(error).__name__}).") from None
        for name in ("httpx2", "httpcore2"):  # they would log addresses, which hold UIDs
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def json(self, path: str, params: Mapping[str, Any]) -> tuple[Any, httpx2.Headers]:
        """An answer in JSON, None where it is empty, and its headers. Raises Trouble."""
        accept = {"accept": "application/dicom+json"}

        def parse(answer: Answer) -> tuple[Any, httpx2.Headers]:
            if answer.status == 204 or not answer.body.strip():
                return None, answer.headers
            try:
                return json.loads(answer.body), answer.headers
            except (ValueError, RecursionError):
                raise _Again(Trouble("odd", "its answer is no JSON")) from None

        return self._tried(lambda: parse(self._once("GET", path, accept, MOST_JSON, params)))

    def instance(self, path: str, limit: int) -> bytes:
        """The bytes of one instance, at most `limit`, in the transfer syntax that it has there.

        Raises Trouble.
        """
        accepts = [ANY_SYNTAX, OBJECT]

        def fetch() -> bytes:
            answer = self._once("GET", path, {"accept": accepts[0]}, limit + OVERHEAD)
            return _object(answer, limit)

        try:
            return self._tried(fetch)
        except Trouble as trouble:
            if trouble.said != "it answered 406":
                raise
        del accepts[0]
        return self._tried(fetch)

    def store(self, body: bytes, boundary: str, path: str = "studies") -> tuple[int, Any]:
        """Send objects; the status and the JSON of the answer, None where it is none.

        200, 202 and 409 are answers. Raises Trouble.
        """
        headers = {
            "accept": "application/dicom+json",
            "content-type": f"{OBJECT}; boundary={boundary}",
        }

        def send() -> tuple[int, Any]:
            answer = self._once("POST", path, headers, MOST_JSON, content=body, also=(409,))
            try:
                return answer.status, json.loads(answer.body)
            except (ValueError, RecursionError):
                return answer.status, None

        return self._tried(send)

    def _tried(self, call: Callable[[], T]) -> T:
        is_new_token = False
        left, wait_s = self._tries, WAIT_S
        while True:
            left -= 1
            sent = self._token.header() if self._token else ""
            try:
                return call()
            except _Again as again:
                if left <= 0:  # a new token gives one more
                    raise again.trouble from None
                asked_s = again.wait_s
            except Trouble as trouble:
                is_token = trouble.said.startswith("it answered 401")
                if not (is_token and not is_new_token and self._token and self._token.renew(sent)):
                    raise
                is_new_token, asked_s = True, 0.0
            chosen = wait_s * random.uniform(0.5, 1.0) if asked_s is None else asked_s
            self._sleep(min(chosen, MOST_WAIT_S))
            wait_s *= 2

    def _once(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        limit: int,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        also: tuple[int, ...] = (),
    ) -> Answer:
        """One try, redirects inside the same server included."""
        headers = {**headers, "accept-encoding": "identity"}
        if self._token is not None:
            headers["authorization"] = self._token.header()
        url = httpx2.URL(f"{self._base}/{path}", params=dict(params) if params else None)
        deadline = time.monotonic() + WHOLE_S
        try:
            for _ in range(MOST_REDIRECTS + 1):
                with self._http.stream(method, url, headers=headers, content=content) as response:
                    if response.status_code not in REDIRECTS:
                        return _answer(response, limit, deadline, also)
                    url = self._redirect(url, response)
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _failure(error) from None
        raise Trouble("refused", f"it redirects more than {MOST_REDIRECTS} times")

    def _redirect(self, url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
        """Where to go on: on the same server only, as a token must not leave it."""
        try:
            target = url.join(response.headers.get("location", ""))
        except httpx2.InvalidURL:
            target = httpx2.URL("")
        if (target.scheme, target.host, target.port) != self._origin:
            raise Trouble("refused", "it redirects to another server; give that one's address")
        return target


def _answer(
    response: httpx2.Response, limit: int, deadline: float, also: tuple[int, ...]
) -> Answer:
    """A response read to its end, unless it is too large or none. Raises Trouble, _Again."""
    status = response.status_code
    if status in AGAIN:
        kind: Kind = "odd" if status == 500 else "away"
        raise _Again(Trouble(kind, f"it answered {status}"), _retry_after(response))
    if status in (401, 403):
        raise Trouble("refused", f"it answered {status}")
    if status in (404, 410):
        raise Trouble("gone", f"it answered {status}")
    if not response.is_success and status not in also:
        raise Trouble("odd", f"it answered {status}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Trouble("odd", "its answer is compressed, which was not asked for")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise Trouble("large", "its answer is over the limit")
    body = bytearray()
    for block in response.iter_raw():
        body += block
        if len(body) > limit:
            raise Trouble("large", "its answer is over the limit")
        if time.monotonic() > deadline:
            raise _Again(Trouble("away", f"its answer took over {WHOLE_S:.0f} s"))
    return Answer(status, response.headers, bytes(body))


def _object(answer: Answer, limit: int) -> bytes:
    """The object of an answer, in parts or as it is. Raises Trouble, _Again."""
    kind, parameters = media_type(answer.headers.get("content-type", ""))
    data = answer.body
    if kind == "multipart/related":
        try:
            kind, data = first_part(answer.body, parameters.get("boundary", ""))
        except Incomplete:
            raise _Again(Trouble("odd", "its answer is cut short")) from None
        except ValueError:
            kind = ""
    if kind != "application/dicom":
        raise Trouble("odd", "its answer is no DICOM object")
    if len(data) > limit:
        raise Trouble("large", "its answer is over the limit")
    return data


def _failure(error: Exception) -> Exception:
    """What a failed connection means."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = "its certificate is not trusted; SSL_CERT_FILE names a file of your own"
            return Trouble("refused", said)
        cause = cause.__cause__ or cause.__context__
    return _Again(Trouble("away", f"no whole answer ({type(error).__name__})"))


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds; None where the server says none."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
