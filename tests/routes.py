"""Every route of an endpoint by every method, asked without a key and with wrong ones.

    python -m tests.routes

One JSON line; exit code 1 if one of them is answered by anything but 401.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from tests.unit.serving.client import CHAT, KEY, Reply, ask, body_of, encoded, get
from tests.unit.serving.conftest import KEYS, settings_of

BEARER = {"authorization": f"Bearer {KEY}"}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE")
BESIDE = ("/openapi.json", "/docs", "/redoc", "/admin", "/-/routes", "//")
"""Paths that the OpenAPI file does not have."""
WRONG_KEYS = [
    None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
    f"Bearer x{KEY}", f"Bearer {KEY.upper()}", "Bearer " + "x" * 5000, "Bearer \xff\xfe",
    f"Bearer {KEY} {KEY}", f"Bearer\t{KEY}",
]  # fmt: skip


def routes(app: App) -> list[tuple[str, str]]:
    """From the OpenAPI file, with every method, and what is there beside."""
    made = get(app, "/openapi.json", headers=BEARER).json()
    return [(path, method) for path in (*made["paths"], *BESIDE) for method in METHODS]


def keyless(app: App, found: list[tuple[str, str]]) -> Iterator[tuple[str, str, Reply]]:
    """The answer of each route without a key, with a wrong one, and of chat with all of those."""
    for path, method in found:
        for key in WRONG_KEYS if (path, method) == (CHAT, "POST") else [None, "Bearer nobody"]:
            headers = {} if key is None else {"authorization": key}
            asked = encoded(body_of())
            yield path, method, ask(app, asked, path=path, method=method, headers=headers)


def main() -> int:
    service = Service.load(settings_of())
    try:
        app = make_app(service, KEYS)
        found = routes(app)
        answers = [reply.status for _, _, reply in keyless(app, found)]
    finally:
        service.close()
    figures = {
        "routes": len(found),
        "asked_without_key": len(answers),
        "refused_401": answers.count(401),
    }
    print(json.dumps(figures))
    return int(not answers or answers.count(401) < len(answers))


if __name__ == "__main__":
    sys.exit(main())
