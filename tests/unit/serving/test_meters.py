"""/metrics: right counts, and no word of a client's in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.meters import METERS, Meters
from medv_ray.serving.service import Service
from tests.unit.serving.client import CHAT, ask, ask_all, body_of, get, message, tiles
from tests.unit.serving.conftest import NO_KEYS, settings_of

SECRET = "Erika-Mustermann-4711"


@pytest.fixture
def app(service: Service, monkeypatch: pytest.MonkeyPatch) -> App:
    """With meters of its own."""
    monkeypatch.setattr(service, "settings", settings_of(ongoing=200))
    meters = Meters()
    meters.follow(service.scheduler.counters())
    monkeypatch.setattr(service, "meters", meters)
    monkeypatch.setattr(meters, "_shown", meters._shown.__class__())
    monkeypatch.setattr(meters, "_backends", [meters._shown])
    return make_app(service, NO_KEYS)


def values(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    reply = get(app, "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(reply.body.decode()))
    assert {family.name for family in families} >= set(METERS)
    samples = [sample for family in families for sample in family.samples]
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for s in samples
        if not s.name.endswith("_created")
    }


def requests(status: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return ("medv_requests_total", (("route", CHAT), ("status", status)))


def test_what_is_counted(app: App) -> None:
    row = tiles()[1]
    bodies = [body_of(row, seed=i, stream=i % 2 == 0) for i in range(6)]
    replies = ask_all(app, [*bodies, body_of(row, n=3)])
    assert [reply.status for reply in replies] == [200] * 7
    assert ask(app, body_of(messages=[message(" ")])).status == 400
    found = values(app)
    assert found[requests("200")] == 7
    assert found[requests("400")] == 1
    assert found[("medv_request_seconds_count", (("route", CHAT),))] == 8
    used = [reply.json()["usage"] for reply in replies if reply.body.startswith(b"{")]
    answer = used[0]["completion_tokens"]
    assert found[("medv_answer_tokens_total", ())] == 9 * answer
    assert found[("medv_prompt_tokens_total", ())] == 9 * used[0]["prompt_tokens"]
    assert found[("medv_queue_seconds_count", ())] == 9
    assert found[("medv_denoise_seconds_count", ())] == 9
    hits = found[("medv_image_cache_hits_total", ())]
    runs = found.get(("medv_image_tower_runs_total", ()), 0)
    assert hits + runs == 9
    assert runs <= 1
    assert found[("medv_ongoing", ())] == 0
    assert 9 <= found[("medv_steps_total", ())] <= 72
    again = {
        key: value for key, value in values(app).items() if ("route", "/metrics") not in key[1]
    }
    assert again == found, "asking changes nothing"


def test_no_label_comes_from_a_client(app: App) -> None:
    odd: list[dict[str, Any]] = [
        {"model": SECRET},
        {"user": SECRET, "metadata": {SECRET: SECRET}},
        {"messages": [message(SECRET)]},
        {"stop": [SECRET]},
        {SECRET: 1},
    ]
    for fields in odd:
        ask(app, body_of(**fields), headers={"x-request-id": "Erika", "user-agent": SECRET})
    ask(app, b"", path=f"/{SECRET}", method="GET")
    ask(app, b"", method="PATCH", path=f"/v1/{SECRET}")
    ask(app, b"", path=f"/v1/models/{SECRET}", method="GET")
    text = get(app, "/metrics").body.decode()
    assert "Erika" not in text
    labels = {key for _, pairs in values(app) for key in pairs}
    assert {name for name, _ in labels} == {"route", "status", "le"}
    routes = {value for name, value in labels if name == "route"}
    assert routes == {CHAT, "/metrics", "/v1/models", "other"}
    assert {value for name, value in labels if name == "status"} <= {"200", "400", "404", "405"}


def test_health_and_the_page_in_a_replica_that_is_well(app: App) -> None:
    assert get(app, "/health").json() == {"status": "ok", "ongoing": 0}
    assert get(app, "/nothing").error["code"] == "E1706"
    wrong = ask(app, b"", path="/health")
    assert (wrong.status, wrong.error["code"]) == (405, "E1712")


def test_a_counter_is_told_of_no_zero() -> None:
    """Ray's raise there; a gauge and a histogram take one."""
    told: list[str] = []
    other: Any = SimpleNamespace(add=lambda name, value, labels: told.append(name))
    meters = Meters([other])
    for name in ("medv_answer_tokens", "medv_ongoing", "medv_queue_seconds"):
        meters.add(name, 0.0)
    assert told == ["medv_ongoing", "medv_queue_seconds"]
