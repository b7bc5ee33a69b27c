"""The routes of an endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from medv_ray import __version__
from medv_ray.engine.request import Answer
from medv_ray.engine.request import Request as Asked
from medv_ray.errors import MedvError, RunError
from medv_ray.serving.audit import AuditLog
from medv_ray.serving.auth import Keys
from medv_ray.serving.completions import DONE, Completion, event
from medv_ray.serving.guard import App, Guard, Receive, Scope, Send
from medv_ray.serving.protocol import BadRequest, ChatRequest, Wire, parse
from medv_ray.serving.replies import (
    OURS,
    body_of,
    error_object,
    headers_of,
    is_plain,
    status_of,
    told,
)
from medv_ray.serving.service import Service, models_list
from medv_ray.serving.translate import no_fetch, request_of, sampler_of

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    OURS.decode(): "1",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
ANSWERS = {
    400: "The request is wrong; the error names the field, the rule and the way out.",
    401: "No valid API key.",
    403: "Without API keys, only clients on the same machine are answered.",
    404: "No such model.",
    408: "The body took too long to arrive.",
    413: "The body or a picture is too large.",
    415: "The body is no application/json, or compressed.",
    429: "Too many requests; Retry-After says when to come back.",
    431: "The headers are too large.",
    503: "No replica can answer now; Retry-After says when to come back.",
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "pattern": "^E[0-9]{4}$"},
            },
        }
    },
}
"""JSON schema of every error answer."""
LEFT = 499
"""Status that is counted for a client that did not wait; none is sent."""


def make_app(service: Service, keys: Keys, audit: AuditLog | None = None) -> App:
    """The whole endpoint as one ASGI application."""
    app = Routes(service, audit).app

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            # answered already; raised on, it would be logged with its text, which may hold anything
            log.error("a request ended with %s", type(error).__name__)
            if os.environ.get("MEDV_DEBUG"):
                raise

    return Guard(quiet, service.settings.limits, keys)


class Routes:
    """What each route does."""

    def __init__(self, service: Service, audit: AuditLog | None) -> None:
        self.service, self._audit = service, audit
        self._settings, self._limits = service.settings, service.settings.limits
        self._by_key: Counter[str] = Counter()
        """Requests that are being answered, by the key that they came with."""
        self.app = FastAPI(
            title="medv_ray",
            version=__version__,
            description="Answers about biomedical images by masked diffusion. Research use only.",
            docs_url=None,
            redoc_url=None,
        )
        self.schemas: dict[str, Any] = {"Error": ERROR}
        self.app.openapi = self.openapi  # type: ignore[method-assign]
        self.app.add_exception_handler(MedvError, self._medv_error)
        self.app.add_exception_handler(HTTPException, self._http_error)
        self.app.add_exception_handler(Exception, self._defect)
        self._add("GET", "/v1/models", self.models)
        streams: dict[int | str, Any] = {200: {"content": {"text/event-stream": {}}}}
        self._add("POST", "/v1/chat/completions", self.chat, ChatRequest, streams)
        self._add("GET", "/health", self.health)
        plain: dict[int | str, Any] = {
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
        }
        self._add("GET", "/metrics", self.metrics, None, plain)
        self.app.add_api_route("/", self.page, include_in_schema=False)
        self.app.add_api_route("/assets/{name}", self.asset, include_in_schema=False)

    def _add(
        self,
        method: str,
        path: str,
        route: Callable[..., Awaitable[Response]],
        body: type[Wire] | None = None,
        answers: dict[int | str, dict[str, Any]] | None = None,
    ) -> None:
        """A route in the OpenAPI file. Bodies are read by `parse`, whose errors hold no content."""
        extra: dict[str, Any] = {}
        if body is not None:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            self.schemas |= schema.pop("$defs", {}) | {body.__name__: schema}
            named = {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
            extra["requestBody"] = {"required": True, "content": {"application/json": named}}
        refusals = ANSWERS if body is not None else {k: ANSWERS[k] for k in (401, 403, 429, 503)}
        told = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        errors: dict[int | str, dict[str, Any]] = {
            k: {"description": v, "content": told} for k, v in refusals.items()
        }
        self.app.add_api_route(
            path,
            route,
            methods=[method],
            response_model=None,
            openapi_extra=extra,
            responses={**errors, **(answers or {})},
        )

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI file."""
        if self.app.openapi_schema is None:
            made = get_openapi(
                title=self.app.title,
                version=self.app.version,
                description=self.app.description,
                routes=self.app.routes,
            )
            made.setdefault("components", {}).setdefault("schemas", {}).update(self.schemas)
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            self.app.openapi_schema = made
        return self.app.openapi_schema

    async def models(self) -> JSONResponse:
        """Models and adapters by the names that requests call them."""
        return self._json(models_list(self.service))

    async def health(self) -> JSONResponse:
        """200 while denoising goes on, 503 when it is stuck."""
        wrong = self.service.health()
        if wrong is not None:
            raise RunError("E1708", f"{wrong}.")
        return self._json({"status": "ok", "ongoing": self.service.stepper.ongoing})

    async def metrics(self) -> Response:
        """Prometheus text of this replica."""
        meters, stepper = self.service.meters, self.service.stepper
        meters.add("medv_ongoing", stepper.ongoing)
        meters.follow(stepper.counters())
        return Response(meters.text(), media_type="text/plain; version=0.0.4", headers=HEADERS)

    async def page(self) -> Response:
        """The page, which asks this endpoint."""
        return self._file("index.html")

    async def asset(self, name: str) -> Response:
        """A file of the page."""
        return self._file(f"assets/{name}")

    async def chat(self, request: Request) -> Response:
        """An answer to a question about images, whole or as a stream."""
        started_s = time.monotonic()
        key = str(request.scope["state"]["key"])
        asked = parse(ChatRequest, await _json_body(request))
        texts = self.service.model(asked.model)
        if asked.n > self._limits.max_n:
            raise BadRequest("E1701", f"n: the limit is {self._limits.max_n}.", "n")
        sampler = sampler_of(self._settings.sampler, asked, self._limits)
        seed = self._settings.seed if asked.seed is None else asked.seed
        seeds = [(seed + i) % 2**63 for i in range(asked.n)]
        image, limits = self._settings.image, self._limits
        # base64 and picture headers of a large body take milliseconds that others wait for
        first = await asyncio.to_thread(
            request_of, asked, sampler, seeds[0], limits, image, no_fetch
        )
        requests = [replace(first, seed=seed) for seed in seeds]
        said = Completion(asked, texts, seeds, sampler, *identity(request))
        talk = Talk(self, said, requests, key, started_s)
        answering = talk.streamed() if asked.stream else self._whole(talk)
        return await _unless_left(request, answering) or Response(status_code=LEFT)

    async def _whole(self, talk: Talk) -> Response:
        return self._json(await talk.whole())

    @contextmanager
    def place(self, key: str) -> Iterator[None]:
        """Room for one more request. Raises BadRequest E1707 when there is none."""
        if self._by_key.total() >= self._limits.ongoing:
            raise BadRequest("E1707", f"{self._limits.ongoing} requests are being answered.")
        if key and self._by_key[key] >= self._limits.per_key:
            limit = self._limits.per_key
            raise BadRequest("E1707", f"{limit} requests of this API key are being answered.")
        self._by_key[key] += 1
        try:
            yield
        finally:
            self._by_key[key] -= 1

    def note(self, talk: Talk, status: int) -> None:
        """Count a request that has ended, and write it to the audit log."""
        meters, seconds = self.service.meters, time.monotonic() - talk.started_s
        meters.add("medv_requests", route="chat", status=str(status))
        meters.add("medv_request_seconds", seconds, route="chat")
        if self._audit is not None:
            self._audit.write(
                key=talk.key,
                request=talk.said.id,
                model=talk.said.request.model,
                status=status,
                seconds=round(seconds, 3),
                prompt_sha256=sorted({a.prompt_sha256 for a in talk.answers.values()}),
                image_sha256=[hashlib.sha256(data).hexdigest() for data in talk.requests[0].images],
            )

    def _json(self, value: dict[str, Any]) -> JSONResponse:
        return JSONResponse(value, headers=HEADERS)

    def _file(self, name: str) -> Response:
        path = PAGE / name
        try:
            found = path.is_file() and path.resolve().parent in (PAGE, PAGE / "assets")
        except (OSError, ValueError):  # too long a name
            found = False
        if not found:
            raise HTTPException(404)
        headers = {**HEADERS, "content-security-policy": PAGE_POLICY}
        if path.parent.name == "assets":  # their names hold their digests
            headers["cache-control"] = "public, max-age=31536000, immutable"
        return FileResponse(path, headers=headers)

    def _error(self, code: str, message: str, param: str | None = None) -> Response:
        status = status_of(code)
        headers = HEADERS | headers_of(status, self._limits.retry_after_s)
        body = body_of(error_object(code, message, param))
        return Response(body, status, headers, media_type="application/json")

    async def _medv_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, MedvError)
        return self._error(error.code, error.detail, getattr(error, "param", None))

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return self._error("E1712", "this path does not take this method.")
        return self._error("E1706", "there is nothing at this path.")

    async def _defect(self, request: Request, error: Exception) -> Response:
        return self._error("E1509", f"{type(error).__name__}: a defect of the endpoint.")


