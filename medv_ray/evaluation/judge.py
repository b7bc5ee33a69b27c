"""A judge for open-ended answers: any endpoint like OpenAI's, asked once a question, resumable.

It discloses questions, captions and answers to that endpoint, so nothing asks it unless told to.
The task is worded here; `task` takes another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from medv_ray.client.endpoint import CHAT, CONNECT_S, address, headers, refusal, silence
from medv_ray.errors import DataError, MedvError, RunError, SettingsError, shows_names
from medv_ray.evaluation.judge_scores import Group, Scores, groups, scores_of
from medv_ray.files import write_atomic

TASK = """\
A question was asked about a biomedical figure. You cannot see the figure; its caption and the
text that mentions it stand below. Two answers were given. Rate each of them from 1 (worst) to
10 (best), as a whole, by four criteria: is it helpful, is it relevant to the question, is it
right by caption and text, and is it as detailed as the question asks for. Which answer comes
first means nothing.

Caption: {caption}
Text: {context}

Question: {question}

Answer 1: {reference}

Answer 2: {answer}

Write the two ratings in the first line, that of answer 1 first, with a blank between them and
nothing else. Then give your reasons in a few sentences.
"""
PLACES = ("caption", "context", "question", "reference", "answer")
REVIEWS, IDENTITY = "reviews.jsonl", "judge.json"
TRIES = 4
"""Of a request that comes to nothing, and of one whose reply has no scores."""
WAIT_S = 1.0
MOST_WAIT_S = 60.0
CHARACTERS = 4
"""Of a token, for the estimate."""
REPLY_TOKENS = 300


class Pair(NamedTuple):
    """A question with the reference's answer and the model's."""

    id: str
    question: Mapping[str, Any]
    """As the benchmark has it: text, gpt4_answer, fig_caption, in_text_mention, domain, type."""
    answer: str

    def prompt(self, task: str) -> str:
        """The task in this question's words."""
        row = self.question
        mentions = row.get("in_text_mention") or []
        texts = [
            one.get("tokens", "") if isinstance(one, Mapping) else str(one) for one in mentions
        ]
        words = {
            "caption": f"{row.get('fig_label', '')}: {row.get('fig_caption', '')}".strip(": "),
            "context": " ".join(texts) or "none",
            "question": str(row["text"]).replace("<image>", "").strip(),
            "reference": str(row["gpt4_answer"]),
            "answer": self.answer,
        }
        # one pass, so that a word of a row is never taken for a place
        parts = task.split("{")
        return parts[0] + "".join(_filled(part, words) for part in parts[1:])


