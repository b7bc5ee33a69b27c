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
TEXTS = ("text", "answer", "prediction", "response")
"""Names of fields, the first that is there: ours, LLaVA-Med's, LLaDA-MedV's, others'."""


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
        key, text = _first(record, IDS), _first(record, TEXTS)
        if not isinstance(key, str | int) or isinstance(key, bool) or not isinstance(text, str):
            fields = f"one of {', '.join(IDS)}, and a text in one of {', '.join(TEXTS)}"
            raise DataError("E1123", f"{path.name}: record {number} needs an id in {fields}.")
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
    empty = sum(not answer.strip() for answer in answers.values()) - missing
    return Matched(answers, missing, extra, empty)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> object:
    return next((record[name] for name in names if record.get(name) is not None), None)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a jsonl file, or of a JSON list. Raises DataError E1105 for another file."""
    try:
        text = path.read_text("utf-8-sig")
        whole = text.lstrip().startswith("[")
        parsed = json.loads(text) if whole else map(json.loads, filter(str.strip, text.split("\n")))
        for record in parsed:
            if not isinstance(record, dict):
                raise ValueError
            yield record
    except (OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise DataError(
            "E1105", f"{path.name} is no JSON lines and no JSON list ({kind})."
        ) from None
