"""Files and batches over HTTP: what each key sees, what is refused, what is left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medv_ray.archive.lock import Lock
from medv_ray.archive.store import Store
from medv_ray.serving.app import make_app
from medv_ray.serving.batch import batches as module
from medv_ray.serving.batch.runner import Runner
from medv_ray.serving.batch.shelf import Shelf
from medv_ray.serving.guard import App
from medv_ray.serving.options import BatchSettings
from medv_ray.serving.service import Service
from tests.unit.serving.batch.test_upload import BEARER, FORM, form
from tests.unit.serving.client import MODEL, Reply, ask, body_of, tiles
from tests.unit.serving.conftest import KEYS, NO_KEYS, settings_of, until

pytestmark = pytest.mark.integration

BOB = {"authorization": "Bearer key-of-bob-0123456789"}
CHAT = "/v1/chat/completions"
REAL = Runner._begin


@pytest.fixture
def make(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., App]]:
    """An endpoint with a folder, whose runner ends with the test."""
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(service, "beside", ends)

    def made(**settings: Any) -> App:
        batch = BatchSettings(folder=str(tmp_path / "kept"), **settings)
        given = settings_of().model_copy(update={"batch": batch})
        monkeypatch.setattr(service, "settings", given)
        return make_app(service, KEYS)

    yield made
    for end in ends:
        end()


def asked(text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return {"custom_id": text, "method": "POST", "url": CHAT, "body": body, **fields}


def jsonl(*lines: Any) -> bytes:
    return b"".join(
        (one if isinstance(one, str) else json.dumps(one)).encode() + b"\n" for one in lines
    )


def upload(app: App, data: bytes, key: dict[str, str] = BEARER, **named: Any) -> Reply:
    return ask(app, form(data, **named), path="/v1/files", headers={**FORM, **key})


def call(app: App, method: str, path: str, body: Any = b"", key: dict[str, str] = BEARER) -> Reply:
    return ask(app, body, method=method, path=path, headers=key)


def begin(app: App, file: str, /, **fields: Any) -> Reply:
    given = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    return call(app, "POST", "/v1/batches", {**given, **fields})


def ended(app: App, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def over() -> bool:
        nonlocal found
        found = call(app, "GET", f"/v1/batches/{name}").json()
        return found["status"] in ("completed", "failed", "cancelled", "expired")

    until(over, 60)
    return found


def content(app: App, name: str) -> list[dict[str, Any]]:
    reply = call(app, "GET", f"/v1/files/{name}/content")
    assert reply.status == 200
    return [json.loads(one) for one in reply.body.splitlines()]


def test_a_batch_from_upload_to_delete(make: Callable[..., App], tmp_path: Path) -> None:
    app = make()
    picture = tiles()[0]
    with_picture = asked("p", body=body_of(picture))
    wrong = asked("model")
    wrong["body"]["model"] = "gpt-4"
    odd = asked("top_p")
    odd["body"]["top_p"] = 0.5
    data = jsonl(asked("a"), "{bad", wrong, odd, asked("a"), with_picture)
    file = upload(app, data).json()
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(data), "in.jsonl", "batch")
    assert file["expires_at"] == file["created_at"] + 30 * 86400
    begun = begin(app, file["id"], metadata={"study": "x"}).json()
    assert begun["status"] in ("validating", "in_progress")
    done = ended(app, begun["id"])
    assert done["status"] == "completed"
    assert done["request_counts"] == {"total": 6, "completed": 2, "failed": 4}
    assert done["metadata"] == {"study": "x"}
    assert done["usage"]["total_tokens"] > done["usage"]["output_tokens"] > 0
    answers = content(app, done["output_file_id"])
    assert [one["custom_id"] for one in answers] == ["a", "p"]
    plain = call(app, "POST", CHAT, asked("a")["body"]).json()
    assert answers[0]["response"]["body"]["choices"] == plain["choices"]
    errors = content(app, done["error_file_id"])
    found = [(one["custom_id"], one["error"]["code"], one["error"]["param"]) for one in errors]
    assert found == [
        (None, "E1715", None), ("model", "E1706", "model"), ("top_p", "E1701", "top_p"),
        ("a", "E1715", "custom_id"),
    ]  # fmt: skip
    assert [one["error"]["line"] for one in errors] == [2, 3, 4, 5]
    text = call(app, "GET", "/metrics").body.decode()
    assert 'medv_batch_lines_total{outcome="answered"}' in text
    assert 'route="/v1/batches"' in text
    # to another key none of it is there
    for path in (
        f"/v1/files/{file['id']}", f"/v1/files/{done['output_file_id']}/content",
        f"/v1/batches/{begun['id']}",
    ):  # fmt: skip
        reply = call(app, "GET", path, key=BOB)
        assert (reply.status, reply.error["code"]) == (404, "E1706")
    assert call(app, "DELETE", f"/v1/files/{file['id']}", key=BOB).status == 404
    assert call(app, "POST", f"/v1/batches/{begun['id']}/cancel", key=BOB).status == 404
    assert call(app, "GET", "/v1/files", key=BOB).json()["data"] == []
    assert call(app, "GET", "/v1/batches", key=BOB).json()["data"] == []
    listed = call(app, "GET", "/v1/files").json()["data"]
    assert len(listed) == 3
    for one in listed:
        gone = call(app, "DELETE", f"/v1/files/{one['id']}").json()
        assert gone == {"id": one["id"], "object": "file", "deleted": True}
    assert call(app, "GET", f"/v1/files/{file['id']}").status == 404
    assert os.listdir(tmp_path / "kept" / "files") == []
    for folder, _, names in os.walk(tmp_path / "kept"):
        assert os.stat(folder).st_mode & 0o77 == 0
        assert set(names) <= {"about.json", "ledger.jsonl", "lock"}
    again = call(app, "POST", f"/v1/batches/{begun['id']}/cancel")
    assert (again.status, again.error["code"]) == (400, "E1701")


@pytest.fixture
def idle(make: Callable[..., App], monkeypatch: pytest.MonkeyPatch) -> Callable[..., App]:
    """An endpoint whose batches wait for ever."""

    async def nothing(self: Runner) -> None:
        return

    monkeypatch.setattr(Runner, "_begin", nothing)
    return make


def test_cancelled_before_it_began_and_needed_until_then(idle: Callable[..., App]) -> None:
    app = idle()
    file = upload(app, jsonl(asked("a"))).json()
    name = begin(app, file["id"]).json()["id"]
    refused = call(app, "DELETE", f"/v1/files/{file['id']}")
    assert (refused.status, refused.error["code"]) == (400, "E1714")
    shown = call(app, "POST", f"/v1/batches/{name}/cancel").json()
    assert shown["status"] == "cancelling"
    assert shown["cancelling_at"]


def test_a_cancelled_batch_tells_of_all_its_lines(
    idle: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = idle()
    file = upload(app, jsonl(asked("a"), asked("b"))).json()
    name = begin(app, file["id"]).json()["id"]
    call(app, "POST", f"/v1/batches/{name}/cancel")
    monkeypatch.setattr(Runner, "_begin", REAL)
    done = ended(app, name)
    assert done["status"] == "cancelled"
    assert done["output_file_id"] is None
    assert done["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    errors = content(app, done["error_file_id"])
    assert [one["error"]["type"] for one in errors] == ["batch_cancelled"] * 2


def test_an_expired_batch(idle: Callable[..., App], monkeypatch: pytest.MonkeyPatch) -> None:
    app = idle()
    file = upload(app, jsonl(asked("a"))).json()
    name = begin(app, file["id"], completion_window="1h").json()["id"]
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time", lambda: real() + 3601)
        patch.setattr(Runner, "_begin", REAL)
        done = ended(app, name)
    assert done["status"] == "expired"
    assert content(app, done["error_file_id"])[0]["error"]["type"] == "batch_expired"


def test_one_replica_works_on_a_batch(make: Callable[..., App], tmp_path: Path) -> None:
    """Another one that shares the folder sees its state."""
    app = make()
    held = tmp_path / "kept" / "batches" / f"batch-{'0' * 32}"
    file = upload(app, jsonl(asked("a"))).json()
    made = []
    real = module.Batches.create

    def locked(self: module.Batches, *given: Any) -> Any:
        made.append(real(self, *given))
        lock = Lock(Store(self.path(made[0].id)))
        lock.acquire()
        made.append(lock)
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Batches, "create", locked)
        name = begin(app, file["id"]).json()["id"]
    time.sleep(0.1)
    assert call(app, "GET", f"/v1/batches/{name}").json()["status"] == "validating"
    made[1].release()
    assert ended(app, name)["status"] == "completed"
    assert not held.exists()


def test_a_second_try_of_a_request_makes_no_second_batch(idle: Callable[..., App]) -> None:
    app = idle()
    file = upload(app, jsonl(asked("a"))).json()
    given = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    front = {**BEARER, "x-medv-request-id": "one", "x-medv-created": "1"}
    names = {ask(app, given, path="/v1/batches", headers=front).json()["id"] for _ in range(2)}
    assert len(names) == 1
    other = {**front, "x-medv-request-id": "two"}
    names.add(ask(app, given, path="/v1/batches", headers=other).json()["id"])
    assert len(names) == 2
    listed = call(app, "GET", "/v1/batches").json()
    assert {one["id"] for one in listed["data"]} == names


def test_lists_in_pages(idle: Callable[..., App]) -> None:
    app = idle()
    made = [upload(app, jsonl(asked(str(i)))).json()["id"] for i in range(3)]
    seen, after = [], ""
    while True:
        page = call(app, "GET", f"/v1/files?limit=2{after}").json()
        seen += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert sorted(seen) == sorted(made)
    ascending = call(app, "GET", "/v1/files?order=asc&purpose=batch").json()["data"]
    assert [one["id"] for one in ascending] == seen[::-1]
    assert call(app, "GET", "/v1/files?purpose=vision").json()["data"] == []
    for query in ("limit=0", "limit=x", "limit=99999"):
        assert call(app, "GET", f"/v1/files?{query}").error["param"] == "limit"
    assert call(app, "GET", "/v1/files?order=up").error["param"] == "order"
    assert call(app, "GET", "/v1/files?after=x").error["code"] == "E1706"


def test_limits_of_a_key(idle: Callable[..., App]) -> None:
    app = idle(files_per_key=2, bytes_per_key=1000)
    first = upload(app, b"{}\n").json()
    assert upload(app, b"{}\n" + b"x" * 998).error["code"] == "E1714"
    assert upload(app, b"{}\n").status == 200
    assert upload(app, b"{}\n").error["code"] == "E1714"
    assert upload(app, b"{}\n", BOB).status == 200
    front = {**BEARER, "x-medv-request-id": "one", "x-medv-created": "1"}
    for key in (BEARER, front):
        given = {"input_file_id": first["id"], "endpoint": CHAT, "completion_window": "24h"}
        made = ask(app, given, path="/v1/batches", headers=key)
        assert made.status == 200
    full = begin(app, first["id"])
    assert (full.status, full.error["code"]) == (400, "E1714")
    again = ask(app, given, path="/v1/batches", headers=front)  # a second try is no other batch
    assert again.json()["id"] == made.json()["id"]


BAD: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "file": ({"input_file_id": f"file-{'0' * 32}"}, "E1706", "input_file_id"),
    "path": ({"input_file_id": "../../etc"}, "E1706", "input_file_id"),
    "endpoint": ({"endpoint": "/v1/embeddings"}, "E1701", "endpoint"),
    "minutes": ({"completion_window": "30m"}, "E1701", "completion_window"),
    "window": ({"completion_window": "1d"}, "E1701", "completion_window"),
    "long window": ({"completion_window": "169h"}, "E1701", "completion_window"),
    "metadata": ({"metadata": {"a": 1}}, "E1701", "metadata"),
    "much metadata": ({"metadata": {str(i): "" for i in range(17)}}, "E1701", "metadata"),
    "unknown": ({"priority": 1}, "E1701", "priority"),
}


def test_what_a_batch_can_not_be_made_of(idle: Callable[..., App]) -> None:
    app = idle()
    file = upload(app, jsonl(asked("a"))).json()
    for what, (fields, code, param) in BAD.items():
        error = begin(app, file["id"], **fields).error
        assert (error["code"], error["param"]) == (code, param), what
        if param == "completion_window":
            assert error["message"].startswith("completion_window: must be whole hours")
    for purpose in ("fine-tune", ""):
        reply = upload(app, jsonl(asked("a")), purpose=purpose)
        assert (reply.error["code"], reply.error["param"]) == ("E1701", "purpose")
    assert call(app, "POST", "/v1/files", {}).error["code"] == "E1710"
    for path in ("/v1/files/x", "/v1/files/..%2f", f"/v1/batches/{file['id']}"):
        assert call(app, "GET", path).error["code"] == "E1706"


def test_a_file_of_blank_lines_behind_text_fails_as_a_whole(make: Callable[..., App]) -> None:
    app = make()
    file = upload(app, b"\xef\xbb\xbf\n\n").json()
    done = ended(app, begin(app, file["id"]).json()["id"])
    assert done["status"] == "failed"
    assert done["errors"]["data"][0]["code"] == "E1701"


def test_what_has_expired_is_removed(idle: Callable[..., App], monkeypatch: Any) -> None:
    app = idle(keep_seconds=3600)
    one, two = (upload(app, jsonl(asked(text))).json() for text in "ab")
    begin(app, one["id"])
    real = time.time
    monkeypatch.setattr(module.time, "time", lambda: real() + 3601)
    assert call(app, "GET", f"/v1/files/{two['id']}").status == 404
    shelf = Shelf(BatchSettings(folder=str(_folder(app)), keep_seconds=3600))
    batches = module.Batches(shelf)
    shelf.sweep(batches.needed(batches.unfinished()))
    left = os.listdir(shelf.path("files"))
    assert left == [one["id"]]  # an unfinished batch reads it


def _folder(app: App) -> str:
    found: str = app._app._uploads._shelf.root  # type: ignore[attr-defined]
    return found


def test_without_a_folder_the_routes_say_how_to_have_one(service: Service) -> None:
    app = make_app(service, NO_KEYS)
    for method, path in (
        ("GET", "/v1/files"), ("GET", "/v1/files/x"), ("DELETE", "/v1/files/x"),
        ("GET", "/v1/batches"), ("POST", "/v1/batches"), ("POST", "/v1/batches/x/cancel"),
    ):  # fmt: skip
        error = ask(app, b"{}", method=method, path=path).error
        assert error["code"] == "E1713"
        assert "--batch-folder" in error["message"]
    assert ask(app, form(), path="/v1/files", headers=FORM).error["code"] == "E1713"
