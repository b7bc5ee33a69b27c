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
THOUGHTS = re.compile(r"<(think(?:ing)?)>.*?(?:</\1>|\Z)|\A.*?</think(?:ing)?>", re.S | re.I)
"""What a judge thinks before it speaks; the first tag may stand in its prompt."""
FENCE = re.compile(r"^\s*(?:```|~~~)\s*[a-z]*\s*$", re.M | re.I)
EMPHASIS = str.maketrans("*`", "  ")
OUT_OF_TEN = r"\s*(?:/|out\s+of)\s*10\b"
TOKEN = re.compile(
    rf"""(?<![^\W_])(?:score|rating|answer|assistant)[\s_\#(\[]*(?P<label>[12])
            (?!\w|\.\d|{OUT_OF_TEN})
    |   ^\W*(?P<item>[12])\s*(?:[:)\]=|\u2013-]|\.(?!\d))
    |   (?P<minus>(?<!\d)[-\u2212\u2013])?
            (?<![\w.])(?P<number>\d+(?:\.\d+)?)(?!\w)(?:{OUT_OF_TEN})?""",
    re.IGNORECASE | re.VERBOSE,
)
"""A label (`Answer 1`, or the `1.` of a list), or a number."""
FORMS = ("NN", "LNLN", "NLNL", "LLNN", "NNLL")
"""Orders of labels and numbers that leave no doubt which belong together."""
AROUND = frozenset(
    ("score", "scores", "rating", "ratings", "overall", "and", "is", "are", "for", "the")
    + ("i", "d", "would", "give")
)
"""Words that may stand beside scores; a line with numbers and others is prose."""
WORD = re.compile(r"[^\W\d_]+")


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

    Taken besides "8 9": other separators, emphasis, "8/10", scores in lines of their own, and
    labels, by whose numbers the scores are assigned. None where labels are incomplete or
    contradict one another.
    """
    spoken = FENCE.sub("", THOUGHTS.sub("", reply)).translate(EMPHASIS)
    form, labels, scores = "", list[str](), list[float]()
    for line in spoken.splitlines():
        words = WORD.findall(TOKEN.sub(" ", line).lower())
        found = list(TOKEN.finditer(line))
        kinds = {token["number"] is None for token in found}
        if len(scores) == 2 and (words or not labels or len(kinds) < 2):
            break  # what follows explains; not so another score by label
        if not AROUND.issuperset(words):
            return None
        for token in found:
            label = token["label"] or token["item"]
            if token["minus"]:
                return None
            if label is None:
                form, scores = form + "N", [*scores, float(token["number"])]
            elif not (form.endswith("L") and labels[-1] == label):  # not "1. Answer 1"
                form, labels = form + "L", [*labels, label]
    if form not in FORMS or sorted(labels) not in ([], ["1", "2"]):
        return None
    ordered = Scores(*(scores[::-1] if labels == ["2", "1"] else scores))
    return ordered if in_range(ordered) else None


def in_range(scores: Scores) -> bool:
    """Whether both are from 1 to 10. Raises TypeError for what is no number."""
    return all(LOWEST <= score <= HIGHEST for score in scores)


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
