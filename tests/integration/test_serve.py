"""The endpoint on Ray Serve: the toy behind Serve's own proxy, with our front in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from ray import serve

from medv_ray.engine import Predictor, Request
from medv_ray.on_ray.options import serve_settings
from medv_ray.on_ray.serve import build
from tests.canary import search
from tests.canary.planting import WORD
from tests.canary.test_endpoint import HEADERS, PATH, asked, refused
from tests.chaos.serve_runs import LOCAL_JSON, LONG, MARK, Clients, Endpoint, Seen, free_port, raw
from tests.unit.serving.client import body_of, encoded, tiles

CHAT = "/v1/chat/completions"
CANARIES = {
    **{
        name: text
        for name, text in HEADERS.items()
        if name not in ("authorization", "x-forwarded-for")  # by the latter it is another machine
    },
    "content-type": "application/json",
}


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def endpoint(local_ray: None, audit: Path) -> Iterator[Endpoint]:
    port = free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    settings = {
        "model": "toy", "audit_log": str(audit), "limits": {"queue": 200},
        "batch": json.loads(os.environ["MEDV_SERVE_BATCH"]),
    }  # fmt: skip
    serve.run(build(settings), name="medv", route_prefix="/")
    yield Endpoint(port, MARK)
    serve.shutdown()


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=endpoint.url, timeout=60, trust_env=False) as client:
        yield client


def test_answers_are_the_predictors(http: httpx2.Client) -> None:
    settings = serve_settings({"model": "toy"})
    requests = [Request(row.question, (row.image,), seed=3) for row in tiles()]
    with Predictor.load(settings.model, settings.answer) as predictor:
        expected = predictor.answer(requests)
    for row, answer in zip(tiles(), expected, strict=True):
        whole = http.post(CHAT, json=body_of(row, seed=3))
        assert whole.json()["choices"][0]["message"]["content"] == answer.text
        assert whole.json()["usage"]["prompt_tokens"] == answer.prompt_tokens
        stream = http.post(CHAT, json=body_of(row, seed=3, stream=True))
        events = [e.removeprefix("data: ") for e in stream.text.split("\n\n") if e]
        assert events.pop() == "[DONE]"
        deltas = [choice["delta"] for e in events for choice in json.loads(e)["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == answer.text


def test_the_front_stands_in_the_proxy(endpoint: Endpoint, http: httpx2.Client) -> None:
    """What a replica would not see: paths of Serve's own, and a body that is refused unread."""
    assert http.get("/-/healthz").status_code == 200
    assert http.get("/-/routes").status_code == 404
    # FastAPI's own route, and what it would answer by a redirect
    assert "/v1/inspect" in http.get("/openapi.json").json()["paths"]
    assert http.get("/health/").status_code == 404
    head = LOCAL_JSON + f"content-length: {2**40}\r\n".encode()
    assert asyncio.run(raw(endpoint, head, b"{}"))[0] == 413
    other = http.post(CHAT, json=body_of(), headers={"host": "attacker.example"})
    assert (other.status_code, other.json()["error"]["code"]) == (403, "E1705")


def test_head_and_methods_pass_through_serve(http: httpx2.Client) -> None:
    for _ in range(2):  # on the same connection
        head = http.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        assert http.get("/ping").json()["status"] == "ok"
    refused = http.get(CHAT)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_a_batch_whose_file_is_longer_than_a_body(http: httpx2.Client) -> None:
    """The proxy puts it on disk, a replica answers it."""
    body = body_of(diffusion={"gen_length": 4, "block_length": 4, "steps": 4})
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    data = json.dumps(line).encode() + b"\n" + b"x" * 21 * 2**20
    sent = {"file": ("in.jsonl", data)}
    file = http.post("/v1/files", files=sent, data={"purpose": "batch"}).json()
    assert file["bytes"] == len(data)
    asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=asked).json()
    deadline = time.monotonic() + 30
    while batch["status"] not in ("completed", "failed"):
        assert time.monotonic() < deadline, batch["status"]
        time.sleep(0.1)
        batch = http.get(f"/v1/batches/{batch['id']}").json()
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    [answer] = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    plain = http.post(CHAT, json=body).json()
    assert json.loads(answer)["response"]["body"]["choices"] == plain["choices"]
    [refused] = http.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
    assert json.loads(refused)["error"]["code"] == "E1715"


