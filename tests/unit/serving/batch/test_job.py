"""A batch from its first line to its last: each line once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import medv_ray.serving.batch.job as module
from medv_ray.archive.ledger import is_sound
from medv_ray.errors import RunError
from medv_ray.serving.batch.journal import Journal, last
from tests.unit.serving.batch.requests import echo, job, line, read, write

pytestmark = pytest.mark.integration

BAD = ["{bad", {"custom_id": "x"}, line("r0")]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """200 lines, of which 3 are bad and 2 are refused; two blank ones between them."""
    rows: list[Any] = [line(f"r{i}") for i in range(195)]
    rows[50:50] = [line("refuse 1"), "", BAD[0]]
    rows[99:99] = [BAD[1], " ", line("refuse 2")]
    return write(tmp_path / "in", [*rows, BAD[2]])


def outcome(folder: Path) -> tuple[list[str], list[Any]]:
    said = [one["custom_id"] for one in read(folder / "output")]
    return said, [one["custom_id"] for one in read(folder / "errors")]


def check(folder: Path) -> None:
    answered, failed = outcome(folder)
    assert answered == [f"r{i}" for i in range(195)]
    assert failed == ["refuse 1", None, "x", "refuse 2", "r0"]
    for one in read(folder / "output"):
        assert one["response"]["body"]["said"] == one["custom_id"]
        assert one["error"] is None
    ids = [one["id"] for name in ("output", "errors") for one in read(folder / name)]
    assert len(set(ids)) == 200


def test_each_line_stands_in_one_of_both_files(tmp_path: Path, requests: Path) -> None:
    counted: Counter[str] = Counter()

    def count(completed: int, failed: int) -> None:
        counted.update(completed=completed, failed=failed)

    done = asyncio.run(job(tmp_path, requests, count=count).run())
    check(tmp_path)
    assert (done.status, done.outcome) == ("finalizing", "completed")
    assert (done.total, done.completed, done.failed) == (200, 195, 5)
    assert counted == {"completed": 195, "failed": 5}
    assert (done.input_tokens, done.output_tokens) == (585, 390)
    assert done.offset == requests.stat().st_size
    errors = read(tmp_path / "errors")
    assert [one["error"]["code"] for one in errors] == [
        "E1701", "E1715", "E1715", "E1701", "E1715"
    ]  # fmt: skip
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["error"]["line"] == 51
    before = (tmp_path / "output").stat().st_mtime_ns
    assert asyncio.run(job(tmp_path, requests).run()) == done  # nothing is asked again
    assert (tmp_path / "output").stat().st_mtime_ns == before


def test_killed_again_and_again(tmp_path: Path, requests: Path) -> None:
    """By SIGKILL, in the middle of answers and of commits."""
    module_name = "tests.unit.serving.batch.requests"
    kept: list[int] = []
    for after in (30, 57, 300):
        given = [sys.executable, "-m", module_name, tmp_path, requests, str(after)]
        ended = subprocess.run(list(map(str, given)), env=os.environ, cwd=Path.cwd())
        assert ended.returncode == (-9 if after < 300 else 0)
        found = last(str(tmp_path / "ledger.jsonl"))
        assert found is not None
        kept.append(found.completed)
    assert 0 < kept[0] < kept[1] < kept[2] == 195
    check(tmp_path)


@pytest.mark.parametrize("torn", [b"0", b"\n", b"12345678 {}", b"x" * 100])
def test_what_was_not_committed_is_cut_off(
    tmp_path: Path, requests: Path, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        if b"r120" in body:
            raise Killed
        return await echo()(url, body, request_id)

    made = job(tmp_path, requests, ask)
    monkeypatch.setattr(module, "COMMIT_S", 0.0)
    with pytest.raises(Killed):
        asyncio.run(made.run())
    found = last(str(tmp_path / "ledger.jsonl"))
    assert found is not None
    assert 0 < found.completed <= 120
    for name in ("output", "errors"):  # a kill between these and the journal
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"half": ' + torn)
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(torn.rstrip(b"\n"))
    assert asyncio.run(job(tmp_path, requests).run()).completed == 195
    check(tmp_path)


def test_files_that_lost_something_are_named(
    tmp_path: Path, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_S", 0.0)
    asyncio.run(job(tmp_path, requests).run())
    path = tmp_path / "ledger.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:-1]))  # it has not ended
    with (tmp_path / "output").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(RunError, match="shorter than what was committed"):
        asyncio.run(job(tmp_path, requests).run())
    path.write_bytes(path.read_bytes()[:-3] + b"x}\n")
    with pytest.raises(RunError, match="does not match its checksum"):
        last(str(path))


@pytest.mark.parametrize("why", ["cancelled", "expired"])
def test_a_batch_that_ends_early_accounts_for_all_lines(
    tmp_path: Path, requests: Path, why: Any
) -> None:
    asked = 0

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        return await echo(0.001)(url, body, request_id)

    made = job(tmp_path, requests, ask, over=lambda: why if asked > 60 else None)
    done = asyncio.run(made.run())
    assert (done.outcome, done.total) == (why, 200)
    assert asked <= 61 + 8
    assert done.completed + done.failed == 200
    assert done.completed >= 60 - 2
    errors = read(tmp_path / "errors")
    left = [one for one in errors if one["error"]["code"] == "E1716"]
    assert {one["error"]["type"] for one in left} == {f"batch_{why}"}
    every = Counter(outcome(tmp_path)[0] + outcome(tmp_path)[1])
    assert all(every[f"r{i}"] == (2 if i == 0 else 1) for i in range(195))


def test_no_more_lines_are_under_way_than_there_is_room(tmp_path: Path) -> None:
    running = most = 0
    free = 3

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        reply = await echo(0.002)(url, body, request_id)
        running -= 1
        return reply

    requests = write(tmp_path / "in", [line(str(i)) for i in range(40)])
    made = job(tmp_path, requests, ask)
    made._has_room = lambda under_way: under_way < free
    asyncio.run(made.run())
    assert most == free


def test_a_slow_line_does_not_let_the_others_pile_up(tmp_path: Path) -> None:
    requests = write(tmp_path / "in", [line(str(i)) for i in range(600)])
    begun = []
    ended = asyncio.Event()

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        begun.append(body)
        if len(begun) == 1:
            await asyncio.sleep(0.3)
            assert len(begun) <= module.UNDER_WAY
            ended.set()
        return await echo()(url, body, request_id)

    assert asyncio.run(job(tmp_path, requests, ask).run()).completed == 600
    assert ended.is_set()
    assert [one["custom_id"] for one in read(tmp_path / "output")] == [str(i) for i in range(600)]


def test_lines_that_wait_hold_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = write(tmp_path / "in", [line("slow"), *["{bad" + "x" * 1000] * 50, " " * 1000])
    held: list[list[int]] = []
    real = module.Job._take

    async def slow(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        while max(map(len, held)) < 51:
            await asyncio.sleep(0.001)
        return await echo()(url, body, request_id)

    def noted(self: module.Job, waiting: module.Waiting) -> None:
        held.append([len(one.raw.data or b"") for one in waiting if isinstance(one, module.Ended)])
        real(self, waiting)

    monkeypatch.setattr(module.Job, "_take", noted)
    done = asyncio.run(job(tmp_path, requests, slow).run())
    assert (done.completed, done.failed) == (1, 50)
    assert max(map(sum, held)) == 0


def test_a_busy_endpoint_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_S", 0.01)
    requests = write(tmp_path / "in", [line("once"), line("always")])
    asked: Counter[str] = Counter()
    error = {"message": "m.", "type": "t", "param": None, "code": "E1306"}

    async def ask(url: str, body: bytes, request_id: str) -> tuple[int, bytes]:
        said = json.loads(body)["messages"][0]["content"]
        asked[said] += 1
        if said == "always" or asked[said] == 1:
            return 503, json.dumps({"error": error}).encode()
        return await echo()(url, body, request_id)

    done = asyncio.run(job(tmp_path, requests, ask).run())
    assert asked == {"once": 2, "always": module.TRIES}
    assert (done.completed, done.failed) == (1, 1)
    assert read(tmp_path / "errors")[0]["error"]["code"] == "E1306"


def test_one_writer(tmp_path: Path, requests: Path) -> None:
    def check() -> None:
        raise RunError("E1501", "another one.")

    with pytest.raises(RunError, match="E1501"):
        asyncio.run(job(tmp_path, requests, check=check).run())
    assert (tmp_path / "output").read_bytes() == b""


def test_the_journal_holds_numbers_only(tmp_path: Path, requests: Path) -> None:
    asyncio.run(job(tmp_path, requests).run())
    for one in (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True):
        assert is_sound(one)
        record = json.loads(one[9:])
        texts = {name for name, value in record.items() if isinstance(value, str)}
        assert texts <= {"status", "outcome"}
    assert all(
        (tmp_path / name).stat().st_mode & 0o77 == 0
        for name in ("output", "errors", "ledger.jsonl")
    )
    journal = Journal(str(tmp_path / "ledger.jsonl"))
    assert journal.progress == last(str(tmp_path / "ledger.jsonl"))
    journal.close()
