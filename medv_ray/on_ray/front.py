"""What stands in Serve's proxy, in front of the replicas.

Serve calls `middlewares` when a proxy starts, if the environment that Ray was started in says
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=medv_ray.on_ray.front:middlewares. `medv serve` sees to
that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid

from starlette.middleware import Middleware

from medv_ray.serving.auth import Keys
from medv_ray.serving.batch.shelf import Shelf
from medv_ray.serving.batch.upload import Spool
from medv_ray.serving.guard import BODY, App, Guard, Message, Policy, Receive, Scope, Send
from medv_ray.serving.options import BatchSettings, LimitSettings
from medv_ray.serving.replies import (
    OURS,
    REQUEST_ID,
    body_of,
    error_object,
    headers_of,
    is_plain,
    status_of,
)

log = logging.getLogger(__name__)
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
LIMITS = "MEDV_SERVE_LIMITS"
"""Environment variable: the settings of `limits` as JSON, for the proxies."""
BATCH = "MEDV_SERVE_BATCH"
"""Environment variable: the settings of `batch` as JSON. With a folder in them a proxy puts uploads
there itself; without, it holds them, and takes none over `limits.max_body_bytes`."""
REFUSALS = "medv_front_refusals"
"""Its line in the table of meters."""
QUEUE_S = 30.0
"""Beyond `limits.request_seconds`, which begin in the replica: for a way there, and a restart."""
LAST_WORDS_S = 5.0
INLINE_BYTES = 2**20
"""Bodies up to this size go to the replica with the request; it asks the proxy for larger ones,
which takes Serve two milliseconds more."""
OURS_ID = REQUEST_ID.encode()
SERVES_OWN = (
    b"serve_multiplexed_model_id", b"x_session_id", b"x_request_timeout_seconds",
    b"x_request_disconnect_disabled",
)  # fmt: skip
"""Headers by which a client could change how Serve treats its request, which reads some of them
with any mixture of hyphens and underscores."""


def middlewares() -> list[Middleware]:
    """For Serve's proxy. The environment tells limits and keys."""
    given = os.environ.get(LIMITS)
    limits = LimitSettings.model_validate_json(given) if given else LimitSettings()
    from medv_ray.on_ray.meters import RayMeters  # not before Ray has its environment

    meters = RayMeters([REFUSALS])

    def note(code: str) -> None:
        meters.add(REFUSALS, 1.0, {"code": code})

    batch = BatchSettings.model_validate_json(os.environ.get(BATCH) or "{}")
    uploads = None if batch.folder is None else Spool(Shelf(batch))
    return [Middleware(Front, policy=Policy(limits, Keys.load(None), note, uploads))]


