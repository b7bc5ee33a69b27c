"""What a judge is asked: the benchmark's questions, each with an answer, in the task's words.

The task is worded here; `medv judge --judge-template` takes another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.errors import DataError
from medv_ray.evaluation.predictions import read_records

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


class Pair(NamedTuple):
    """A question with the reference's answer and the model's."""

    id: str
    question: Mapping[str, Any]
    """As the benchmark has it: text, gpt4_answer, fig_caption, in_text_mention, domain, type."""
    answer: str

    def prompt(self, task: str) -> str:
        """The task in this question's words."""
        row = self.question
        label, caption = row.get("fig_label") or "", row.get("fig_caption") or ""
        words = {
            "caption": f"{label}: {caption}".strip(": "),
            "context": mentions(row.get("in_text_mention")),
            "question": row["text"].replace("<image>", "").strip(),
            "reference": row["gpt4_answer"],
            "answer": self.answer,
        }
        # one pass, so that a word of a row is never taken for a place
        parts = task.split("{")
        return parts[0] + "".join(_filled(part, words) for part in parts[1:])


def mentions(given: object) -> str:
    """What mentions the figure: a list of texts or of objects with `tokens`, or one of them. Raises
    ValueError for anything else."""
    each = given if isinstance(given, list) else [given]
    texts: list[str] = []
    for one in each:
        text = one.get("tokens") if isinstance(one, dict) else one
        if not isinstance(text, str | None):
            raise ValueError("neither text nor tokens")
        texts += [text] if text else []
    return " ".join(texts) or "none"


def read_pairs(questions: Path, answers: Mapping[str, str]) -> list[Pair]:
    """The benchmark's questions (jsonl, or a JSON list), each with its answer by id.

    Raises DataError E1105 for a file that is none, E1123 where an id stands twice and where answers
    are missing or left over.
    """
    found: dict[str, Mapping[str, Any]] = {}
    twice = 0
    for number, row in enumerate(read_records(questions), 1):
        if wrong := _wrong_field(row):
            raise DataError("E1105", f"{questions.name}: record {number} has no sound {wrong}.")
        twice += str(row["question_id"]) in found
        found[str(row["question_id"])] = row
    if not found:
        raise DataError("E1105", f"{questions.name} holds no question.")
    if twice:
        raise DataError(
            "E1123", f"{questions.name}: {twice} records have the id of an earlier one."
        )
    missing, extra = len(found.keys() - answers.keys()), len(answers.keys() - found.keys())
    if missing or extra:
        said = (
            f"{missing} of {len(found)} questions have no answer, and {extra} answers no question."
        )
        raise DataError("E1123", said)
    return [Pair(key, row, answers[key]) for key, row in found.items()]


def _wrong_field(row: Mapping[str, Any]) -> str | None:
    """The first field of a question that is missing or of another type."""
    key = row.get("question_id")
    if not isinstance(key, str | int) or isinstance(key, bool):
        return "question_id"
    for name in ("text", "gpt4_answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            return name
    for name in ("fig_label", "fig_caption"):
        if not isinstance(row.get(name), str | None):
            return name
    try:
        mentions(row.get("in_text_mention"))
    except ValueError:
        return "in_text_mention"
    return None


def _filled(part: str, words: Mapping[str, str]) -> str:
    name, brace, rest = part.partition("}")
    return words[name] + rest if brace and name in words else "{" + part