def test_page_and_health(http: httpx2.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert http.get("/health").json()["status"] == "ok"


@pytest.mark.slow
def test_lost_replicas_cost_no_request(endpoint: Endpoint) -> None:
    seen = Seen()

    before = 0

    async def run() -> None:
        clients = Clients(endpoint, seen)
        await clients.must_answer()

        async def kill() -> None:
            nonlocal before
            await asyncio.sleep(1.5)
            [pid] = endpoint.pids("ServeReplica")
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.5)
            before = seen.statuses[200]

        await asyncio.gather(kill(), clients.many(6, 4.0))
        await clients.must_answer()

    asyncio.run(run())
    assert seen.problems == []
    assert set(seen.statuses) == {200}
    assert before > 6
    assert seen.statuses[200] >= before + 6  # those that were on their way, at least


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_computed_for(http: httpx2.Client, stream: bool) -> None:
    client = http.stream("POST", CHAT, json=body_of(stream=stream, diffusion=LONG), timeout=1.0)
    if stream:  # it begins at once
        with client as reply:
            assert reply.status_code == 200
            assert http.get("/health").json()["ongoing"] == 1
    else:
        with pytest.raises(httpx2.ReadTimeout), client:
            pass
    begun_s = time.monotonic()
    while http.get("/health").json()["ongoing"]:
        assert time.monotonic() - begun_s < 2, "it would go on for six"
        time.sleep(0.05)


def test_metrics_go_through_ray(http: httpx2.Client) -> None:
    import ray

    http.post(CHAT, json=body_of())
    http.post(CHAT, json=body_of(), headers={"host": "attacker.example"})
    assert (
        'medv_requests_total{route="/v1/chat/completions",status="200"}'
        in http.get("/metrics").text
    )
    [node] = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    found = ""
    deadline = time.monotonic() + 30
    wanted = ("ray_medv_requests_total{", "ray_medv_front_refusals_total{", 'code="E1705"')
    while not all(name in found for name in wanted) and time.monotonic() < deadline:
        found = httpx2.get(address, trust_env=False).text
        time.sleep(0.5)
    assert all(name in found for name in wanted)
    assert "ray_medv_denoise_seconds_bucket{" in found


def test_requests_of_canaries(http: httpx2.Client, audit: Path) -> None:
    """The logs of Serve are searched when the session ends, with Ray's own (conftest.py)."""
    for number, body in enumerate((asked(), asked(stream=True), *refused().values())):
        content = encoded(body)
        reply = http.post(PATH, content=content, headers=CANARIES)
        assert (reply.status_code == 200) == (number < 2), reply.text
        assert reply.status_code < 500
        if reply.status_code != 200:
            assert search.in_text(reply.text, repr(reply.headers)) == []
    for path in ("/metrics", "/openapi.json", f"/{WORD}"):
        assert search.in_text(http.get(path).text) == []
    assert search.in_folder(audit.parent) == []


def test_audit_holds_digests_only(http: httpx2.Client, audit: Path) -> None:
    row = tiles()[0]
    http.post(CHAT, json=body_of(row), headers={"x-request-id": "audited"})
    text = "".join(file.read_text() for file in audit.parent.iterdir())
    digest = hashlib.sha256(b"chatcmpl-audited").hexdigest()
    line = next(json.loads(one) for one in text.splitlines() if digest in one)
    assert line["outcome"] == "answered"
    assert len(line["prompt_sha256"][0]) == len(line["image_sha256"][0]) == 64
    assert row.question not in text
