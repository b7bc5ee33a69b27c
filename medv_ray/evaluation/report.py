"""`medv report`: one HTML file about a scoring run, to be read offline by who opens no terminal.

Everything is in the file: no script, no link, pictures as data URIs. All words of rows are escaped.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from medv_ray.archive.folder import METRICS
from medv_ray.archive.manifest import flatten, read_manifest
from medv_ray.archive.plan import Plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.results import Choice, input_files, rows_of
from medv_ray.archive.store import Store
from medv_ray.data.thumbnail import Thumbnails
from medv_ray.errors import CATALOGUE, DataError, RunError, SettingsError
from medv_ray.evaluation.judged_rows import JudgedRows, Verdict
from medv_ray.evaluation.pages import rendered
from medv_ray.evaluation.statistics import Interval, wilson
from medv_ray.evaluation.stored_calibration import StoredCalibration
from medv_ray.evaluation.trust import BARS, trust
from medv_ray.settings import ImageSettings, build

SHOWN = 12
"""Rows of each kind."""
SIDE = 224
"""Of a picture, in pixels."""
MOST_WORDS = 600
"""Characters of a question or answer."""


class Card(NamedTuple):
    """A row on the page."""

    id: str
    file: int
    row: int
    question: str
    answer: str
    reference: str | None
    confidence: float | None
    status: str
    cause: str
    warnings: Sequence[str]
    pictures: Sequence[str] = ()
    """Data URIs."""


@dataclass
class Found:
    """What one pass over the rows has counted."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of rows without an answer, by status and reason."""
    warnings: Counter[str] = field(default_factory=Counter)
    judged: JudgedRows = field(default_factory=JudgedRows)
    """Answers whose reference is known."""
    bars: list[int] = field(default_factory=lambda: [0] * BARS)
    """Answers by confidence."""
    wrong: list[tuple[float, int, Card]] = field(default_factory=list)
    """The surest wrong answers."""
    unsure: list[tuple[float, int, Card]] = field(default_factory=list)
    refused: list[Card] = field(default_factory=list)


def report(out: str, plan: Plan | None = None, stored: StoredCalibration | None = None) -> str:
    """HTML of a run, finished or not.

    `plan`: of the archive that it scored, for pictures; they are decoded as they were for the
    model. `stored`: the model's calibration; where it is of other answers the page says why it is
    not used. Raises RunError E1506, E1507.
    """
    names = input_files(out)
    manifest = read_manifest(Store(out)) or {}
    stored, unused = fitting(stored, manifest)
    shown = [] if "privacy" in (manifest.get("identity") or {}) else names
    found = count(rows_of(out, Choice()))
    groups = groups_of(found)
    if plan is not None:
        image = image_settings(manifest)
        groups = [(title, with_pictures(cards, names, plan, image)) for title, cards in groups]
    return rendered(
        "report.html",
        name=out.rstrip("/").rpartition("/")[2],
        found=found,
        total=sum(found.statuses.values()),
        whole=whole(out),
        shares=shares(found),
        without=without(found),
        bars=found.bars,
        trust=trust(found.judged, stored),
        unused=unused,
        groups=groups,
        has_plan=plan is not None,
        settings=settings_of(manifest),
        files=shown[:20],
        more_files=max(0, len(shown) - 20),
    )


def fitting(
    stored: StoredCalibration | None, manifest: Mapping[str, Any]
) -> tuple[StoredCalibration | None, str | None]:
    """The calibration where it is one of such a run's answers; else None, and why."""
    why = None if stored is None else stored.differs(manifest.get("identity") or {})
    return (stored, None) if why is None else (None, why)


def groups_of(found: Found) -> list[tuple[str, list[Card]]]:
    """The rows that are shown, under their titles."""
    return [
        ("Surest wrong answers", [card for _, _, card in sorted(found.wrong, reverse=True)]),
        ("Least certain answers", [card for _, _, card in sorted(found.unsure, reverse=True)]),
        ("Quarantined", found.refused),
    ]


def count(tables: Iterable[Any], verdicts: Mapping[str, Verdict] | None = None) -> Found:
    """One pass over tables of rows. `verdicts`: as `JudgedRows.add` takes them."""
    found, number = Found(), 0
    for table in tables:
        for row in table.to_pylist():
            number += 1
            _add(found, row, number, verdicts)
    return found


