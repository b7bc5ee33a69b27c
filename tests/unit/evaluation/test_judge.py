"""The judge's client against a stand-in server: resumed, retried, and nothing asked twice."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import MedvError, RunError, SettingsError
from medv_ray.evaluation import judge as module
from medv_ray.evaluation.judge import IDENTITY, Judge
from medv_ray.evaluation.judge_questions import TASK, Pair
from medv_ray.evaluation.judge_reviews import REVIEWS, read_reviews, summary
from tests.judge_server import Raw, Server

pytestmark = pytest.mark.integration


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    found = Server()
    yield found
    found.close()


def pairs(count: int = 6) -> list[Pair]:
    return [
        Pair(
            str(number),
            {
                "text": f"q{number}?\n<image>", "gpt4_answer": "A lung.", "fig_label": "Fig. 1",
                "fig_caption": "A {answer} in braces.", "in_text_mention": [{"tokens": "Seen."}],
                "type": "conversation", "domain": {"mri": number % 2 == 0, "gross": True},
            },
            f"an answer {{caption}} {number}",
        )
        for number in range(count)
    ]  # fmt: skip


def test_a_run_that_is_killed_goes_on_and_asks_nothing_twice(
    server: Server, tmp_path: Path
) -> None:
    judge = Judge(server.url, "j", tmp_path)
    stream = judge.review(pairs())
    for _ in range(3):
        next(stream)
    stream.close()
    judge.close()
    with (tmp_path / REVIEWS).open("ab") as file:
        file.write(b'{"question_id": "3", "rep')  # the kill came while it wrote
    again = Judge(server.url, "j", tmp_path)
    assert [pair.id for pair in again.todo(pairs())] == ["3", "4", "5"]
    list(again.review(pairs()))
    assert again.todo(pairs()) == []
    again.close()
    assert set(server.asked.values()) == {1}
    found = summary(pairs(), read_reviews(tmp_path))
    assert (found["reviewed"], found["without_scores"]) == (6, 0)
    assert found["groups"]["overall"]["relative"] == pytest.approx(75)
    assert found["groups"]["mri"]["n"] == found["groups"]["gross"]["n"] == 3


def test_words_of_a_row_are_no_places(server: Server, tmp_path: Path) -> None:
    judge = Judge(server.url, "j", tmp_path)
    list(judge.review(pairs(1)))
    judge.close()
    (body,) = server.bodies
    prompt = body["messages"][0]["content"]
    assert "Caption: Fig. 1: A {answer} in braces." in prompt
    assert "Answer 2: an answer {caption} 0" in prompt
    assert "Text: Seen." in prompt
    assert "<image>" not in prompt
    assert body["temperature"] == 0
    assert judge.estimate(pairs(2)).questions == 2
    assert judge.estimate(pairs(2)).prompt_tokens == len(prompt) * 2 // 4
    assert judge.estimate([]).host == "127.0.0.1"


def test_prose_refusals_and_errors(server: Server, tmp_path: Path) -> None:
    server.replies = {
        "q0?": ["I would rather not.", "7 8"],
        "q1?": ["I cannot rate this."],
        "q2?": [503, 429, "5 5"],
        "q3?": [None],
    }
    judge = Judge(server.url, "j", tmp_path)
    made = list(judge.review(pairs(5)))
    judge.close()
    assert [review["scores"] for review in made] == [[7, 8], None, [5, 5], None, [8, 6]]
    assert server.asked == {"q0?": 2, "q1?": 2, "q2?": 3, "q3?": 2, "q4?": 1}
    found = summary(pairs(5), made)
    assert (found["without_scores"], found["reasons"]) == (2, {"no_scores": 1, "no_text": 1})


@pytest.mark.parametrize(("status", "times"), [(401, 1), (404, 1), (500, 4)])
def test_a_judge_that_fails_ends_the_run_and_keeps_what_there_is(
    server: Server, tmp_path: Path, status: int, times: int
) -> None:
    server.replies = {"q1?": [status]}
    judge = Judge(server.url, "j", tmp_path)
    with pytest.raises(MedvError):
        list(judge.review(pairs(3)))
    assert [review["question_id"] for review in read_reviews(tmp_path)] == ["0"]
    assert server.asked["q1?"] == times
    server.replies = {}
    assert len(list(judge.review(pairs(3)))) == 2
    judge.close()
    server.close()
    with pytest.raises(RunError, match="E1708"):
        Judge(server.url, "j", tmp_path / "b")._ask("q")


def test_another_judge_task_or_answer_is_refused(server: Server, tmp_path: Path) -> None:
    next(Judge(server.url, "j", tmp_path).review(pairs()))
    changed = [pairs()[0]._replace(answer="another"), *pairs()[1:]]
    for judge, given in (
        (Judge(server.url, "k", tmp_path), pairs()),
        (Judge(server.url, "j", tmp_path, TASK + " "), pairs()),
        (Judge(server.url, "j", tmp_path), changed),
    ):
        with pytest.raises(RunError, match="E1502"):
            judge.todo(given)
    with pytest.raises(SettingsError, match=r"no \{caption\}"):
        Judge(server.url, "j", tmp_path, "rate {question} {reference} {answer} {context}")


def write_line(folder: Path, server: Server, count: int = 6, **changes: object) -> list[str]:
    """Files of questions and answers, and the command about them; `changes` to each question."""
    rows = [{**pair.question, "question_id": int(pair.id), **changes} for pair in pairs(count)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [{"question_id": pair.id, "text": pair.answer} for pair in reversed(pairs(count))]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, said)))
    line = ["judge", "--questions", str(folder / "q.jsonl"), "--url", server.url, "--judge", "j"]
    return [*line, "--out", str(folder / "out"), "--answers", str(folder / "a.jsonl")]


def test_the_command_sends_and_writes_nothing_unasked(server: Server, tmp_path: Path) -> None:
    line = write_line(tmp_path, server)
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 2
    assert "6 of 6 questions go to 127.0.0.1" in shown.output
    assert not server.asked
    assert not (tmp_path / "out").exists(), "another judge may be chosen yet"
    shown = CliRunner().invoke(app, [*line, "--yes"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["groups"]["conversation"]["n"] == 6
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, "nothing is left to send"
    assert set(server.asked.values()) == {1}
    answers = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(answers.partition("\n")[2])
    assert "1 of 6 questions have no answer" in CliRunner().invoke(app, line).output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpt4_answer": ""}, "no sound gpt4_answer"),
        ({"gpt4_answer": ["A lung."]}, "no sound gpt4_answer"),
        ({"text": None}, "no sound text"),
        ({"question_id": None}, "no sound question_id"),
        ({"question_id": 0}, "E1123: q.jsonl: 5 records have the id of an earlier one."),
        ({"in_text_mention": 5}, "no sound in_text_mention"),
        ({"in_text_mention": [{"tokens": ["a"]}]}, "no sound in_text_mention"),
        ({"fig_caption": {}}, "no sound fig_caption"),
    ],
)
def test_questions_that_are_none(
    server: Server, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    shown = CliRunner().invoke(app, [*write_line(tmp_path, server, **changes), "--yes"])
    assert shown.exit_code == 1
    assert words in shown.output
    assert not server.asked


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", "[" * 20_000, "no json"])
def test_files_without_questions(server: Server, tmp_path: Path, text: str) -> None:
    line = write_line(tmp_path, server)
    (tmp_path / "q.jsonl").write_text(text)
    assert "E1105" in CliRunner().invoke(app, line).output


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("The mention.", "The mention."),
        ({"tokens": "The mention."}, "The mention."),
        (["One.", {"tokens": "Two."}], "One. Two."),
        ([{"tokens": None}, {"tokens": "Two."}, None], "Two."),
        ([], "none"),
        (None, "none"),
    ],
)
def test_mentions(server: Server, tmp_path: Path, given: object, sent: str) -> None:
    line = [*write_line(tmp_path, server, 1, in_text_mention=given, fig_label=None), "--yes"]
    questions = (tmp_path / "q.jsonl").read_bytes()
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + questions)
    assert CliRunner().invoke(app, line).exit_code == 0
    prompt = server.bodies[0]["messages"][0]["content"]
    assert f"Text: {sent}\n" in prompt
    assert "Caption: A {answer} in braces.\n" in prompt


def test_empty_answers_are_judged_and_counted(server: Server, tmp_path: Path) -> None:
    line = write_line(tmp_path, server)
    answers = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(answers.replace("an answer {caption} 2", " "))
    assert "1 of 6 answers are empty" in CliRunner().invoke(app, line).output, (
        "before they are sent"
    )
    shown = CliRunner().invoke(app, [*line, "--yes"])
    assert json.loads(shown.stdout)["empty_answers"] == 1
    assert json.loads(shown.stdout)["groups"]["overall"]["n"] == 6


def test_a_lone_surrogate_is_sent(server: Server, tmp_path: Path) -> None:
    judge = Judge(server.url, "j", tmp_path)
    (made,) = judge.review([pairs(1)[0]._replace(answer="a \ud800")])
    assert made["scores"] == [8, 6]


def test_questions_without_scores_are_named_and_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [*write_line(tmp_path, server), "--yes"]
    server.replies = {"q1?": ["I cannot rate this."], "q4?": [None]}
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["reasons"] == {"no_scores": 1, "no_text": 1}
    assert "2 of 6 questions have no scores: record 2 (no_scores), record 5 (no_text)." in (
        shown.stderr
    )
    monkeypatch.setenv("MEDV_NAMES", "1")
    server.replies = {"q4?": [None]}
    shown = CliRunner().invoke(app, line)
    assert "1 of 6 questions have no scores: '4' (no_text)." in shown.stderr
    found = json.loads(shown.stdout)
    assert (found["groups"]["overall"]["n"], found["without_scores"]) == (5, 1)
    assert server.asked == {"q0?": 1, "q1?": 3, "q2?": 1, "q3?": 1, "q4?": 4, "q5?": 1}


def test_nothing_with_scores_is_a_failure(server: Server, tmp_path: Path) -> None:
    line = [*write_line(tmp_path, server, 2), "--yes"]
    server.replies = {"q0?": ["prose"], "q1?": [400]}
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["groups"] == {}


@pytest.mark.parametrize(
    "raw",
    [
        Raw(b"<!doctype html><p>Log in"),
        Raw(b""),
        Raw(b"{}"),
        Raw(b'{"choices": []}'),
        Raw(b'{"error": {"message": "about the lung"}}'),
        Raw(b"[" * 20_000),
        Raw(b"no gzip", encoding="gzip"),
    ],
)
def test_what_is_no_chat_completion_ends_the_run(server: Server, tmp_path: Path, raw: Raw) -> None:
    server.replies = {"q1?": [raw]}
    shown = CliRunner().invoke(app, [*write_line(tmp_path, server), "--yes"])
    assert shown.exit_code == 1
    assert "RunError E1708" in shown.output
    assert "lung" not in shown.output
    assert server.asked == {"q0?": 1, "q1?": 4}
    server.replies = {"q1?": [raw, "7 7"]}
    server.asked.clear()
    shown = CliRunner().invoke(app, [*write_line(tmp_path, server), "--yes"])
    assert json.loads(shown.stdout)["groups"]["overall"]["n"] == 6


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_is_left_without_scores(
    server: Server, tmp_path: Path, status: int
) -> None:
    error = {"error": {"message": "about the lung", "code": "content_filter"}}
    filtered = Raw(json.dumps(error).encode(), status)
    server.replies = {"q1?": [filtered], "q2?": [filtered], "q4?": [filtered]}
    line = [*write_line(tmp_path, server), "--yes"]
    for calls in (1, 2):  # the second one goes through as well
        shown = CliRunner().invoke(app, line)
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["reasons"] == {f"http_{status} content_filter": 3}
        assert json.loads(shown.stdout)["groups"]["overall"]["n"] == 3
        assert server.asked["q1?"] == calls
    assert "lung" not in shown.output + (tmp_path / "out" / REVIEWS).read_text()


def test_refusals_in_a_row_end_the_run(server: Server, tmp_path: Path) -> None:
    server.replies = {f"q{number}?": [400] for number in (0, 2, 4, 5)} | {"q3?": ["prose"]}
    judge = Judge(server.url, "j", tmp_path)
    with pytest.raises(RunError, match="E1701.* 3 questions in a row .http_400."):
        list(judge.review(pairs(8)))
    assert server.asked == {"q0?": 1, "q1?": 1, "q2?": 1, "q3?": 2, "q4?": 1, "q5?": 1}
    server.replies = {}
    assert [one["question_id"] for one in judge.review(pairs(8))] == list("6702345")


def test_one_process_asks_in_a_folder(server: Server, tmp_path: Path) -> None:
    line = [*write_line(tmp_path, server), "--yes"]
    out = tmp_path / "out"
    out.mkdir()
    with (out / REVIEWS).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shown = CliRunner().invoke(app, line)
    assert (shown.exit_code, "E1501" in shown.output) == (4, True)
    assert not server.asked
    assert os.listdir(out) == [REVIEWS]
    assert CliRunner().invoke(app, line).exit_code == 0, "the lock is let go of"


def test_the_first_review_with_scores_counts(server: Server, tmp_path: Path) -> None:
    line = [*write_line(tmp_path, server, 2), "--yes"]
    assert CliRunner().invoke(app, line).exit_code == 0
    with (tmp_path / "out" / REVIEWS).open("a") as file:
        for scores in ([1, 10], None):
            row = {"question_id": "0", "reply": "", "scores": scores}
            file.write(json.dumps(row) + "\n")
    shown = json.loads(CliRunner().invoke(app, line).stdout)
    assert server.asked == {"q0?": 1, "q1?": 1}
    assert (shown["reviewed"], shown["without_scores"]) == (2, 0)
    assert shown["groups"]["overall"] == {
        "reference": 8, "model": 6, "relative": 75, "ratio_of_means": 75, "n": 2
    }  # fmt: skip


@pytest.mark.parametrize("name", [REVIEWS, IDENTITY])
@pytest.mark.parametrize(
    "line",
    [
        "no json", "[]", "5", "[" * 20_000, "\udcff", '{"scores": [8, 6]}',
        '{"question_id": 1, "scores": null}', '{"question_id": "1", "scores": ["8", "6"]}',
        '{"question_id": "1", "scores": [8]}', '{"question_id": "1", "scores": [0, 6]}',
        '{"question_id": "1", "scores": [8, NaN]}', '{"question_id": "1"}',
    ],
)  # fmt: skip
def test_a_damaged_folder(server: Server, tmp_path: Path, name: str, line: str) -> None:
    command = write_line(tmp_path, server)
    assert CliRunner().invoke(app, [*command, "--yes"]).exit_code == 0
    damaged = f"{line}\n".encode(errors="surrogateescape")
    (tmp_path / "out" / name).write_bytes(damaged)
    shown = CliRunner().invoke(app, command)
    code = "E1502" if name == IDENTITY and line.startswith("{") else "E1506"
    assert f"RunError {code}: " in shown.output
    (tmp_path / "out" / name).unlink()
    shown = CliRunner().invoke(app, command)
    assert ("E1506" in shown.output) == (name == IDENTITY), "whose reviews are they?"


def test_an_output_that_is_no_folder(server: Server, tmp_path: Path) -> None:
    line = [*write_line(tmp_path, server), "--yes"]
    (tmp_path / "out").write_text("mine")
    assert "RunError E1507" in CliRunner().invoke(app, line).output
    assert (tmp_path / "out").read_text() == "mine"
    for wrong in ("out/below", "n" * 300, "a" + "/b" * 3000):
        shown = CliRunner().invoke(app, [*line, "--out", str(tmp_path / wrong)])
        assert "RunError E1511" in shown.output, wrong
    for name in (REVIEWS, IDENTITY):
        (tmp_path / "sub" / name).mkdir(parents=True)
        shown = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "sub")])
        assert "RunError E1511" in shown.output, name
    assert not server.asked


def test_a_review_is_on_disk_before_the_next_question(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(server.url, "j", tmp_path)
    asked_at: list[int] = []
    monkeypatch.setattr("os.fsync", lambda handle: asked_at.append(server.asked.total()))
    list(judge.review(pairs(3)))
    judge.close()
    assert [count for count in asked_at if count] == [1, 2, 3]
