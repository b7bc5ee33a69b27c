"""The answers of a scoring run beside the archive's own: how sure, how right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from medv_ray.archive import strict
from medv_ray.archive.accuracy import is_known
from medv_ray.archive.rows import read_run

COLUMNS = [
    "id", "status", "answer", "reference", "answer_type", "confidence", "image_sha256",
]  # fmt: skip


class Verdict(NamedTuple):
    """Of an answer, by another rule than whole words."""

    kind: str
    right: bool


@dataclass
class JudgedRows:
    """Answers whose reference is known, one entry a row in each list."""

    id: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    picture: list[str] = field(default_factory=list)
    """Digests; the row's id where it has no picture."""
    quarantined: int = 0
    empty: int = 0
    """Without a word, which always abstain."""
    unknown: int = 0
    """Whose reference is not known."""

    def add(self, row: dict[str, Any], verdicts: Mapping[str, Verdict] | None = None) -> None:
        """Take a row of COLUMNS, or count why not.

        `verdicts`: by id; a row without one is unknown. None: by whole words.
        """
        if row["status"] == "quarantined" or row["confidence"] is None:
            self.quarantined += 1
        elif not row["answer"]:
            self.empty += 1
        elif (found := verdict(row) if verdicts is None else verdicts.get(row["id"])) is None:
            self.unknown += 1
        else:
            self.id.append(row["id"])
            self.answer.append(row["answer"])
            self.confidence.append(float(row["confidence"]))
            self.right.append(found.right)
            self.kind.append(found.kind)
            self.picture.append(row["image_sha256"] or row["id"])

    def __len__(self) -> int:
        return len(self.id)

    @property
    def left_out(self) -> dict[str, int]:
        """How many rows do not count, by why."""
        return {name: getattr(self, name) for name in ("quarantined", "empty", "unknown")}


def verdict(row: dict[str, Any]) -> Verdict | None:
    """By whole words, after the rule of the row's kind; None where its reference is not known."""
    if not is_known(row["reference"]):
        return None
    kind = strict.kind_of(row["reference"], row["answer_type"])
    return Verdict(kind, strict.is_right(row["answer"], row["reference"], kind))


def judged_rows(out: str, verdicts: Mapping[str, Verdict] | None = None) -> JudgedRows:
    """Of a run, by `verdicts`, and where it has none by the rule of the row's kind. Raises RunError
    E1506."""
    return judged((row for table in read_run(out, COLUMNS) for row in table.to_pylist()), verdicts)


def judged(
    rows: Iterable[dict[str, Any]], verdicts: Mapping[str, Verdict] | None = None
) -> JudgedRows:
    """Of rows with COLUMNS."""
    found, known = JudgedRows(), verdicts or {}
    for row in rows:
        found.add(row, known if row["id"] in known else None)
    return found
