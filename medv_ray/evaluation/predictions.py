"""Answers of a model from a file, matched to questions by id and never by position."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medv_ray.errors import DataError
from medv_ray.evaluation.recipes import Question

IDS = ("id", "question_id", "qid")
TEXTS = (("prediction", "response"), ("text", "answer"))
"""Names of fields. Those of the first pair hold a model's answer; `text` may be the question beside
it (LLaVA's files), and `answer` the reference (MedEvalKit's)."""


class Matched(NamedTuple):
    """Answers by id of the questions, and what did not fit."""

    answers: dict[str, str]
    missing: int
    """Questions without an answer: they count as answered with nothing."""
    extra: int
    """Answers to no question: they do not count."""
    empty: int
    """Answers without a word."""


def read_predictions(path: Path) -> dict[str, str]:
    """Text by id of a jsonl file, or of a JSON list. Raises DataError E1105 for a file that is
    neither, E1123 for a record without id or text and for an id that stands twice."""
    found: dict[str, str] = {}
    twice = 0
    for number, record in enumerate(read_records(path), 1):
        where = f"{path.name}: record {number}"
        key = next((record[name] for name in IDS if record.get(name) is not None), None)
        if not isinstance(key, str | int) or isinstance(key, bool):
            names = ", ".join(IDS)
            raise DataError("E1123", f"{where} has no text or whole number in any of {names}.")
        text = _answer(record, where)
        twice += str(key) in found
        found[str(key)] = text
    if twice:
        raise DataError("E1123", f"{path.name}: {twice} records have the id of an earlier one.")
    return found


def match(questions: Sequence[Question], found: Mapping[str, str], partial: bool) -> Matched:
    """Raises DataError E1123 where questions lack an answer or answers a question, unless
    `partial`."""
    ids = Counter(one.id for one in questions)
    missing, extra = len(ids.keys() - found.keys()), len(found.keys() - ids.keys())
    if (missing or extra) and not partial:
        raise DataError(
            "E1123",
            f"{missing} of {len(ids)} questions have no answer, and {extra} answers no question; "
            "--partial counts the first as wrong and leaves the second out.",
        )
    answers = {one.id: found.get(one.id, "") for one in questions}
    if questions and all(answers[one.id] == one.question for one in questions):
        raise DataError("E1123", "each answer is its question: this is a file of questions.")
    empty = sum(not answer.strip() for answer in answers.values()) - missing
    return Matched(answers, missing, extra, empty)


def _answer(record: Mapping[str, Any], where: str) -> str:
    for names in TEXTS:
        given = {name: record[name] for name in names if record.get(name) is not None}
        texts = list(given.values())
        if any(text != texts[0] for text in texts):
            said = f"{where} has {' and '.join(given)}, which differ; name the model's prediction."
            raise DataError("E1123", said)
        if texts:
            if isinstance(texts[0], str):
                return texts[0]
            kind = type(texts[0]).__name__
            raise DataError("E1123", f"{where}: {min(given)} is no text ({kind}).")
    known = ", ".join(name for pair in TEXTS for name in pair)
    raise DataError("E1123", f"{where} has no text in any of {known}.")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a jsonl file, or of a JSON list. Raises DataError E1105 for another file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name} cannot be read as UTF-8 ({kind}).") from None
    whole = text.lstrip().startswith("[")
    where = "its list"
    try:
        for number, line in enumerate([text] if whole else text.split("\n"), 1):
            where = where if whole else f"line {number}"
            if not line.strip():
                continue
            found = json.loads(line)
            for record in found if whole else [found]:
                if not isinstance(record, dict):
                    raise ValueError
                yield record
    except (ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise DataError("E1105", f"{path.name}: {where} is no JSON of objects ({kind}).") from None
