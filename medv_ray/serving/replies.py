"""Error answers: a catalogue code, the rule and the way out, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

from medv_ray.errors import MedvError

STATUS = {
    "E1112": 413,
    "E1305": 500,
    "E1306": 503,
    "E1503": 503,
    "E1506": 500,
    "E1509": 500,
    "E1511": 500,
    "E1513": 500,
    "E1702": 401,
    "E1703": 413,
    "E1704": 400,
    "E1705": 403,
    "E1706": 404,
    "E1707": 429,
    "E1708": 503,
    "E1709": 408,
    "E1710": 415,
    "E1711": 431,
    "E1712": 405,
    "E1713": 404,
}
"""HTTP status by code; 400 for those that are not named."""
OURS = b"x-medv"
"""Header of every answer of a replica, bad news included: what comes without is Serve's own."""
REQUEST_ID = "x-medv-request-id"
"""Header in which the front hands on the id that a client gave its request. Serve gets another."""
TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error", 500: "server_error", 503: "server_error",
}  # fmt: skip
"""OpenAI's word for a status; `invalid_request_error` for those that are not named."""


def is_plain(request_id: str) -> bool:
    """Whether an id that a client gave its request is taken."""
    return request_id.isascii() and request_id.replace("-", "").isalnum() and len(request_id) <= 64


def status_of(code: str) -> int:
    """HTTP status of a catalogue code."""
    return STATUS.get(code, 400)


def error_object(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """What stands under `error`."""
    kind = TYPES.get(status_of(code), "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": code}


def error_of(error: MedvError) -> dict[str, Any]:
    """An error as a client sees it."""
    return error_object(error.code, error.detail, getattr(error, "param", None))


def body_of(error: dict[str, Any]) -> bytes:
    """The body of an error answer."""
    return json.dumps({"error": error}).encode()


def headers_of(status: int, retry_after_s: int) -> dict[str, str]:
    """Headers that belong to a status."""
    headers = {OURS.decode(): "1"}
    if status in (429, 503):
        headers["retry-after"] = str(retry_after_s)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers
