"""The judge's client against a stand-in server: resumed, retried, and nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.errors import DataError, MedvError, RunError, SettingsError
from medv_ray.evaluation import judge as module
from medv_ray.evaluation.judge import REVIEWS, Judge, Pair, read_reviews, summary
from tests.judge_server import Server


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
    todo = judge.open(pairs())
    stream = judge.review(todo)
    for _ in range(3):
        next(stream)
    stream.close()
    judge.close()
    with (tmp_path / REVIEWS).open("ab") as file:
        file.write(b'{"question_id": "3", "rep')  # the kill came while it wrote
    again = Judge(server.url, "j", tmp_path)
    todo = again.open(pairs())
    assert [pair.id for pair in todo] == ["3", "4", "5"]
    list(again.review(todo))
    assert again.open(pairs()) == []
    again.close()
    assert set(server.asked.values()) == {1}
    found = summary(pairs(), read_reviews(tmp_path))
    assert (found["reviewed"], found["without_scores"]) == (6, 0)
    assert found["groups"]["overall"]["relative"] == pytest.approx(75)
    assert found["groups"]["mri"]["n"] == found["groups"]["gross"]["n"] == 3


def test_words_of_a_row_are_no_places(server: Server, tmp_path: Path) -> None:
    judge = Judge(server.url, "j", tmp_path)
    list(judge.review(judge.open(pairs(1))))
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
    made = list(judge.review(judge.open(pairs(5))))
    judge.close()
    assert [review["scores"] for review in made] == [[7, 8], None, [5, 5], None, [8, 6]]
    assert server.asked == {"q0?": 2, "q1?": 4, "q2?": 3, "q3?": 4, "q4?": 1}
    assert summary(pairs(5), made)["without_scores"] == 2


@pytest.mark.parametrize(("status", "times"), [(400, 1), (401, 1), (500, 4)])
def test_a_judge_that_fails_ends_the_run_and_keeps_what_there_is(
    server: Server, tmp_path: Path, status: int, times: int
) -> None:
    server.replies = {"q1?": [status]}
    judge = Judge(server.url, "j", tmp_path)
    with pytest.raises(MedvError):
        list(judge.review(judge.open(pairs(3))))
    assert [review["question_id"] for review in read_reviews(tmp_path)] == ["0"]
    assert server.asked["q1?"] == times
    server.replies = {}
    assert len(list(judge.review(judge.open(pairs(3))))) == 2
    judge.close()
    server.close()
    with pytest.raises(RunError, match="E1708"):
        Judge(server.url, "j", tmp_path / "b")._ask("q")


def test_another_judge_task_or_answer_is_refused(server: Server, tmp_path: Path) -> None:
    Judge(server.url, "j", tmp_path).open(pairs())
    changed = [pairs()[0]._replace(answer="another"), *pairs()[1:]]
    for judge, given in (
        (Judge(server.url, "k", tmp_path), pairs()),
        (Judge(server.url, "j", tmp_path, module.TASK + " "), pairs()),
        (Judge(server.url, "j", tmp_path), changed),
    ):
        with pytest.raises(RunError, match="E1502"):
            judge.open(given)
    with pytest.raises(SettingsError, match=r"no \{caption\}"):
        Judge(server.url, "j", tmp_path, "rate {question} {reference} {answer} {context}")
    (tmp_path / REVIEWS).write_text("no json\n")
    with pytest.raises(DataError, match="E1105"):
        read_reviews(tmp_path)


def test_the_command_sends_nothing_unasked(server: Server, tmp_path: Path) -> None:
    rows = [{**pair.question, "question_id": int(pair.id)} for pair in pairs()]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = [{"question_id": pair.id, "text": pair.answer} for pair in reversed(pairs())]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, said)))
    line = ["judge", "--questions", str(tmp_path / "q.jsonl"), "--url", server.url, "--judge", "j"]
    line += ["--out", str(tmp_path / "out"), "--answers", str(tmp_path / "a.jsonl")]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 2
    assert "6 of 6 questions go to 127.0.0.1" in told.output
    assert not server.asked
    told = CliRunner().invoke(app, [*line, "--yes"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["groups"]["conversation"]["n"] == 6
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, "nothing is left to send"
    assert set(server.asked.values()) == {1}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, said[1:])))
    told = CliRunner().invoke(app, line)
    assert "1 of 6 questions have no answer" in told.output
    (tmp_path / "q.jsonl").write_text(json.dumps({**rows[0], "gpt4_answer": ""}))
    assert "E1105" in CliRunner().invoke(app, line).output, "no question is left out in silence"
    (tmp_path / "q.jsonl").write_text("{}")
    assert "E1105" in CliRunner().invoke(app, line).output


def test_a_review_is_on_disk_before_the_next_question(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(server.url, "j", tmp_path)
    todo = judge.open(pairs(3))
    asked_at: list[int] = []
    monkeypatch.setattr("os.fsync", lambda handle: asked_at.append(server.asked.total()))
    list(judge.review(todo))
    judge.close()
    assert asked_at == [1, 2, 3]
