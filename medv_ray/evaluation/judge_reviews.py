"""Reviews of a judge as they are stored: read, counted, averaged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medv_ray.disk import disk_error
from medv_ray.errors import RunError, shows_names
from medv_ray.evaluation.judge_questions import Pair
from medv_ray.evaluation.judge_scores import Group, Scores, groups, in_range

REVIEWS = "reviews.jsonl"
NO_SCORES, NO_TEXT = "no_scores", "no_text"
"""Why a question is left without scores, besides `http_400 content_filter` and the like."""


def read_reviews(out: Path) -> list[dict[str, Any]]:
    """Stored reviews, one a question: the first with scores, else the last. What a kill has cut off
    at the end is left out. Raises RunError E1506 for damage before that, E1511."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole_lines(out / REVIEWS).splitlines(), 1):
        try:
            review = json.loads(line)
            key, scores = review["question_id"], review["scores"]
            if not isinstance(key, str) or not (scores is None or in_range(Scores(*scores))):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            said = f"{REVIEWS}, line {number}, is no review; restore it, or take the line out."
            raise RunError("E1506", said) from None
        if key not in found or found[key]["scores"] is None:
            found[key] = review
    return list(found.values())


def summary(pairs: Sequence[Pair], reviews: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means by type and domain; how many answers were empty, and how many questions have no scores,
    with how many of them why."""
    questions = {pair.id: pair.question for pair in pairs}
    known = [one for one in reviews if one["question_id"] in questions]
    scored = [
        (questions[review["question_id"]], Scores(*review["scores"]))
        for review in known
        if review["scores"] is not None
    ]
    reasons = Counter(reason_of(review) for review in known if review["scores"] is None)
    found: dict[str, Group] = groups(scored)
    return {
        "groups": {name: group._asdict() for name, group in found.items()},
        "questions": len(pairs),
        "empty_answers": empty_answers(pairs),
        "reviewed": len(known),
        "without_scores": reasons.total(),
        "reasons": dict(reasons),
    }


def unscored(pairs: Sequence[Pair], reviews: Sequence[Mapping[str, Any]]) -> list[str]:
    """Questions without scores and why; by number, as ids may be a patient's."""
    by_id = {one["question_id"]: one for one in reviews if one["scores"] is None}
    return [
        f"{repr(pair.id) if shows_names() else f'record {number}'} ({reason_of(by_id[pair.id])})"
        for number, pair in enumerate(pairs, 1)
        if pair.id in by_id
    ]


def reason_of(review: Mapping[str, Any]) -> str:
    """Why it has no scores; earlier versions did not say."""
    return str(review.get("reason", NO_SCORES))


def empty_answers(pairs: Sequence[Pair]) -> int:
    """Answers of the model without a word."""
    return sum(not pair.answer.strip() for pair in pairs)


def whole_lines(path: Path) -> bytes:
    """A file up to the last end of a line; nothing where there is none. Raises RunError E1511."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise disk_error(path.name, error) from None
    return data[: data.rfind(b"\n") + 1]
