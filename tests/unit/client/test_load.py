import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.client.endpoint import address, error_of, printable
from medv_ray.client.load import retry_after
from medv_ray.client.report import spread
from medv_ray.data import synthetic
from medv_ray.errors import SettingsError
from tests.unit.client.scripted import SECRET, Reply, Scripted, running

pytestmark = pytest.mark.integration

runner = CliRunner()


def bench(served: Any, *arguments: str, code: int = 0) -> dict[str, Any]:
    with running(served) as url:
        result = runner.invoke(app, ["bench", "serve", "--url", url, "--set", "rows=4", *arguments])
    assert result.exit_code == code, result.output
    assert SECRET not in result.output
    assert "vessel" not in result.output
    return json.loads(result.output)


def uncounted(tokens: object) -> dict[str, Any]:
    """A chunk whose usage is none."""
    return {"choices": [], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_closed_loop_counts(stream: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    served = Scripted(lambda number: Reply(wait_s=0.02))
    got = bench(served, "--clients", "3", "--requests", "30", stream, "--out", str(out))
    assert json.loads(out.read_text()) == got
    assert got["requests"] == got["answers"] == got["within_limit"] == 30
    assert got["statuses"] == {"200": 30}
    assert got["tokens"] == 90
    assert got["errors"] == got["codes"] == {}
    assert 10 * 0.02 <= got["seconds"] < 5
    assert got["answers_per_s"] == pytest.approx(30 / got["seconds"], rel=0.01)
    assert got["latency_s"]["p50"] >= 0.02
    assert (got["first_text_s"] is None) == (stream == "--no-stream")
    assert got["sent_bytes"] > 30 * 1000
    assert got["received_bytes"] > 30 * 50
    assert got["questions"] == 4
    assert got["endpoint"] == {"model": "m", "sampler": {"steps": 8}}
    assert {len(body["messages"]) for body in served.bodies} == {1}
    assert len({json.dumps(body) for body in served.bodies}) == 4  # by turns


def test_goodput_counts_answers_within_the_bound() -> None:
    served = Scripted(lambda number: Reply(wait_s=1.0 if number % 3 == 0 else 0.0))
    got = bench(served, "--clients", "1", "--requests", "6", "--limit-s", "0.9")
    assert got["answers"] == 6
    assert got["within_limit"] == 4
    assert got["goodput_per_s"] == pytest.approx(4 / got["seconds"], rel=0.01)


@pytest.mark.integration
def test_a_slow_endpoint_does_not_slow_the_arrivals() -> None:
    came = []
    for wait_s in (0.0, 0.5):
        served = Scripted(lambda number, wait_s=wait_s: Reply(wait_s=wait_s))
        got = bench(served, "--rate", "20", "--requests", "12", "--set", "seed=5")
        assert got["answers"] == 12
        assert got["send_delay_s"]["p50"] < 0.3
        came.append([at - served.came_s[0] for at in served.came_s])
    assert came[1] == pytest.approx(came[0], abs=1.0)
    assert came[1][-1] < 3  # one after the other they would take 6 s


@pytest.mark.integration
def test_latency_of_an_open_loop_counts_from_the_arrival() -> None:
    got = bench(Scripted(lambda number: Reply(wait_s=0.2)), "--rate", "5", "--seconds", "1")
    assert got["latency_s"]["p50"] >= 0.2
    assert got["seconds"] >= 1
    assert got["settings"]["clients"] is None


def test_retry_after_is_obeyed() -> None:
    served = Scripted(
        lambda number: Reply(429, retry_after="1") if number == 0 else Reply(wait_s=0.01)
    )
    got = bench(served, "--clients", "1", "--requests", "3")
    assert got["statuses"] == {"200": 2, "429": 1}
    assert got["refused_429"] == got["retry_after_obeyed"] == 1
    assert got["retry_after_waited_s"] == 1
    assert got["codes"] == {"E1707": 1}
    assert served.came_s[1] - served.came_s[0] >= 1
    assert got["latency_s"]["max"] < 1  # waiting is no latency


def test_an_open_loop_does_not_wait() -> None:
    served = Scripted(lambda number: Reply(503, retry_after="60", code="E1708"))
    got = bench(served, "--rate", "50", "--requests", "5", code=1)
    assert got["statuses"] == {"503": 5}
    assert got["retry_after_obeyed"] == got["answers"] == 0
    assert got["latency_s"] is None
    assert got["seconds"] < 10


def test_a_wait_beyond_the_end_is_cut() -> None:
    served = Scripted(lambda number: Reply(429, retry_after="60"))
    got = bench(served, "--clients", "2", "--seconds", "0.5", code=1)
    assert got["requests"] == 2
    assert got["retry_after_obeyed"] == 0
    assert got["seconds"] < 5


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (Reply(cut=True), "cut", None),
        (Reply(events=({"error": {"message": SECRET, "code": "E1708"}},)), "error_event", "E1708"),
        (Reply(events=({"error": SECRET},)), "error_event", "other"),
        (Reply(events=({"choices": SECRET},)), "bad_answer", None),
        (Reply(events=(SECRET,)), "bad_answer", None),
        (Reply(events=(uncounted(None),)), "bad_answer", None),
        (Reply(events=(uncounted(SECRET),)), "bad_answer", None),
        (Reply(400, code=SECRET), None, "other"),
    ],
)
def test_what_is_no_answer_is_counted(reply: Reply, error: str | None, code: str | None) -> None:
    served = Scripted(lambda number: reply if number == 0 else Reply())
    got = bench(served, "--clients", "1", "--requests", "2")
    assert (got["requests"], got["answers"]) == (2, 1)
    assert got["errors"] == ({error: 1} if error else {})
    assert got["codes"] == ({code: 1} if code else {})