class Front:
    """Guard, request id, one more try where a replica was lost, and errors in our own words."""

    def __init__(self, app: App, policy: Policy) -> None:
        """`policy.note` is called with the code of what is broken off here, too."""
        self._app, self._policy = app, policy
        self._guard = Guard(self._pass, policy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # a load balancer asks the proxy itself; Serve's other paths of its own are kept back
        if scope["type"] == "http" and scope["path"] == "/-/healthz":
            await self._app(scope, receive, send)
        else:
            await self._guard(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = {
            name: value
            for name, value in scope["headers"]
            if name.lower().replace(b"-", b"_") not in SERVES_OWN
        }
        # a client's own may name a patient, and Serve writes the one that it knows into its logs
        own, serves = given.get(b"x-request-id", b""), uuid.uuid4().hex.encode()
        # of another kind, each replica would make up its own
        given[OURS_ID] = own if is_plain(own.decode("latin-1")) else serves
        given[b"x-request-id"] = serves
        given[b"x-medv-created"] = str(int(time.time())).encode()
        body = (await receive()).get("body", b"")
        if len(body) <= INLINE_BYTES:
            scope[BODY] = body
        relay = Relay(send, self._policy)
        deadline = time.monotonic() + self._policy.limits.request_seconds + QUEUE_S
        if scope["path"].startswith("/-/"):
            await relay.refuse("E1706", "there is nothing at this path.")
            return
        for attempt in (1, 2):
            caller = Caller(body, receive)
            headers = list(given.items())
            trying = self._app({**scope, "headers": headers}, caller.receive, relay.attempt())
            try:  # a replica that hangs does not end what it has taken
                await asyncio.wait_for(trying, max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
            except Exception as error:  # its text may hold anything
                log.warning("an attempt ended with %s", type(error).__name__)
            if relay.ended or caller.left:
                return
            log.warning("a replica was lost in attempt %d of a request", attempt)
        try:  # a client that reads nothing is not waited for
            await asyncio.wait_for(relay.give_up(), LAST_WORDS_S)
        except TimeoutError:
            return


class Caller:
    """What the client sends, for one attempt."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self.left = False

    async def receive(self) -> Message:
        """The whole body at first, then that the client has left, once it has."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.left |= message["type"] == "http.disconnect"
        return message


class Relay:
    """One response, made of what one or two replicas sent.

    A replica's bytes follow from the request alone. So a second one sends again what the first had
    sent, which is compared and dropped, and goes on from there.
    """

    def __init__(self, send: Send, policy: Policy) -> None:
        self._send, self._note = send, policy.note
        self._retry_after_s = policy.limits.retry_after_s
        self.ended = False
        self._start: Message | None = None  # kept until there is something to send after it
        self._status = 0  # of what was sent to the client; 0: nothing yet
        self._length_sent = False
        self._sent_bytes, self._sent = 0, hashlib.sha256()

    def attempt(self) -> Send:
        """The `send` of a new attempt."""
        self._seen_bytes, self._seen = 0, hashlib.sha256()
        self._start, self._foreign = None, False
        return self._take

    async def _take(self, message: Message) -> None:
        if self.ended:
            return
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and not self._foreign:
            await self._body(message)

    async def _begin(self, message: Message) -> None:
        status = message["status"]
        if OURS not in {bytes(name).lower() for name, _ in message["headers"]}:
            self._foreign = True  # Serve's own words, which may hold more than a client should see
            if status == 429:
                await self.refuse("E1707", "too many requests wait for a replica.")
            elif status < 500 or status == 503:
                await self.refuse("E1708", "no replica can answer now.")
            return  # 500: a lost replica; there is another attempt
        if self._status == 0:
            self._start = message
        elif status != self._status:
            await self._break_off()

    async def _body(self, message: Message) -> None:
        data, more = message.get("body", b""), message.get("more_body", False)
        again = min(len(data), self._sent_bytes - self._seen_bytes)
        self._seen.update(data[:again])
        self._seen_bytes += again
        data = data[again:]
        short = not more and self._seen_bytes < self._sent_bytes
        whole = again and self._seen_bytes == self._sent_bytes
        if short or (whole and self._seen.digest() != self._sent.digest()):
            await self._break_off()  # on a GPU, company changes last bits
            return
        self._seen.update(data)
        self._sent.update(data)
        self._seen_bytes += len(data)
        self._sent_bytes += len(data)
        self.ended = not more
        if self._start is not None and (data or not more):
            start, self._start = self._start, None
            self._status = start["status"]
            names = {bytes(name).lower() for name, _ in start["headers"]}
            self._length_sent = b"content-length" in names
            await self._send(start)
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def give_up(self) -> None:
        """There was no answer."""
        if self._status:
            await self._break_off()
        else:
            await self.refuse("E1708", "no replica has answered; two were lost, or one hangs.")

    async def refuse(self, code: str, message: str) -> None:
        """An answer of our own, or the end of one that has begun."""
        if self._status:
            await self._break_off()
            return
        self.ended = True
        self._note(code)
        status, body = status_of(code), body_of(error_object(code, message))
        headers = headers_of(status, self._retry_after_s) | {"content-type": "application/json"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})

    async def _break_off(self) -> None:
        """End a response that cannot be gone on with: by an error event, or, where its length was
        announced, with the connection."""
        self.ended = True
        self._note("E1708")
        if self._length_sent:
            return
        error = body_of(error_object("E1708", "the replica was lost; ask again."))
        event = b"\n\ndata: " + error + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})