def read_pairs(questions: Path, answers: Mapping[str, str]) -> list[Pair]:
    """The benchmark's questions (jsonl), each with its answer by id.

    Raises DataError E1105 for a file that is none, E1123 where answers are missing or left over.
    """
    try:
        rows = [
            json.loads(line) for line in questions.read_text("utf-8").split("\n") if line.strip()
        ]
        if not all(row["text"] and row["gpt4_answer"] for row in rows):
            raise ValueError("a question or an answer is empty")
        found = {str(row["question_id"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{questions.name} holds no questions with answers ({type(error).__name__})."
        raise DataError("E1105", said) from None
    missing, extra = len(found.keys() - answers.keys()), len(answers.keys() - found.keys())
    if missing or extra:
        said = (
            f"{missing} of {len(found)} questions have no answer, and {extra} answers no question."
        )
        raise DataError("E1123", said)
    return [Pair(key, row, answers[key]) for key, row in found.items()]


class Estimate(NamedTuple):
    """What is about to be sent."""

    questions: int
    prompt_tokens: int
    reply_tokens: int
    host: str


class Judge:
    """Asks for reviews into a folder. Raises SettingsError E1001 for a URL that is none."""

    def __init__(
        self, url: str, model: str, out: Path, task: str = TASK, timeout_s: float = 120.0
    ) -> None:
        missing = [name for name in PLACES if f"{{{name}}}" not in task]
        if missing:
            raise SettingsError("E1001", f"the judge's task has no {{{missing[0]}}}.")
        self.url, self.model, self.out, self.task = address(url), model, out, task
        self.asked = 0
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S)
        self._client = httpx2.Client(base_url=self.url, headers=headers(), timeout=timeout)

    def open(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Make the folder, or go on in it; the pairs that have no review yet.

        Raises RunError E1502 for a folder of another judge, task, questions or answers.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        mine = {
            "judge": self.model,
            "task_sha256": _digest(self.task),
            "pairs_sha256": _digest(json.dumps([[p.id, p.prompt(self.task)] for p in pairs])),
        }
        path = self.out / IDENTITY
        if not path.exists():
            write_atomic(path, json.dumps(mine, indent=1).encode())
        theirs = json.loads(path.read_bytes())
        changed = [name for name in mine if theirs.get(name) != mine[name]]
        if changed:
            raise RunError("E1502", f"reviews there are of another {', '.join(changed)}.")
        done = {review["question_id"] for review in read_reviews(self.out)}
        return [pair for pair in pairs if pair.id not in done]

    def estimate(self, pairs: Sequence[Pair]) -> Estimate:
        """Tokens that `pairs` take, roughly."""
        characters = sum(len(pair.prompt(self.task)) for pair in pairs)
        host = httpx2.URL(self.url).host
        return Estimate(len(pairs), characters // CHARACTERS, REPLY_TOKENS * len(pairs), host)

    def review(self, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
        """Ask, store and yield a review each. A reply without scores is stored too, after TRIES.

        Raises MedvError for a judge that cannot be reached; the reviews before stay.
        """
        with (self.out / REVIEWS).open("ab") as file:
            for pair in pairs:
                reply, scores = self._reply(pair)
                made = {
                    "question_id": pair.id,
                    "reply": reply,
                    "scores": None if scores is None else list(scores),
                }
                file.write(json.dumps(made).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                yield made

    def _reply(self, pair: Pair) -> tuple[str, Scores | None]:
        reply = ""
        for _ in range(TRIES):
            reply = self._ask(pair.prompt(self.task))
            scores = scores_of(reply)
            if scores is not None:
                return reply, scores
        return reply, None

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        error: MedvError | None = None
        for number in range(TRIES):
            wait_s = WAIT_S * 2**number
            self.asked += 1
            try:
                answer = self._client.post(CHAT, json=body)
            except httpx2.TransportError as fault:
                error = silence(self.url, fault)
            else:
                if answer.status_code == 200:
                    return _text_of(answer.content)
                # its own words may repeat the prompt
                error = refusal(answer.status_code, answer.content if shows_names() else b"")
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    raise error
                given = answer.headers.get("retry-after", "")
                wait_s = float(given) if given.isdigit() else wait_s
            if number < TRIES - 1:
                time.sleep(min(wait_s, MOST_WAIT_S))
        assert error is not None
        raise error

    def close(self) -> None:
        """End the connections."""
        self._client.close()


def read_reviews(out: Path) -> list[dict[str, Any]]:
    """Stored reviews. What a kill has cut off at the end is taken away. Raises DataError E1105 for
    damage before that."""
    path = out / REVIEWS
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_atomic(path, whole)
    try:
        found = [json.loads(line) for line in whole.splitlines()]
        if not all(one.keys() >= {"question_id", "scores"} for one in found):
            raise ValueError
    except (ValueError, AttributeError):
        raise DataError("E1105", f"{REVIEWS} is damaged.") from None
    return found


def summary(pairs: Sequence[Pair], reviews: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means by type and domain, and how many replies had no scores."""
    questions = {pair.id: pair.question for pair in pairs}
    scored = [
        (questions[review["question_id"]], Scores(*review["scores"]))
        for review in reviews
        if review["scores"] is not None and review["question_id"] in questions
    ]
    found: dict[str, Group] = groups(scored)
    return {
        "groups": {name: group._asdict() for name, group in found.items()},
        "questions": len(pairs),
        "reviewed": len(reviews),
        "without_scores": sum(review["scores"] is None for review in reviews),
    }


def _filled(part: str, words: Mapping[str, str]) -> str:
    name, brace, rest = part.partition("}")
    return words[name] + rest if brace and name in words else "{" + part


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(body: bytes) -> str:
    """What a judge says; nothing where its answer has no text, as when it refuses."""
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return said if isinstance(said, str) else ""