def test_a_request_that_takes_too_long_is_given_up() -> None:
    served = Scripted(lambda number: Reply(wait_s=1.0))
    got = bench(served, "--clients", "1", "--requests", "1", "--set", "timeout_s=0.2", code=1)
    assert got["errors"] == {"timeout": 1}
    assert got["statuses"] == {}


def test_connections_that_break_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            for number in range(4):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(2**20)
                    if number == 0:
                        body = b'{"data":[{"id":"m"}]}'
                        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
                        connection.sendall(head % len(body) + body)

        threading.Thread(target=serve, daemon=True).start()
        arguments = ["--clients", "1", "--requests", "3", "--set", "rows=1", "--no-stream"]
        result = runner.invoke(app, ["bench", "serve", "--url", url, *arguments])
    assert result.exit_code == 1
    got = json.loads(result.output)
    assert sum(got["errors"].values()) == 3
    assert set(got["errors"]) <= {"ReadError", "WriteError", "RemoteProtocolError"}


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = runner.invoke(app, ["bench", "serve", "--url", f"http://127.0.0.1:{port}"])
    assert result.exit_code == 1
    assert "E1708" in result.output
    assert "ConnectError" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_ctrl_c_tells_what_there_is() -> None:
    served = Scripted(lambda number: Reply(wait_s=0.05))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while len(served.came_s) < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        got = bench(served, "--clients", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    assert got["interrupted"]
    assert 0 < got["answers"] < 60
    assert got["seconds"] < 30


def test_rows_of_an_archive(tmp_path: Path) -> None:
    archive = synthetic.write_archive(tmp_path / "rows.parquet", 12)
    served = Scripted(lambda number: Reply())
    with running(served) as url:
        arguments = ["--archive", str(archive), "--requests", "12", "--clients", "1"]
        result = runner.invoke(app, ["bench", "serve", "--url", url, *arguments])
    assert result.exit_code == 0, result.output
    got = json.loads(result.output)
    assert (got["questions"], got["images"]) == (12, 4)
    assert got["settings"]["archive"] == "rows.parquet"
    assert str(tmp_path) not in result.output
    asked = [body["messages"][0]["content"][1]["text"] for body in served.bodies]
    assert asked == [row.question for row in synthetic.rows(12)]
    urls = [body["messages"][0]["content"][0]["image_url"]["url"][:16] for body in served.bodies]
    assert set(urls) == {"data:image/png;b", "data:image/jpeg;"}


def test_images_with_one_question(tmp_path: Path) -> None:
    for number, row in enumerate(synthetic.rows(6)):
        (tmp_path / f"{number}.{row.image_name[-3:]}").write_bytes(row.image)
    served = Scripted(lambda number: Reply())
    arguments = ["--archive", str(tmp_path), "--question", SECRET, "--set", "rows=3"]
    got = bench(served, *arguments, "--clients", "1", "--requests", "3")
    assert got["questions"] == 3
    assert served.bodies[0]["messages"][0]["content"][1]["text"] == SECRET


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--clients", "3", "--rate", "2"], "not both"),
        (["--rate", "0"], "rate"),
        (["--url", "127.0.0.1:8000"], "--url"),
        (["--url", "http://user:pass@127.0.0.1"], "--url"),
        (["--set", "row=3"], "rows"),
    ],
)
def test_bad_settings(arguments: list[str], word: str) -> None:
    result = runner.invoke(app, ["bench", "serve", *arguments])
    assert result.exit_code == 2
    assert word in result.output
    assert "pass" not in result.output


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def app_(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]).get(b"authorization"))
        await served(scope, receive, send)

    served = Scripted(lambda number: Reply())
    monkeypatch.setenv("MEDV_API_KEY", "0123456789abcdef")
    got = bench(app_, "--requests", "1", "--clients", "1")
    assert set(seen) == {b"Bearer 0123456789abcdef"}
    assert "0123456789abcdef" not in json.dumps(got)
    monkeypatch.setenv("MEDV_API_KEY", "schlüssel")
    result = runner.invoke(app, ["bench", "serve"])
    assert "E1702" in result.output


def test_spread() -> None:
    assert spread([]) is None
    assert spread([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    hundred = [float(n) for n in range(100, 0, -1)]
    assert spread(hundred) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}


def test_retry_after() -> None:
    assert retry_after(None) is None
    assert retry_after("soon") is None
    assert retry_after("7") == 7
    assert retry_after("9" * 400) == 86400
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    "url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/?a=b"]
)
def test_address(url: str) -> None:
    assert address(url) == "http://h:1"


def test_an_endpoint_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printable("a\x1b[2Jb\r\n") == "a�[2Jb�\n"
    assert isinstance(error_of({}, 401), SettingsError)
    monkeypatch.setenv("MEDV_NAMES", "1")
    shown = error_of({"message": "\x1b[2J" + "x" * 500, "code": "E1701"}, 400).detail
    assert shown.startswith("the endpoint answered 400 (E1701). It says: �[2Jx")
    assert len(shown) == 300
