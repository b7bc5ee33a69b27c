"""What a judge has said: two scores of a reply, and means of many by group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

DOMAINS = ("chest_xray", "mri", "histology", "gross", "ct_scan")
"""In order: a question of two domains counts in the first."""
TYPES = ("conversation", "detailed_description")
OTHER = "other type"
LOWEST, HIGHEST = 1.0, 10.0
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")
OUT_OF = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/|out of)\s*10\b", re.IGNORECASE)
AROUND = frozenset(
    ("score", "scores", "rating", "ratings", "overall", "and", "is", "are", "for", "the")
    + ("i", "d", "would", "give")
)
"""Words that may stand beside scores; a line with numbers and others is prose."""
WORD = re.compile(r"[^\W\d_]+")
LABELS = re.compile(r"assistant\s*[12]|answer\s*[12]", re.IGNORECASE)


class Scores(NamedTuple):
    """Of the reference's answer and of the model's."""

    reference: float
    model: float


def published_scores(reply: str) -> Scores:
    """As LLaVA-Med reads a reply. Raises ValueError where it does."""
    reference, model = (float(part) for part in reply.split("\n")[0].split(" "))
    return Scores(reference, model)


def scores_of(reply: str) -> Scores | None:
    """Two scores from 1 to 10 in the first lines that hold numbers; None where there are none.

    Taken besides "8 9": other separators, emphasis, names of the assistants in front, "8/10", two
    lines of one number each, blank lines first.
    """
    found: list[float] = []
    for line in reply.splitlines():
        bare = LABELS.sub(" ", OUT_OF.sub(r"\1 ", line)).replace("*", " ")
        numbers = [float(text) for text in NUMBER.findall(bare)]
        if not numbers:
            if found or bare.strip(" -:_#"):
                break  # words: what follows explains
            continue
        if not AROUND.issuperset(WORD.findall(bare.lower())):
            return None
        if len(numbers) > 2 or len(found) + len(numbers) > 2:
            return None
        found += numbers
        if len(found) == 2:
            break
    if len(found) != 2 or not all(LOWEST <= score <= HIGHEST for score in found):
        return None
    return Scores(*found)


class Group(NamedTuple):
    """Means of some reviews."""

    reference: float
    model: float
    relative: float
    """Mean of the ratios in percent, as published."""
    ratio_of_means: float
    """In percent: not ruled by rows whose reference has a low score."""
    n: int


def group(scores: Sequence[Scores]) -> Group:
    """Raises ValueError for none."""
    if not scores:
        raise ValueError("no reviews")
    reference, model = fmean(s.reference for s in scores), fmean(s.model for s in scores)
    relative = fmean(s.model / s.reference for s in scores)
    return Group(reference, model, 100 * relative, 100 * model / reference, len(scores))


def groups(reviews: Sequence[tuple[Mapping[str, object], Scores]]) -> dict[str, Group]:
    """By type and domain of the questions, and `overall`; groups without a review are left out, and
    types that the benchmark does not have are one group, as what rows hold is not printed."""
    names = (*TYPES, OTHER, *DOMAINS, "overall")
    sorted_in: dict[str, list[Scores]] = {name: [] for name in names}
    for question, scores in reviews:
        domain = question.get("domain")
        flags = domain if isinstance(domain, Mapping) else {}
        first = next((name for name in DOMAINS if flags.get(name)), None)
        kind = question.get("type")
        if kind is not None and kind not in TYPES:
            kind = OTHER
        for name in (kind, first, "overall"):
            if name is not None:
                sorted_in[str(name)].append(scores)
    return {name: group(found) for name, found in sorted_in.items() if found}
