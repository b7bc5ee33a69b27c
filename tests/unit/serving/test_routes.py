"""What any HTTP client may try: HEAD, other methods, probes, names of this machine, the file of
all of it."""

from __future__ import annotations

import json

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, OpenAPIV32SpecValidator

from medv_ray import __version__
from medv_ray.serving.app import ROUTES, make_app
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from medv_ray.settings import TOY
from tests.unit.serving.client import CHAT, MODEL, ask, body_of, get
from tests.unit.serving.conftest import NO_KEYS, serving

GETS = ("/", "/v1/models", f"/v1/models/{MODEL}", "/health", "/ping", "/version", "/metrics")


@pytest.mark.parametrize("path", [*GETS, "/openapi.json", "/v1/models/no", "/nothing"])
def test_head_is_get_without_the_body(app: App, path: str) -> None:
    whole, head = get(app, path), ask(app, method="HEAD", path=path)
    assert whole.body
    assert head.body == b""
    assert head.ended
    different = {"content-length"} if path == "/metrics" else set()
    assert {k: v for k, v in head.headers.items() if k not in different} == {
        k: v for k, v in whole.headers.items() if k not in different
    }
    assert head.status == whole.status


def test_a_head_over_the_wire(service: Service) -> None:
    import httpx2

    with serving(make_app(service, NO_KEYS)) as address, httpx2.Client() as client:
        for _ in range(2):  # the connection goes on
            reply = client.head(f"{address}/health")
            assert (reply.status_code, reply.content) == (200, b"")
            assert client.get(f"{address}/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", f"/v1/models/{MODEL}", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("PUT", "/v1/inspect", "POST"),
    ],
)
def test_a_405_says_what_is_allowed(app: App, method: str, path: str, allowed: str) -> None:
    reply = ask(app, method=method, path=path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert reply.error["code"] == "E1712"
        assert allowed in reply.error["message"]


def test_version_and_probe(app: App) -> None:
    assert get(app, "/version").json() == {"version": __version__}
    assert get(app, "/ping").json() == get(app, "/health").json() == {"status": "ok", "ongoing": 0}
    assert set(GETS) - {f"/v1/models/{MODEL}"} <= set(ROUTES)


def test_a_model_was_created_when_its_folder_was_written(app: App) -> None:
    (model,) = get(app, "/v1/models").json()["data"]
    assert model["created"] == int((TOY / "config.json").stat().st_mtime)
    assert model["created"] > 1_000_000_000


HERE = ["localhost", "LOCALHOST:8000", "LocalHost.:1", "127.0.0.1", "127.0.0.1:8000", "[::1]:80"]
ELSEWHERE = [
    "example.org", "localhost.example.org", "xlocalhost", "localhost..", "127.0.0.1.nip.io", ""
]  # fmt: skip


@pytest.mark.parametrize("host", [*HERE, *ELSEWHERE])
def test_names_of_this_machine_and_others(app: App, host: str) -> None:
    status = get(app, "/health", headers={"host": host}).status
    assert status == (200 if host in HERE else 403)


def test_the_openapi_file_is_valid_in_the_version_that_it_names(app: App) -> None:
    made = json.loads(get(app, "/openapi.json").body)
    assert made["openapi"] == "3.2.0"
    assert list(OpenAPIV32SpecValidator(made).iter_errors()) == []
    assert set(ROUTES) - {"/"} <= set(made["paths"])
    assert {f"/v1/files/{'{name}'}/content", f"/v1/batches/{'{name}'}/cancel"} <= set(made["paths"])
    form = made["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["required"] == ["file", "purpose"]
    assert {"tools", "top_k", "n"} <= set(
        made["components"]["schemas"]["ChatRequest"]["properties"]
    )
    # the validator sees faults: before 3.2 there was no word for a stream's events
    older = OpenAPIV31SpecValidator({**made, "openapi": "3.1.0"})
    assert any("itemSchema" in error.message for error in older.iter_errors())


def test_an_answer_with_every_route_counted_by_name(app: App) -> None:
    assert ask(app, body_of()).status == 200
    text = get(app, "/metrics").body.decode()
    assert 'route="/ping"' in text
    assert 'route="/version"' in text