class Events(StreamingResponse):
    """A stream that is closed with its connection, however that ends."""

    async def stream_response(self, send: Send) -> None:
        """See StreamingResponse."""
        try:
            await super().stream_response(send)
        finally:
            await cast(AsyncGenerator[bytes], self.body_iterator).aclose()


class Talk:
    """One request of /v1/chat/completions, until it is answered, refused or left."""

    def __init__(
        self,
        routes: Routes,
        said: Completion,
        requests: Sequence[Asked],
        key: str,
        started_s: float,
    ) -> None:
        self._routes, self.said, self.requests = routes, said, list(requests)
        self.key, self.started_s = key, started_s
        self.answers: dict[int, Answer] = {}
        """By the number of the choice; those that have come."""

    async def whole(self) -> dict[str, Any]:
        """The body. Raises MedvError."""
        async for _ in self._chunks(watched=False):
            pass
        return self.said.whole(self.in_order())

    def in_order(self) -> list[Answer]:
        """Answers that have come, by choice."""
        return [answer for _, answer in sorted(self.answers.items())]

    async def streamed(self) -> Response:
        """A stream that has begun. Raises MedvError for what is wrong before its first event."""
        chunks = self._chunks(watched=True)
        first = await anext(chunks)

        async def rest() -> AsyncGenerator[bytes]:
            try:
                yield b"".join(event(chunk) for chunk in first)
                async for more in chunks:
                    if more:
                        yield b"".join(event(chunk) for chunk in more)
            except MedvError as error:
                yield event({"error": told(error)})
                return
            finally:
                await chunks.aclose()
            if self.said.request.wants_usage:
                yield event(self.said.usage_chunk(self.in_order()))
            yield DONE

        return Events(rest(), media_type="text/event-stream", headers=HEADERS)

    async def _chunks(self, watched: bool) -> AsyncGenerator[list[dict[str, Any]]]:
        """What each event brings; counted and written down at the end, however it comes."""
        status = LEFT
        try:
            with self._routes.place(self.key):
                asked = self._routes.service.asked(
                    self.said.request.model, self.requests, watched, self.started_s
                )
                async with asked as events:
                    async for number, one in events:
                        choice = self.said.choices[number]
                        if isinstance(one, Answer):
                            self.answers[number] = one
                            yield self.said.end_chunks(choice, one) if watched else []
                        else:
                            yield self.said.view_chunks(choice, one)
            status = 200
        except MedvError as error:
            status = status_of(error.code)
            raise
        finally:
            self._routes.note(self, status)


async def _unless_left(
    request: Request, answering: Coroutine[Any, Any, Response]
) -> Response | None:
    """The response, once there is one; None when the client left first, which ends the work."""
    work = asyncio.ensure_future(answering)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        left.cancel()
        await asyncio.gather(work, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _json_body(request: Request) -> bytes:
    """Raises BadRequest E1710 for another kind: a form of another site's page needs no consent."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest("E1710", "the body must be application/json.")
    return await request.body()


def identity(request: Request) -> tuple[str, int]:
    """Id and time of a request, as the front gave them; a second try has the same."""
    given = request.headers.get("x-request-id", "")
    created = request.headers.get("x-medv-created", "")
    return (
        given if is_plain(given) else uuid.uuid4().hex,
        int(created)
        if created.isascii() and created.isdecimal() and len(created) < 12
        else int(time.time()),
    )
