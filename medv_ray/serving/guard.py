"""What every request passes before the application sees it: sizes, time, key.

Plain ASGI, so that it stands in Serve's proxy as well as in a replica: what is refused here costs
no more memory than its first bytes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from medv_ray.loopback import LOOPBACK
from medv_ray.serving.auth import Keys
from medv_ray.serving.options import LimitSettings
from medv_ray.serving.replies import body_of, error_object, headers_of, status_of

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/favicon.ico", "/assets/", "/-/healthz")
"""Without a key: the page, which holds nothing, and Serve's own probe."""
LINGER_S = 2.0
"""How long a refused body is read and thrown away: closed at once, the client's system would drop
our answer with the connection."""
BODIES_BYTES = 256 * 2**20
"""Bodies that are held at the same time, those that are still arriving included; further requests
get 429."""
BODY = "medv_body"
"""Key of a scope in which a front that has read the body hands it on."""
UPLOAD = "medv_upload"
"""Key of a scope in which whoever has put an upload on disk says where; no client can set one."""
UPLOADS = "/v1/files"
"""Where forms are taken."""
MAX_STRUCTURE = 2**16
"""Braces, brackets and commas in a body: JSON of more is refused unparsed, as each costs memory."""


class Refusal(Exception):
    """Ends a request before the application saw it."""

    def __init__(
        self, code: str, message: str, late: bool = False, param: str | None = None
    ) -> None:
        """`late`: the body took too long, and no more of it is waited for. `param`: the field."""
        super().__init__(code)
        self.code, self.message, self.late, self.param = code, message, late, param


class Uploads(Protocol):
    """Takes forms that are too large to be held."""

    async def take(self, headers: dict[str, str], receive: Receive) -> dict[str, Any]:
        """What is to be known of a form whose file is on disk now. Raises Refusal, MedvError."""

    def forget(self, taken: dict[str, Any]) -> None:
        """Remove the file, unless it was put in place."""


@dataclass(frozen=True)
class Policy:
    """Who is let in and with how much."""

    limits: LimitSettings
    keys: Keys
    note: Callable[[str], None] = lambda code: None
    """Is called with the code of each refusal."""
    uploads: Uploads | None = None
    """None: a form is held like any other body, and no larger."""


class Coming:
    """A request's messages, and whether the last of them has come."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message


class Guard:
    """Around an ASGI application. Requests reach it with a body that is whole and small enough."""

    def __init__(self, app: App, policy: Policy) -> None:
        self._app, self._limits, self._keys = app, policy.limits, policy.keys
        self._note, self._uploads = policy.note, policy.uploads
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        body, taken = bytearray(), None
        coming = Coming(_at_hand(scope, receive))
        try:
            headers = self._headers(scope)
            scope.setdefault("state", {})["key"] = self._owner(scope, headers)
            if UPLOAD in scope:  # the front has put it on disk, and its length is the file's
                pass
            elif self._uploads is not None and is_form(scope, headers):
                taken = scope[UPLOAD] = await self._uploads.take(headers, coming)
            else:
                await self._read(scope, headers, coming, body)
            await self._app(scope, _replay(bytes(body), receive), send)
        except Refusal as refused:
            self._note(refused.code)
            await self._refuse(refused, coming, send)
        finally:
            self._held_bytes -= len(body)
            if taken is not None and self._uploads is not None:
                self._uploads.forget(taken)

    def _headers(self, scope: Scope) -> dict[str, str]:
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in pairs)
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if size > self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            raise Refusal("E1711", f"the headers have {size} bytes; the limit is {limit}.")
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}

    def _owner(self, scope: Scope, headers: dict[str, str]) -> str:
        """The key's name; empty where none is needed."""
        path = str(scope["path"])
        if self._keys:
            owner = self._keys.owner(headers.get("authorization", ""))
            if owner is None and not is_open(path):
                raise Refusal("E1702", "no valid API key: send Authorization: Bearer KEY.")
            return owner or ""
        # a page on another site can make a browser send requests here, by a name that leads here
        if not (_is_local(scope) and _names_this_machine(headers.get("host", "localhost"))):
            raise Refusal("E1705", "without API keys, only clients on this machine are answered.")
        # a page may send a form anywhere, without its reader's consent
        if is_form(scope, headers) and not _is_own(headers.get("origin", "")):
            raise Refusal("E1705", "without API keys, no page of another site is answered.")
        return ""

    async def _read(
        self, scope: Scope, headers: dict[str, str], receive: Receive, body: bytearray
    ) -> None:
        limit = self._limits.max_body_bytes
        announced = headers.get("content-length", "0")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal("E1710", "a compressed body is not taken.")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise Refusal("E1703", f"the body has {announced[:20]} bytes; the limit is {limit}.")
        deadline = time.monotonic() + self._limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
            except TimeoutError:
                seconds = self._limits.body_seconds
                rule = f"the body took over {seconds:g} s to arrive."
                raise Refusal("E1709", rule, late=True) from None
            if message["type"] != "http.request":  # the client is gone
                raise Refusal("E1709", "the body ended early.")
            piece = message.get("body", b"")
            body += piece
            self._held_bytes += len(piece)
            if self._held_bytes > BODIES_BYTES:
                raise Refusal("E1707", "too many large requests at once.")
            if len(body) > limit:
                raise Refusal("E1703", f"the body has over {limit} bytes, the limit.")
            if not message.get("more_body", False):
                break
        if not (is_form(scope, headers) or is_within_structure(body)):
            rule = f"the body has more than {MAX_STRUCTURE} values."
            raise Refusal("E1701", rule)

    async def _refuse(self, refused: Refusal, coming: Coming, send: Send) -> None:
        body = body_of(error_object(refused.code, refused.message, refused.param))
        status = status_of(refused.code)
        headers = headers_of(status, self._limits.retry_after_s)
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if not (refused.late or coming.ended):
            await _throw_away(coming)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return any(path == one or (one.endswith("s/") and path.startswith(one)) for one in OPEN_PATHS)


def is_form(scope: Scope, headers: dict[str, str]) -> bool:
    """Whether a request brings a file, which goes to disk."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return (scope["method"], scope["path"]) == ("POST", UPLOADS) and kind == "multipart/form-data"


def is_within_structure(body: bytes | bytearray) -> bool:
    """Whether JSON has few enough values to be parsed."""
    return sum(body.count(mark) for mark in b"{[,") <= MAX_STRUCTURE


def _is_own(origin: str) -> bool:
    return not origin or _names_this_machine(origin.partition("://")[2])


def _is_local(scope: Scope) -> bool:
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _names_this_machine(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.lower().strip("[]").removesuffix(".") in LOOPBACK


def _at_hand(scope: Scope, receive: Receive) -> Receive:
    """The body as the front has sent it along, or as it comes."""
    body = scope.pop(BODY, None)
    return receive if body is None else _replay(body, receive)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The whole body as one message, then what else comes: that the client is gone."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _throw_away(receive: Receive) -> None:
    try:
        async with asyncio.timeout(LINGER_S):
            while True:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
