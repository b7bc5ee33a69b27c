"""The routes of an endpoint. Longer than a module should be: they are one list with one state."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from medv_ray import __version__
from medv_ray.data.canvas import Template
from medv_ray.engine.request import Request as Asked
from medv_ray.errors import MedvError, RunError, SettingsError
from medv_ray.serving.audit import AuditLog
from medv_ray.serving.auth import Keys
from medv_ray.serving.batch.job import Ask
from medv_ray.serving.batch.routes import BatchRoutes
from medv_ray.serving.batch.runner import Runner, asker
from medv_ray.serving.batch.shelf import Shelf
from medv_ray.serving.batch.upload import Spool
from medv_ray.serving.completions import Completion, inspection_body
from medv_ray.serving.dialogue import Dialogue, dialogue_of
from medv_ray.serving.exchange import HEADERS, Exchange
from medv_ray.serving.fetch import fetcher
from medv_ray.serving.forms import check_place, form_of
from medv_ray.serving.guard import App, Guard, Message, Policy, Receive, Scope, Send
from medv_ray.serving.meters import Meters
from medv_ray.serving.openapi import ANSWER, EVENT, Api
from medv_ray.serving.options import BatchSettings
from medv_ray.serving.permits import Permits
from medv_ray.serving.pictures import PICTURE, picture_body
from medv_ray.serving.protocol import (
    BadRequest,
    ChatRequest,
    InspectRequest,
    PictureRequest,
    Prompted,
    parse,
)
from medv_ray.serving.replies import (
    OURS,
    body_of,
    error_object,
    headers_of,
    status_of,
)
from medv_ray.serving.requests import identity, json_body
from medv_ray.serving.responses import ResponsesCompletion, ResponsesRequest
from medv_ray.serving.service import Service, model_object, models_list
from medv_ray.serving.traces import Tracing, current, open_tracing, part
from medv_ray.serving.translate import request_of, sampler_of, viewed
from medv_ray.settings import SamplerSettings

log = logging.getLogger(__name__)
PAGE = Path(__file__).resolve().with_name("page")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CHAT_ANSWERS = {
    "application/json": {"schema": ANSWER},
    "text/event-stream": {"itemSchema": EVENT},
}
RESPONSES = {
    "application/json": {"schema": {"type": "object", "required": ["id", "output", "usage"]}},
    "text/event-stream": {"itemSchema": EVENT},
}
NO_COMPLETIONS = (
    "/v1/completions is not answered here: this model answers dialogues. Ask /v1/chat/completions; "
    "to fill the text between a prompt and a suffix, give it a canvas with a blank between both."
)
PICTURE_ANSWERS = {"application/json": {"schema": PICTURE}}
T = TypeVar("T")
LEFT = 499
"""Status that is counted for a client that has left."""
ROUTES = (
    "/", "/v1/models", "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/inspect",
    "/v1/picture", "/v1/files", "/v1/batches", "/health", "/ping", "/version", "/metrics",
)  # fmt: skip
"""Paths that are counted by name."""
FAMILIES = ("/v1/models", "/v1/files", "/v1/batches")
"""Those that what lies below is counted with."""


def make_app(
    service: Service, keys: Keys, audit: AuditLog | None = None, tracing: Tracing | None = None
) -> App:
    """The whole endpoint as one ASGI application. Batches are worked on while the service is open.

    `tracing`: None makes what the settings ask for. Raises SettingsError E1001 for a folder of
    batches that cannot be used, E1003 for tracing without its package.
    """
    tracing = tracing or open_tracing(service.settings.tracing)
    if tracing is not None:
        service.beside.append(tracing.close)
    batch = service.settings.batch
    shelf = None if batch.folder is None else open_shelf(batch)
    routes = Routes(service, audit)
    uploads, wake = None, lambda: None
    if shelf is not None:
        limit = service.settings.limits.max_body_bytes
        runner = Runner(shelf, routes.asking, routes.has_room, limit, routes.count_lines)
        service.beside.append(runner.close)
        uploads, wake = Spool(shelf), runner.wake
    BatchRoutes(shelf, wake).add_to(routes.app)
    policy = Policy(service.settings.limits, keys, uploads=uploads)
    return Counted(Guard(routes.app, policy), service.meters, tracing)


def open_shelf(settings: BatchSettings) -> Shelf:
    """Raises SettingsError E1001."""
    try:
        return Shelf(settings)
    except OSError as error:
        kind = type(error).__name__
        raise SettingsError("E1001", f"batch.folder cannot be used ({kind}).") from None


class Counted:
    """Counts requests by route and status, traces them, answers HEAD as GET without its body, and
    keeps what a defect says out of the logs."""

    def __init__(self, app: App, meters: Meters, tracing: Tracing | None = None) -> None:
        self._app, self._meters, self._tracing = app, meters, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.monotonic(), "none"  # none: the client left before
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET"}

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                headers = list(message.get("headers", []))
                if OURS not in {name for name, _ in headers}:  # FastAPI's own routes
                    headers.append((OURS, b"1"))
                message = {**message, "headers": headers}
            elif head:
                message = {**message, "body": b""}
            await send(message)

        traced = nullcontext() if self._tracing is None else self._tracing.tracing(scope)
        with traced as trace:
            try:
                await self._app(scope, receive, noting)
            except Exception as error:
                # answered already; raised on, it would be logged with its text, which may hold
                # anything
                log.error("a request ended with %s", type(error).__name__)
                if os.environ.get("MEDV_DEBUG"):
                    raise
            finally:
                route = route_of(scope["path"])
                self._meters.add("medv_requests", route=route, status=status)
                self._meters.add("medv_request_seconds", time.monotonic() - started_s, route=route)
                if trace is not None:
                    trace.end(route, status)


def route_of(path: str) -> str:
    """What a path is counted as."""
    above = next((one for one in FAMILIES if path.startswith(f"{one}/")), path)
    return above if above in ROUTES else "other"


class Routes:
    """What each route does."""

    def __init__(self, service: Service, audit: AuditLog | None) -> None:
        self.service, self._audit = service, audit
        self._settings, self._limits = service.settings, service.settings.limits
        self._permits = Permits(self._limits)
        # lines of batches are counted by `batch.in_flight`
        many = {"ongoing": 2**31, "per_key": 2**31}
        self._of_batches = Permits(self._limits.model_copy(update=many))
        self._fetch = fetcher(self._settings.fetch)
        self.app = Api()
        self.app.add_exception_handler(MedvError, self._medv_error)
        self.app.add_exception_handler(HTTPException, self._http_error)
        self.app.add_exception_handler(Exception, self._defect)
        self.app.serve("GET", "/v1/models", self.models)
        self.app.serve("GET", "/v1/models/{name:path}", self.one_model)
        self.app.serve("POST", "/v1/chat/completions", self.chat, ChatRequest, CHAT_ANSWERS)
        self.app.serve("POST", "/v1/responses", self.respond, ResponsesRequest, RESPONSES)
        self.app.serve("POST", "/v1/completions", self.completions)
        self.app.serve("POST", "/v1/inspect", self.inspect, InspectRequest)
        self.app.serve("POST", "/v1/picture", self.picture, PictureRequest, PICTURE_ANSWERS)
        self.app.serve("GET", "/health", self.health)
        self.app.serve("GET", "/ping", self.health)
        self.app.serve("GET", "/version", self.version)
        self.app.serve("GET", "/metrics", self.metrics, answers={"text/plain": {}})
        self.app.add_api_route("/", self.page, include_in_schema=False)
        self.app.add_api_route("/assets/{name}", self.asset, include_in_schema=False)

    async def models(self) -> JSONResponse:
        """Models and adapters by the names that requests call them."""
        return self._json(models_list(self.service))

    async def one_model(self, name: str) -> JSONResponse:
        """A model or an adapter by its name."""
        return self._json(model_object(self.service, name))

    async def health(self) -> JSONResponse:
        """200 while denoising goes on, 503 when it is stuck."""
        wrong = self.service.health()
        if wrong is not None:
            raise RunError("E1708", f"{wrong}.")
        return self._json({"status": "ok", "ongoing": self.service.scheduler.ongoing})

    async def version(self) -> JSONResponse:
        """The endpoint's version."""
        return self._json({"version": __version__})

    async def metrics(self) -> Response:
        """Prometheus text of this replica."""
        self.service.sample()
        text = self.service.meters.text()
        return Response(text, media_type="text/plain; version=0.0.4", headers=HEADERS)

    async def page(self) -> Response:
        """The page, which asks this endpoint."""
        return self._file("index.html")

    async def asset(self, name: str) -> Response:
        """A file of the page."""
        return self._file(f"assets/{name}")

    async def chat(self, request: Request) -> Response:
        """An answer to a question about images, whole or as a stream."""
        asked = parse(ChatRequest, await json_body(request))
        return await self._asked(request, asked, Completion)

    async def respond(self, request: Request) -> Response:
        """An answer in the words of OpenAI's Responses API; nothing is kept."""
        asked = parse(ResponsesRequest, await json_body(request))
        try:
            return await self._asked(request, asked.of_chat(), partial(ResponsesCompletion, asked))
        except BadRequest as error:
            raise asked.in_own_words(error) from None

    async def completions(self) -> Response:
        """Refused: the model has no text to go on with."""
        raise BadRequest("E1706", NO_COMPLETIONS)

    async def _asked(
        self, request: Request, asked: ChatRequest, kind: Callable[..., Completion]
    ) -> Response:
        """Raises MedvError."""
        started_s = time.monotonic()
        texts = self.service.model(asked.model)
        owner = str(request.scope["state"]["key"])
        permits = self._permits_of(request)
        permits.check(owner, asked.num_choices)
        sampler = sampler_of(self._settings.sampler, asked, self._limits)
        form = await in_thread(partial(form_of, asked, self._limits))
        seed = self._settings.seed if asked.seed is None else asked.seed
        seeds = [(seed + i) % 2**63 for i in range(asked.num_choices)]
        said = kind(asked, texts, seeds, sampler, *identity(request), form)
        answering = self._answer(asked, said, sampler, form, owner, permits, started_s)
        return await unless_left(request, answering) or Response(status_code=LEFT)

    async def _answer(
        self,
        asked: ChatRequest,
        said: Completion,
        sampler: SamplerSettings,
        form: Template | None,
        owner: str,
        permits: Permits,
        started_s: float,
    ) -> Response:
        """Raises MedvError."""
        async with AsyncExitStack() as held:
            if self._audit is not None:
                held.callback(self._note_chat, said, owner, started_s)
            if (trace := current()) is not None:
                trace.note(model=asked.model, answers=len(said.choices), stream=bool(asked.stream))
                held.callback(lambda: trace.note(outcome=said.outcome))
            seeds = [choice.seed for choice in said.choices]
            with said.noting():
                held.enter_context(permits.taken(owner, len(seeds)))
                dialogue = dialogue_of(asked.messages, self._limits)
                said.warnings = dialogue.warnings
                first = await self._read(asked, dialogue, sampler, form, seeds[0])
            if self._audit is not None:
                said.image_sha256 = digests(first)
            requests = [replace(first, seed=seed) for seed in seeds]
            exchange = Exchange(self.service, said, requests, started_s)
            if said.request.stream:  # which holds it until it ends
                return await exchange.streamed(held.pop_all())
            return self._json(await exchange.whole())
        raise AssertionError("it has returned")

    def asking(self, owner: str) -> Ask:
        """How a batch of an API key asks: past the limits on what is answered at the same time, as
        it has limits of its own."""
        state = {"permits": self._of_batches}
        return asker(self.app, owner, state, lambda: self.service.is_over)

    def has_room(self, under_way: int) -> bool:
        """Whether one more line of a batch may start."""
        return max(under_way, self.service.scheduler.ongoing) < self.service.in_flight

    def count_lines(self, completed: int, failed: int) -> None:
        """Count lines of a batch that are committed now."""
        self.service.meters.add("medv_batch_lines", completed, outcome="answered")
        self.service.meters.add("medv_batch_lines", failed, outcome="failed")

    def _permits_of(self, request: Request) -> Permits:
        found: Permits = request.scope["state"].get("permits", self._permits)
        return found

    def _note_chat(self, said: Completion, owner: str, started_s: float) -> None:
        prompts = sorted({answer.prompt_sha256 for answer in said.answers.values()})
        about = {
            "request_sha256": digest_of(said.id),
            "model": said.request.model,
            "outcome": said.outcome,
        }
        self._note(owner, started_s, **about, prompt_sha256=prompts, image_sha256=said.image_sha256)

    def _note(self, owner: str, started_s: float, **fields: Any) -> None:
        if self._audit is None:
            return
        try:
            seconds = round(time.monotonic() - started_s, 3)
            self._audit.write(key=owner, seconds=seconds, **fields)
        except OSError as error:  # the answer is not to blame
            log.error("the audit log could not be written: %s", type(error).__name__)

    async def inspect(self, request: Request) -> Response:
        """What could stand at a position of a state of an answer, and where it looks."""
        started_s = time.monotonic()
        asked = parse(InspectRequest, await json_body(request))
        texts = self.service.model(asked.model)
        sampler = sampler_of(self._settings.sampler, asked, self._limits)
        form = await in_thread(partial(form_of, asked, self._limits))
        owner = str(request.scope["state"]["key"])
        request_id = f"inspect-{identity(request)[0]}"
        about = {"request_sha256": digest_of(request_id), "model": asked.model}

        async def answer() -> Response:
            with (
                self._noting(owner, started_s, about) as pictures,
                self._permits.taken(owner),
            ):
                dialogue = dialogue_of(asked.messages, self._limits)
                one = await self._read(asked, dialogue, sampler, form, self._settings.seed)
                pictures += digests(one) if self._audit is not None else []
                found = await self.service.inspect(asked.model, one, asked.tokens, asked.position)
            return self._json(inspection_body(found, asked.position, texts))

        return await unless_left(request, answer()) or Response(status_code=LEFT)

    async def picture(self, request: Request) -> Response:
        """A picture as it is read, its values before the window, and the model's tiles of it."""
        started_s = time.monotonic()
        asked = parse(PictureRequest, await json_body(request))
        self.service.model(asked.model)
        owner = str(request.scope["state"]["key"])
        request_id = f"picture-{identity(request)[0]}"
        about = {"request_sha256": digest_of(request_id), "model": asked.model}
        view = partial(self.service.view, asked.model)

        def read() -> tuple[str, dict[str, Any]]:
            found = viewed(asked, self._settings.image, self._fetch, view)
            return found.sha256, picture_body(found, self.service.tiles(asked.model))

        async def answer() -> Response:
            with (
                self._noting(owner, started_s, about) as pictures,
                self._permits.taken(owner),
            ):
                digest, body = await in_thread(read)
                pictures.append(digest)
            return self._json(body)

        return await unless_left(request, answer()) or Response(status_code=LEFT)

    @contextmanager
    def _noting(self, owner: str, started_s: float, about: dict[str, str]) -> Iterator[list[str]]:
        """Note what it ends with; digests of pictures are to be put into the list."""
        outcome, pictures = "left", list[str]()
        try:
            yield pictures
            outcome = "answered"
        except Exception as error:
            outcome = error.code if isinstance(error, MedvError) else "E1509"
            raise
        finally:
            self._note(owner, started_s, **about, outcome=outcome, image_sha256=pictures)

    async def _read(
        self,
        asked: Prompted,
        dialogue: Dialogue,
        sampler: SamplerSettings,
        form: Template | None,
        seed: int,
    ) -> Asked:
        """Raises BadRequest."""
        decode = partial(self.service.decode, asked.model)
        image, placed = self._settings.image, self.service.model(asked.model).placed

        def read() -> Asked:
            if form is not None:
                check_place(asked, self._limits, partial(placed, form, sampler))
            found = request_of(dialogue, sampler, seed, image, self._fetch, decode)
            return replace(found, template=form)

        with part("decode pictures") as about:
            found = await in_thread(read)
            about.attributes["pictures"] = len(found.images)
        return found

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
        if (trace := current()) is not None:
            trace.note(outcome=code)
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
            given = (error.headers or {}).get("Allow", "")
            allowed = given if "HEAD" in given else given.replace("GET", "GET, HEAD")
            refused = self._error("E1712", f"this path takes {allowed}.")
            refused.headers["allow"] = allowed
            return refused
        return self._error("E1706", "there is nothing at this path.")

    async def _defect(self, request: Request, error: Exception) -> Response:
        return self._error("E1509", f"{type(error).__name__}: a defect of the endpoint.")


async def in_thread(work: Callable[[], T]) -> T:
    """What some work gives. Base64 and pictures of a large body take time that others would wait
    for."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        # the thread goes on without its client: what it holds stays counted until it ends
        await asyncio.gather(working, return_exceptions=True)
        raise


def digest_of(request_id: str) -> str:
    """sha256 of an id that its client may have chosen: it may name a patient."""
    return hashlib.sha256(request_id.encode()).hexdigest()


def digests(asked: Asked) -> list[str]:
    """sha256 of the pictures as they came."""
    return [
        hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.sha256
        for data in asked.images
    ]


async def unless_left(
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
