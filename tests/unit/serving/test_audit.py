"""The audit log: chained lines that say who and when, and never what."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from medv_ray.serving.app import make_app
from medv_ray.serving.audit import AuditLog, verify
from medv_ray.serving.service import Service
from tests.unit.serving.client import KEY, ask, ask_all, body_of, message, tiles
from tests.unit.serving.conftest import KEYS, settings_of

SECRET = "Erika-Mustermann-4711"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, number: int = 5) -> list[bytes]:
    log = AuditLog(str(path))
    for i in range(number):
        log.write(key="alice", number=i)
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def test_lines_follow_from_each_other_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(3):
        write(path)
    assert verify(str(path)) is None
    found = lines(path)
    assert len(found) == 15
    assert found[0]["before"] == ""
    assert len({line["before"] for line in found}) == 15
    assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "empty").touch()
    assert verify(str(tmp_path / "empty")) is None


@pytest.mark.parametrize("place", range(4))
def test_a_line_that_was_changed_removed_or_put_in_is_found(tmp_path: Path, place: int) -> None:
    path = tmp_path / "audit"
    whole = write(path)
    changed = whole[place].replace(b"alice", b"bobby")
    for other, found in (
        ([*whole[:place], changed, *whole[place + 1 :]], place + 2),
        ([*whole[:place], *whole[place + 1 :]], place + 1),
        ([*whole[:place], whole[place], *whole[place:]], place + 2),
        ([*whole[:place], whole[place + 1], whole[place], *whole[place + 2 :]], place + 1),
        ([*whole[:place], b"{}\n", *whole[place:]], place + 1),
        ([*whole[:place], b"\xff\n", *whole[place:]], place + 1),
        ([*whole[:place], b"\n", *whole[place:]], place + 1),
        ([*whole[:place], b"[]\n", *whole[place:]], place + 1),
        ([*whole[:place], whole[place].rstrip(b"\n"), *whole[place + 1 :]], place + 1),
    ):
        path.write_bytes(b"".join(other))
        assert verify(str(path)) == found


def test_a_line_that_was_not_finished_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    whole = write(path)
    path.write_bytes(b"".join(whole)[:-10])
    write(path)
    assert verify(str(path)) == 5


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    threads = [
        threading.Thread(target=lambda: [log.write(number=i) for i in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert verify(str(path)) is None
    assert len(lines(path)) == 400


def test_requests_are_written_down_without_what_they_say(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "settings", settings_of(ongoing=2))
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    app = make_app(service, KEYS, log)
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    one, two = tiles()[0].image, tiles()[2].image
    about: Any = {"messages": [message(SECRET, one, two)], "user": SECRET, "stop": [SECRET]}
    for stream in (False, True):
        reply = ask(app, body_of(stream=stream, **about), headers=headers)
        assert reply.status == 200
    empty = ask(app, body_of(messages=[message(" ", one)]), headers=headers)
    assert empty.status == 400
    full = ask_all(app, [body_of(**about) for _ in range(6)], headers=headers)
    log.close()
    assert verify(str(path)) is None
    found = lines(path)
    said = sorted("answered" if r.status == 200 else r.error["code"] for r in full)
    assert sorted(line["outcome"] for line in found[3:]) == said
    assert {"answered", "E1707"} == set(said)
    for line, outcome in zip(found, ("answered", "answered", "E1301"), strict=False):
        assert line["key"] == "alice"
        assert line["request"] == "chatcmpl-mine"
        assert line["model"] == "medv-tiny"
        assert line["outcome"] == outcome
        assert 0 <= line["seconds"] < 30
    digests = [hashlib.sha256(data).hexdigest() for data in (one, two)]
    assert found[0]["image_sha256"] == found[1]["image_sha256"] == digests
    assert found[0]["prompt_sha256"] == found[1]["prompt_sha256"]
    assert len(found[0]["prompt_sha256"]) == 1
    text = path.read_text()
    for secret in (SECRET, base64.b64encode(one).decode()[:40], KEY, "tile"):
        assert secret not in text
    known = {"time", "key", "request", "model", "outcome", "seconds", "before"}
    assert all(set(line) == known | {"prompt_sha256", "image_sha256"} for line in found)


def test_inspections_are_written_down_too(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    app = make_app(service, KEYS, log)
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    image = tiles()[0].image
    state: Any = {"tokens": [None] * 8, "position": 2}
    body = body_of(messages=[message(SECRET, image)], **state)
    assert ask(app, body, path="/v1/inspect", headers=headers).status == 200
    body["tokens"] = [10**9, *[None] * 7]
    refused = ask(app, body, path="/v1/inspect", headers=headers)
    assert refused.status == 400
    log.close()
    assert verify(str(path)) is None
    found = lines(path)
    assert [line["outcome"] for line in found] == ["answered", refused.error["code"]]
    for line in found:
        assert (line["key"], line["request"]) == ("alice", "inspect-mine")
        assert line["image_sha256"] == [hashlib.sha256(image).hexdigest()]
    assert SECRET not in path.read_text()
