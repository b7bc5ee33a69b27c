"""`medv judge` as a process that is killed in the middle: the same line goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.judge_server import Server

pytestmark = pytest.mark.integration

REAL = Path(__file__).parents[3] / "shared/data/llava_med_qa50/llava_med_eval_qa50_qa.jsonl"
QUESTIONS = 193


def write_questions(path: Path) -> list[str]:
    """The published questions where they are at hand, else as many made ones; their words."""
    if REAL.exists():
        rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    else:
        rows = [
            {
                "question_id": number,
                "text": f"What is figure {number}?\n<image>",
                "gpt4_answer": "A lung.",
                "fig_caption": "A lung.",
                "fig_label": "Fig. 1",
                "in_text_mention": [],
                "domain": {"mri": True},
                "type": "conversation",
            }
            for number in range(QUESTIONS)
        ]
    for row in rows:  # the published ones hold some questions twice
        row["text"] = f"{row['question_id']}: {row['text'].replace('<image>', '').strip()}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["text"].partition("\n")[0] for row in rows]


def test_a_killed_judge_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    names = write_questions(tmp_path / "questions.jsonl")
    answers = [{"question_id": n, "text": f"answer {n}"} for n in reversed(range(len(names)))]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    server = Server(seconds=0.01)
    words = ["judge", "--questions", "questions.jsonl", "--answers", "answers.jsonl"]
    words += ["--out", "reviews", "--url", server.url, "--judge", "stand-in", "--yes"]
    line = [sys.executable, "-c", "from medv_ray.cli import main; main()", *words]
    try:
        first = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while sum(server.asked.values()) < QUESTIONS // 3 and first.poll() is None:
            time.sleep(0.005)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        before = sum(server.asked.values())
        done = len((tmp_path / "reviews/reviews.jsonl").read_bytes().split(b"\n")) - 1
        assert QUESTIONS // 4 < done < QUESTIONS
        ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    finally:
        server.close()
    found = json.loads(ended.stdout)
    assert (found["questions"], found["reviewed"], found["without_scores"]) == (193, 193, 0)
    assert set(server.asked) == set(names)
    # one request was on its way when the process was killed: it alone may be asked again
    assert sum(server.asked.values()) == QUESTIONS + before - done
    assert before - done in (0, 1)
