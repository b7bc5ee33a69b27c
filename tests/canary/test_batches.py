"""What a folder of batches holds, beside what was asked and answered, and what is said of it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from medv_ray.serving.app import make_app
from medv_ray.serving.options import BatchSettings
from medv_ray.serving.service import Service
from tests.canary import search
from tests.canary.planting import FILE, NUMBER, QUESTION, WORD
from tests.canary.test_endpoint import HEADERS, asked
from tests.unit.serving.batch.test_upload import FORM, form
from tests.unit.serving.client import CHAT, ask, get
from tests.unit.serving.conftest import KEYS, service, settings_of, until

__all__ = ["service"]  # the fixture


def line(custom_id: str, **fields: Any) -> bytes:
    given = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked()}
    return json.dumps({**given, **fields}).encode() + b"\n"


def test_a_batch(
    service: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    ends: list[Any] = []
    batch = BatchSettings(folder=str(tmp_path))
    given = settings_of().model_copy(update={"batch": batch})
    monkeypatch.setattr(service, "settings", given)
    monkeypatch.setattr(service, "beside", ends)
    app = make_app(service, KEYS)
    lines = [
        line(WORD), f'{{"{WORD}": "{QUESTION}'.encode() + b"\n", line(WORD, url=f"/{WORD}"),
        line(NUMBER, body={"model": WORD, "messages": []}),
    ]  # fmt: skip
    sent = form(b"".join(lines), filename=f"{FILE}.jsonl")
    file = ask(app, sent, path="/v1/files", headers={**HEADERS, **FORM}).json()
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    made = ask(app, wanted, path="/v1/batches", headers=HEADERS).json()
    path = f"/v1/batches/{made['id']}"
    until(lambda: get(app, path, headers=HEADERS).json()["status"] == "completed", 60)
    done = get(app, path, headers=HEADERS)
    assert done.json()["request_counts"] == {"total": 4, "completed": 1, "failed": 3}
    assert search.hits(done.body) == []
    kept = tmp_path / "batches" / made["id"]
    assert search.in_folder(kept) == []
    errors = get(app, f"/v1/files/{done.json()['error_file_id']}/content", headers=HEADERS)
    for one in errors.body.splitlines():  # the client's own id comes back, and nothing else
        told = {name: value for name, value in json.loads(one).items() if name != "custom_id"}
        assert search.hits(json.dumps(told).encode()) == []
    for bad in (form(b"\0" + WORD.encode()), form(b"{}", purpose=WORD), sent[:-9]):
        reply = ask(app, bad, path="/v1/files", headers={**HEADERS, **FORM})
        assert 400 <= reply.status < 500
        assert search.hits(reply.body) == []
    for one in get(app, "/v1/files", headers=HEADERS).json()["data"]:
        ask(app, method="DELETE", path=f"/v1/files/{one['id']}", headers=HEADERS)
    for end in ends:
        end()
    assert os.listdir(tmp_path / "files") == os.listdir(tmp_path / "incoming") == []
    assert search.in_folder(tmp_path) == []
    said = capfd.readouterr()
    logs = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert search.in_text(said.out, said.err, *logs) == []
