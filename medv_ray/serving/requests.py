"""What every route reads of a request: its JSON, its id and its time."""

from __future__ import annotations

import time
import uuid

from fastapi import Request

from medv_ray.serving.protocol import BadRequest
from medv_ray.serving.replies import REQUEST_ID, is_plain


async def json_body(request: Request) -> bytes:
    """Raises BadRequest E1710 for another kind: a form of another site's page needs no consent."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest("E1710", "the body must be application/json.")
    return await request.body()


def identity(request: Request) -> tuple[str, int]:
    """Id and time of a request, as the front gave them; a second try has the same."""
    given = request.headers.get(REQUEST_ID) or request.headers.get("x-request-id", "")
    created = request.headers.get("x-medv-created", "")
    return (
        given if is_plain(given) else uuid.uuid4().hex,
        int(created)
        if created.isascii() and created.isdecimal() and len(created) < 12
        else int(time.time()),
    )
