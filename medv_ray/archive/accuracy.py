"""How many answers of a run are the archive's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from medv_ray.archive.rows import read_run
from medv_ray.archive.strict import is_right
from medv_ray.tables.cells import is_no_answer

MOST_ROWS = 1_000_000
"""Rows up to which a run ends with the comparison. All rows are read again for it: some seconds for
these, minutes for 10^8."""


class Accuracy(NamedTuple):
    """Rows with a known answer, and those of them that were answered so."""

    compared: int
    right: int

    @property
    def share(self) -> float:
        """Right ones of those compared, rounded to four digits."""
        return round(self.right / self.compared, 4)


def accuracy(out: str, kinds: Mapping[str, str] | None = None) -> dict[str, Accuracy]:
    """Rows whose answer is the archive's own.

    `overall`, and by kind of question where `kinds` maps ids to them: after trimming and case
    folding. `open` and `closed`, where the archive says what rows are: by whole words, for yes and
    no by the first of them in the answer.

    Rows without a known answer (`is_known`) do not count; rows without an answer are wrong. Empty
    when no row has a known answer. Raises RunError E1506 for a damaged run.
    """
    compared: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for table in read_run(out, ["id", "answer", "reference", "answer_type"]):
        for row in table.to_pylist():
            if not is_known(row["reference"]):
                continue
            answer, reference, kind = row["answer"] or "", row["reference"], row["answer_type"]
            found = {"overall": normal(answer) == normal(reference)}
            if kinds is not None:
                found[kinds.get(row["id"], "other")] = found["overall"]
            elif kind is not None:
                found[kind] = is_right(answer, reference, kind)
            compared.update(found.keys())
            right.update(name for name, is_so in found.items() if is_so)
    return {kind: Accuracy(count, right[kind]) for kind, count in compared.items()}


def listed(found: Mapping[str, Accuracy] | None) -> dict[str, Any] | None:
    """As metrics.json has it; None where nothing was compared."""
    if found is None:
        return None
    return {kind: {"share": one.share, **one._asdict()} for kind, one in found.items()}


def is_known(reference: str | None) -> bool:
    """Whether a cell holds an answer: no blank one, nor what a program writes into one (N/A, nan).
    `none`, `nil` and `unknown` may be the answer to a question about a picture."""
    text = (reference or "").strip().lower()
    return text in ("none", "nil", "unknown") or not (not text or is_no_answer(text))


def normal(text: str) -> str:
    """Text for comparison."""
    return text.strip().casefold()
