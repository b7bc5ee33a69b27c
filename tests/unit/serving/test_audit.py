"""The audit log: chained lines that say who and when, and never what."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.serving.app import make_app
from medv_ray.serving.audit import AuditLog, Verdict, verify
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
    assert verify(str(path)).broken is None
    found = lines(path)
    assert len(found) == 15
    assert found[0]["before"] == ""
    assert len({line["before"] for line in found}) == 15
    assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "empty").touch()
    assert verify(str(tmp_path / "empty")) == Verdict(0, "", None, (), True)


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
        assert verify(str(path)).broken == found
        assert not verify(str(path)).torn


@pytest.mark.parametrize("left", [3, 20, 80, -1])
def test_a_line_that_was_cut_short_is_told_apart(tmp_path: Path, left: int) -> None:
    """By a kill: at the end of the file, and once the next start wrote on."""
    path = tmp_path / "audit"
    whole = write(path)
    path.write_bytes(b"".join(whole[:4]) + whole[4][:left])
    cut = (5,) if left > 0 else ()  # only the line end was missing
    assert verify(str(path)).broken is None
    assert verify(str(path)).torn == cut
    after = write(path)
    found = verify(str(path))
    assert (found.broken, found.torn, found.lines) == (None, cut, 10)
    assert found.head == hashlib.sha256(after[-1]).hexdigest()
    # what is left of it is covered as well
    changed = after[4].replace(b'"', b"'", 1)
    path.write_bytes(b"".join([*after[:4], changed, *after[5:]]))
    assert verify(str(path)).broken in (5, 6)
    path.write_bytes(b"".join([*after[:4], *after[5:]]))
    assert verify(str(path)).broken == 5


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    log.write(number=0)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, data[:40]))
        with pytest.raises(OSError, match="part"):
            log.write(number=1)
    log.write(number=2)
    log.close()
    assert verify(str(path)) == Verdict(3, verify(str(path)).head, None, (2,), True)
    assert json.loads(path.read_bytes().splitlines()[-1])["torn"] is True


def test_lines_taken_from_the_end_are_found_by_the_head(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    whole = write(path)
    head = verify(str(path)).head
    write(path)
    assert verify(str(path), head).has_head
    path.write_bytes(b"".join(whole[:4]))
    found = verify(str(path), head)
    assert (found.broken, found.has_head) == (None, False)


def test_the_command_names_the_first_broken_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "a", tmp_path / "b"
    write(good)
    head = verify(str(good)).head
    whole = write(bad)
    bad.write_bytes(b"".join([whole[0], whole[2], *whole[3:]]))
    run = CliRunner().invoke(app, ["audit", "verify", str(good), str(bad)])
    assert run.exit_code == 1
    first, second = run.output.splitlines()
    assert first == f"file 1: 5 lines follow from each other, head {head}"
    assert "1 lines" in second
    assert "LINE 2 DOES NOT FOLLOW" in second
    assert CliRunner().invoke(app, ["audit", "verify", str(good), "--head", head]).exit_code == 0
    other = CliRunner().invoke(app, ["audit", "verify", str(good), "--head", "0" * 64])
    assert other.exit_code == 1
    assert CliRunner().invoke(app, ["audit", "verify", str(tmp_path / "no")]).exit_code == 1


def test_the_command_says_that_a_log_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(b'{"bef')
    for name, more in (("empty", ""), ("cut", "; cut short by a kill or a full disk: line 1")):
        run = CliRunner().invoke(app, ["audit", "verify", str(tmp_path / name)])
        assert run.output == f"file 1: NO LINE IS THERE, nothing to verify{more}\n"
        assert run.exit_code == 1
    write(tmp_path / "a")
    files = [str(tmp_path / name) for name in ("a", "empty")]
    both = CliRunner().invoke(app, ["audit", "verify", *files])
    assert (both.exit_code, "file 2: NO LINE" in both.output) == (0, True)


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
    assert verify(str(path)).broken is None
    assert len(lines(path)) == 400


def test_requests_are_written_down_without_what_they_say(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "settings", settings_of(ongoing=2))
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    endpoint = make_app(service, KEYS, log)
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    one, two = tiles()[0].image, tiles()[2].image
    about: Any = {"messages": [message(SECRET, one, two)], "user": SECRET, "stop": [SECRET]}
    for stream in (False, True):
        reply = ask(endpoint, body_of(stream=stream, **about), headers=headers)
        assert reply.status == 200
    empty = ask(endpoint, body_of(messages=[message(" ", one)]), headers=headers)
    assert empty.status == 400
    full = ask_all(endpoint, [body_of(**about) for _ in range(6)], headers=headers)
    log.close()
    assert verify(str(path)).broken is None
    found = lines(path)
    said = sorted("answered" if r.status == 200 else r.error["code"] for r in full)
    assert sorted(line["outcome"] for line in found[3:]) == said
    assert {"answered", "E1707"} == set(said)
    for line, outcome in zip(found, ("answered", "answered", "E1301"), strict=False):
        assert line["key"] == "alice"
        assert line["request_sha256"] == hashlib.sha256(b"chatcmpl-mine").hexdigest()
        assert line["model"] == "medv-tiny"
        assert line["outcome"] == outcome
        assert 0 <= line["seconds"] < 30
    digests = [hashlib.sha256(data).hexdigest() for data in (one, two)]
    assert found[0]["image_sha256"] == found[1]["image_sha256"] == digests
    assert found[0]["prompt_sha256"] == found[1]["prompt_sha256"]
    assert len(found[0]["prompt_sha256"]) == 1
    text = path.read_text()
    for secret in (SECRET, base64.b64encode(one).decode()[:40], KEY, "tile", "mine"):
        assert secret not in text
    known = {"time", "key", "request_sha256", "model", "outcome", "seconds", "before"}
    assert all(set(line) == known | {"prompt_sha256", "image_sha256"} for line in found)


def test_inspections_are_written_down_too(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(str(path))
    endpoint = make_app(service, KEYS, log)
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    image = tiles()[0].image
    state: Any = {"tokens": [None] * 8, "position": 2}
    body = body_of(messages=[message(SECRET, image)], **state)
    assert ask(endpoint, body, path="/v1/inspect", headers=headers).status == 200
    body["tokens"] = [10**9, *[None] * 7]
    refused = ask(endpoint, body, path="/v1/inspect", headers=headers)
    assert refused.status == 400
    log.close()
    assert verify(str(path)).broken is None
    found = lines(path)
    assert [line["outcome"] for line in found] == ["answered", refused.error["code"]]
    for line in found:
        assert line["key"] == "alice"
        assert line["request_sha256"] == hashlib.sha256(b"inspect-mine").hexdigest()
        assert line["image_sha256"] == [hashlib.sha256(image).hexdigest()]
    assert SECRET not in path.read_text()
