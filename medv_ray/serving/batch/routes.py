"""The routes of files and batches. Without a folder each says how to have one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import FileResponse, JSONResponse, Response

from medv_ray.disk import disk_errors
from medv_ray.serving.batch.batches import Batches, BatchRequest
from medv_ray.serving.batch.shelf import Shelf, StoredFile
from medv_ray.serving.exchange import HEADERS
from medv_ray.serving.guard import UPLOAD
from medv_ray.serving.openapi import Api
from medv_ray.serving.protocol import BadRequest, parse
from medv_ray.serving.requests import identity, json_body

MOST = 10000
"""Entries of a page of a list of files; of batches 100, as OpenAI has it."""
FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"const": "batch"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
    },
}
"""JSON schema of the form that brings a file."""
T = TypeVar("T")
R = TypeVar("R", bound=Any)


class BatchRoutes:
    """What clients do with files and batches."""

    def __init__(self, shelf: Shelf | None, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something new to work on."""
        self._shelf, self._wake = shelf, wake

    def add_to(self, app: Api) -> None:
        """Have the routes in an application."""
        app.serve("POST", "/v1/files", self.upload, form=FORM)
        app.serve("GET", "/v1/files", self.files)
        app.serve("GET", "/v1/files/{name}", self.file)
        app.serve("DELETE", "/v1/files/{name}", self.delete)
        text: dict[str, Any] = {"application/jsonl": {}}
        app.serve("GET", "/v1/files/{name}/content", self.content, answers=text)
        app.serve("POST", "/v1/batches", self.create, BatchRequest)
        app.serve("GET", "/v1/batches", self.batches)
        app.serve("GET", "/v1/batches/{name}", self.batch)
        app.serve("POST", "/v1/batches/{name}/cancel", self.cancel)

    async def upload(self, request: Request) -> Response:
        """Keep a file of requests."""
        shelf, owner = self._here(), owner_of(request)
        taken = request.scope.get(UPLOAD)
        if taken is None:
            raise BadRequest("E1710", "the body must be multipart/form-data with a file.")

        def put() -> StoredFile:
            shelf.check_room(owner, taken["bytes"])
            now, keep = int(time.time()), _keep(taken["fields"], shelf.settings.keep_seconds)
            name, size = taken["id"], taken["bytes"]
            about = StoredFile(name, owner, taken["filename"], "batch", size, now, now + keep)
            return shelf.put(about)

        return _json((await _on_disk(put)).shown())

    async def files(self, request: Request) -> Response:
        """The key's files, the latest first."""
        shelf, purpose = self._here(), request.query_params.get("purpose")
        found = await _on_disk(partial(shelf.all, owner_of(request)))
        found = [one for one in found if purpose in (None, one.purpose)]
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest("E1701", "order: asc or desc.", "order")
        if order == "asc":
            found.reverse()
        return _json(_page(request, found, StoredFile.shown, MOST))

    async def file(self, request: Request, name: str) -> Response:
        """What is known of a file."""
        return _json((await self._file(request, name)).shown())

    async def content(self, request: Request, name: str) -> Response:
        """What a file holds."""
        about = await self._file(request, name)
        return FileResponse(
            self._here().content(about.id), headers=HEADERS, media_type="application/jsonl"
        )

    async def delete(self, request: Request, name: str) -> Response:
        """Remove a file, unless a batch that is not over needs it."""
        shelf, about = self._here(), await self._file(request, name)

        def remove() -> None:
            batches = Batches(shelf)
            if about.id in batches.needed(batches.unfinished()):
                rule = "a batch that is not over reads this file; cancel it first."
                raise BadRequest("E1714", rule, "id")
            shelf.remove(about.id)

        await _on_disk(remove)
        return _json({"id": about.id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        """Have the lines of a file answered when there is time."""
        batches = Batches(self._here())
        asked = parse(BatchRequest, await json_body(request))
        create = partial(batches.create, owner_of(request), asked, identity(request))
        made = await _on_disk(create)
        self._wake()
        return _json(await _on_disk(partial(batches.shown, made)))

    async def batches(self, request: Request) -> Response:
        """The key's batches, the latest first."""
        batches = Batches(self._here())
        found = await _on_disk(partial(batches.all, owner_of(request)))
        return _json(await _on_disk(partial(_page, request, found, batches.shown, 100)))

    async def batch(self, request: Request, name: str) -> Response:
        """How far a batch has come."""
        batches = Batches(self._here())
        found = await _on_disk(partial(batches.get, owner_of(request), name))
        return _json(await _on_disk(partial(batches.shown, found)))

    async def cancel(self, request: Request, name: str) -> Response:
        """End a batch; what is answered by then stays."""
        batches = Batches(self._here())
        found = await _on_disk(partial(batches.get, owner_of(request), name))
        await _on_disk(partial(batches.cancel, found))
        self._wake()
        return _json(await _on_disk(partial(batches.shown, found)))

    async def _file(self, request: Request, name: str) -> StoredFile:
        return await _on_disk(partial(self._here().get, owner_of(request), name))

    def _here(self) -> Shelf:
        if self._shelf is None:
            rule = "files and batches are switched off here: medv serve --batch-folder FOLDER."
            raise BadRequest("E1713", rule)
        return self._shelf


def owner_of(request: Request) -> str:
    """The name of the key that asks; empty without keys."""
    return str(request.scope["state"]["key"])


def _keep(fields: dict[str, str], most: int) -> int:
    """How long a file is kept, in seconds. Raises BadRequest E1701."""
    if fields.get("purpose") != "batch":
        raise BadRequest("E1701", "purpose: only batch is taken.", "purpose")
    anchor, seconds = (fields.get(f"expires_after[{part}]") for part in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return most
    number = int(seconds) if seconds and seconds.isdecimal() and len(seconds) < 8 else 0
    if anchor != "created_at" or not 3600 <= number <= 2592000:
        rule = "expires_after: anchor must be created_at, and seconds from 3600 to 2592000."
        raise BadRequest("E1701", rule, "expires_after")
    return min(number, most)


def _page(
    request: Request, found: list[R], shown: Callable[[R], dict[str, Any]], most: int
) -> dict[str, Any]:
    """A part of a list. Raises BadRequest E1701."""
    given = request.query_params.get("limit", str(min(most, 20 if most == 100 else most)))
    limit = int(given) if given.isdecimal() and len(given) < 6 else 0
    if not 1 <= limit <= most:
        raise BadRequest("E1701", f"limit: a number from 1 to {most}.", "limit")
    after = request.query_params.get("after")
    if after is not None:
        places = [i for i, one in enumerate(found) if one.id == after]
        if not places:
            raise BadRequest("E1706", "after: this key has nothing of that id here.", "after")
        found = found[places[0] + 1 :]
    data = [shown(one) for one in found[:limit]]
    return {
        "object": "list",
        "data": data,
        "has_more": len(found) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


async def _on_disk(work: Callable[[], T]) -> T:
    """What some work with files gives, beside the loop. Raises RunError E1503, E1511."""

    def run() -> T:
        with disk_errors("the folder of batches"):
            return work()

    return await asyncio.to_thread(run)


def _json(value: dict[str, Any]) -> JSONResponse:
    return JSONResponse(value, headers=HEADERS)