def _add(
    found: Found, row: dict[str, Any], number: int, verdicts: Mapping[str, Verdict] | None
) -> None:
    found.statuses[row["status"]] += 1
    found.warnings.update({word.partition(":")[0] for word in row["warnings"] or ()})
    card = card_of(row)
    if row["status"] != "answered":
        found.reasons[row["status"], cause_of(row)] += 1
        if row["status"] == "quarantined" and len(found.refused) < SHOWN:
            found.refused.append(card)
    if row["status"] == "quarantined" or row["confidence"] is None:
        return
    sure = float(row["confidence"])
    found.bars[min(BARS - 1, int(sure * BARS))] += 1
    _keep(found.unsure, (-sure, -number, card))
    known = len(found.judged)
    found.judged.add(row, verdicts)
    if len(found.judged) > known and not found.judged.right[-1]:
        _keep(found.wrong, (sure, -number, card))


def _keep(heap: list[tuple[float, int, Card]], entry: tuple[float, int, Card]) -> None:
    """Of all entries the SHOWN largest."""
    (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)


def card_of(row: dict[str, Any]) -> Card:
    """What the page says of a row."""
    return Card(
        row["id"],
        row["file"],
        row["row"],
        _cut(row["question"] or ""),
        _cut(row["answer"] or ""),
        None if row["reference"] is None else _cut(row["reference"]),
        row["confidence"],
        row["status"],
        cause_of(row) if row["status"] != "answered" else "",
        row["warnings"] or (),
    )


def cause_of(row: dict[str, Any]) -> str:
    """Why a row has no answer, in the catalogue's words."""
    entry = CATALOGUE.get(row["code"] or "")
    said = (row["reason"] or "").replace("_", " ")
    return f"{row['code']} {said}: {entry.cause}" if entry else said


def shares(found: Found) -> list[tuple[str, Interval]]:
    """Right answers of those compared, by kind, with Wilson's interval."""
    rows = []
    for kind in ("all", "open", "closed"):
        right = zip(found.judged.right, found.judged.kind, strict=True)
        hits = [h for h, k in right if kind in ("all", k)]
        if hits:
            low, high = wilson(sum(hits), len(hits))
            rows.append((kind, Interval(sum(hits) / len(hits), low, high, len(hits))))
    return rows


def without(found: Found) -> str:
    """Rows that have no answer to compare, in words."""
    counts = (
        ("quarantined rows", found.statuses["quarantined"]),
        ("empty answers", found.judged.empty),
    )
    return " and ".join(f"{count:,} {name}" for name, count in counts if count)


def whole(out: str) -> bool:
    """Whether the job has ended: it writes metrics.json last."""
    try:
        json.loads(Store(out).read(METRICS))
    except (FileNotFoundError, ValueError):
        return False
    return True


def settings_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings and digests, one a line; of the input files only how many there are."""
    kept = {name: value for name, value in manifest.items() if name in ("identity", "run_id")}
    flat = flatten(kept)
    return [
        (name.removeprefix("identity."), value.strip('"'))
        for name, value in flat.items()
        if not name.startswith(("identity.files.", "identity.images"))
    ]


def image_settings(manifest: Mapping[str, Any]) -> ImageSettings:
    """Those by which the run's pictures were decoded; the defaults where they are not known now."""
    settings = (manifest.get("identity") or {}).get("settings") or {}
    try:
        return build(ImageSettings, settings.get("image") or {})
    except SettingsError:
        return ImageSettings()


def with_pictures(
    cards: Sequence[Card], names: Sequence[str], plan: Plan, image: ImageSettings | None = None
) -> list[Card]:
    """The cards with their pictures, where the archive still has them."""
    with Thumbnails(image or ImageSettings(), SIDE) as thumbnails:
        return [
            card._replace(pictures=list(_pictures(card, names, plan, thumbnails))) for card in cards
        ]


def _pictures(
    card: Card, names: Sequence[str], plan: Plan, thumbnails: Thumbnails
) -> Iterator[str]:
    numbers = {file.name: number for number, file in enumerate(plan.archive.files)}
    file = numbers.get(names[card.file])
    for chunk in plan.chunks:
        if chunk.file == file and card.row in chunk.rows:
            try:
                rows = read_rows(plan.archive, chunk)
                row = next(row for row in rows if row.row == card.row)
                for image in row.pictures:
                    yield thumbnails.make(image)
            except (DataError, RunError):
                return  # damaged pictures are among those that are shown


def _cut(text: str) -> str:
    return text if len(text) <= MOST_WORDS else text[: MOST_WORDS - 1] + "\u2026"
