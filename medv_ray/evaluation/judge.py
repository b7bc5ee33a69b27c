"""A judge for open-ended answers: any endpoint like OpenAI's, asked once a question, resumable.

It discloses questions, captions and answers to that endpoint, so nothing asks it unless told to.

OUT/judge.json      what must be equal to go on
OUT/reviews.jsonl   a line a review, on disk before the next question is asked
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from medv_ray.client.endpoint import (
    CHAT,
    CONNECT_S,
    address,
    error_code,
    error_object,
    headers,
    refusal,
    silence,
)
from medv_ray.client.load import retry_after
from medv_ray.disk import disk_error
from medv_ray.errors import MedvError, RunError, SettingsError
from medv_ray.evaluation.judge_questions import PLACES, TASK, Pair
from medv_ray.evaluation.judge_reviews import (
    NO_SCORES,
    NO_TEXT,
    REVIEWS,
    read_reviews,
    whole_lines,
)
from medv_ray.evaluation.judge_scores import scores_of
from medv_ray.files import write_atomic
from medv_ray.loopback import no_proxy

IDENTITY = "judge.json"
TRIES = 4
"""Of a request that comes to nothing."""
ASKED = 2
"""Times in one call that a question is asked whose reply has no scores; the next call asks again.
At temperature 0 more would hear the same."""
REFUSED = (400, 413, 422)
"""HTTP statuses that may be one question's fault: its words, its length."""
IN_A_ROW = 3
"""Questions refused one after the other that end a call: it is no question's fault then."""
WAIT_S = 1.0
MOST_WAIT_S = 60.0
CHARACTERS = 4
"""Of a token, for the estimate."""
REPLY_TOKENS = 300


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
        self._client = httpx2.Client(
            base_url=self.url,
            headers=headers() | {"content-type": "application/json"},
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S),
            mounts=no_proxy(httpx2.URL(self.url).host),
        )

    def todo(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those without scores so far, never asked ones first. Nothing is written.

        Raises RunError E1502 for a folder of another judge, task, questions or answers, E1506 for a
        damaged one, E1507 for a file in its place, E1511.
        """
        self._identity(pairs)
        known = {one["question_id"]: one["scores"] for one in read_reviews(self.out)}
        left = [pair for pair in pairs if known.get(pair.id) is None]
        return sorted(left, key=lambda pair: pair.id in known)

    def _identity(self, pairs: Sequence[Pair]) -> dict[str, str]:
        """What must be equal to go on, and is so in the folder as far as there is one."""
        mine = {
            "judge": self.model,
            "task_sha256": _digest(self.task),
            "pairs_sha256": _digest(json.dumps([[p.id, p.prompt(self.task)] for p in pairs])),
        }
        try:
            if self.out.exists() and not self.out.is_dir():
                raise RunError("E1507", "--out is a file; it must be a folder, or not be there.")
            if not (self.out / IDENTITY).exists():
                if whole_lines(self.out / REVIEWS):
                    raise RunError("E1506", f"{REVIEWS} has no {IDENTITY} beside it.")
                return mine
            theirs = json.loads((self.out / IDENTITY).read_bytes())
            changed = [name for name in mine if theirs.get(name) != mine[name]]
        except (ValueError, AttributeError, RecursionError):
            raise RunError("E1506", f"{IDENTITY} is damaged; restore it.") from None
        except OSError as error:
            raise disk_error("the folder of reviews", error) from None
        if changed:
            raise RunError("E1502", f"reviews there are of another {', '.join(changed)}.")
        return mine

    def estimate(self, pairs: Sequence[Pair]) -> Estimate:
        """Tokens that `pairs` take, roughly."""
        characters = sum(len(pair.prompt(self.task)) for pair in pairs)
        host = httpx2.URL(self.url).host
        return Estimate(len(pairs), characters // CHARACTERS, REPLY_TOKENS * len(pairs), host)

    def review(self, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
        """Ask for what is to do in the folder; store and yield a review each. One without scores is
        stored too, with the reason.

        Raises as `todo`, and RunError E1501 where another process asks. MedvError for a judge that
        cannot be reached or refuses IN_A_ROW new questions; the reviews before stay.
        """
        mine = self._identity(pairs)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / REVIEWS).open("ab") as file:
                _lock(file.fileno())
                todo = self.todo(pairs)  # another process may have asked meanwhile
                known = {one["question_id"] for one in read_reviews(self.out)}
                write_atomic(self.out / IDENTITY, json.dumps(mine, indent=1).encode())
                file.truncate(len(whole_lines(self.out / REVIEWS)))
                refused = 0
                for pair in todo:
                    made = self._review(pair)
                    file.write(json.dumps(made).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                    yield made
                    if made["scores"] is not None:
                        refused = 0
                    elif made["reason"].startswith("http") and pair.id not in known:
                        refused += 1
                    if refused == IN_A_ROW:
                        said = f"the judge refused {refused} questions in a row ({made['reason']})"
                        raise RunError("E1701", f"{said}: look at --judge and --judge-template.")
        except OSError as error:
            raise disk_error("the folder of reviews", error) from None

    def _review(self, pair: Pair) -> dict[str, Any]:
        reply, reason, scores = "", "", None
        for _ in range(ASKED):
            reply, reason = self._ask(pair.prompt(self.task))
            scores = scores_of(reply)
            if reason or scores:
                break
        made = {"question_id": pair.id, "reply": reply, "scores": scores and list(scores)}
        return made if scores else made | {"reason": reason or (NO_SCORES if reply else NO_TEXT)}

    def _ask(self, prompt: str) -> tuple[str, str]:
        """What the judge says, and else why it refuses this question."""
        messages = [{"role": "user", "content": prompt}]
        # escaped, as a lone surrogate has no UTF-8
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        error: MedvError | None = None
        for number in range(TRIES):
            wait_s: float | None = None
            self.asked += 1
            try:
                answer = self._client.post(CHAT, content=body)
            except httpx2.RequestError as fault:
                error = silence(self.url, fault)
            else:
                status = answer.status_code
                if status in REFUSED:
                    code = error_code(error_object(answer.content))
                    return "", f"http_{status} {code}".strip()
                if status == 200:
                    text = _text_of(answer.content)
                    if text is not None:
                        return text, ""
                    error = RunError(
                        "E1708", f"{self.url} sent no chat completion; is --url right?"
                    )
                else:
                    error = refusal(status, answer.content)
                    if status not in (408, 429) and status < 500:
                        raise error
                    wait_s = retry_after(answer.headers.get("retry-after"))
            if number < TRIES - 1:
                time.sleep(min(WAIT_S * 2**number if wait_s is None else wait_s, MOST_WAIT_S))
        assert error is not None
        raise error

    def close(self) -> None:
        """End the connections."""
        self._client.close()


def _lock(handle: int) -> None:
    """Until the file is closed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError("E1501", "another process asks a judge in this folder.") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text_of(body: bytes) -> str | None:
    """What a judge says; nothing where it says none, as when it refuses. None: it is no chat
    completion."""
    try:
        said = json.loads(body)["choices"][0]["message"].get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    return said if isinstance(said, str) else ""
