"""Published counts, to be printed beside those of a prepared dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from medv_ray.data.vqa.forms import FRAME, OTHER_LANGUAGE


class Published(NamedTuple):
    """Counts of one split."""

    rows: int
    open: int
    closed: int
    images: int
    source: str


_TABLE_3 = "LLaDA-MedV supplement, Table 3"
_VALIDATION = f"{_TABLE_3} (validation images: its 858 is a slip, the release has 832)"
_CARD = "its Hugging Face export"
ON_PURPOSE = {
    FRAME: " (cut from test records too: they leak the test set; --include-frame takes them)",
    OTHER_LANGUAGE: " (--language)",
}
PUBLISHED: dict[str, dict[str, Published]] = {
    "vqa-rad": {
        "train": Published(1797, 770, 1027, 313, _TABLE_3),
        "test": Published(451, 179, 272, 203, _TABLE_3),
    },
    "slake": {
        # one of them, an open question, has no answer in the release
        "train": Published(4919, 2976, 1943, 450, _TABLE_3),
        "validation": Published(1053, 631, 422, 96, _TABLE_3),
        "test": Published(1061, 645, 416, 96, _TABLE_3),
    },
    "pathvqa-official": {
        "train": Published(19755, 9949, 9806, 2599, _TABLE_3),
        # the table prints 858 images, which is the test split's number; the release has 832
        "validation": Published(6279, 3144, 3135, 832, _VALIDATION),
        "test": Published(6761, 3370, 3391, 858, _TABLE_3),
    },
    "pathvqa-hf": {
        "train": Published(19654, 9903, 9751, 2599, _CARD),
        "validation": Published(6259, 3134, 3125, 832, _CARD),
        "test": Published(6719, 3357, 3362, 858, _CARD),
    },
}


WHY: dict[str, str] = {
    "pathvqa-hf": (
        "Table 3 counts PathVQA's official release (--kind pathvqa-official): 19,755 / 6,279 / "
        "6,761 rows. This export has 101 / 20 / 42 fewer, as many as the release repeats. It "
        "repeats rows itself: 1,659 / 682 / 608 (2,949 of 32,632) have the picture, question and "
        "answer of an earlier row. The paper's 95.15 % on closed questions is 3,199 of the 3,362 "
        "of this export's test split"
    ),
    "pathvqa-official": "the Hugging Face export (--kind pathvqa-hf) has 101 / 20 / 42 rows fewer",
    "vqa-rad": (
        "Table 3 counts data_RAD without its frame rows. The Hugging Face parquet has 1,793 / 451 "
        "rows and no answer_type: yes and no count as closed there, 251 of 451 instead of 272"
    ),
    "slake": (
        "Table 3 counts one English train question that has no answer: 4,918 can be trained on"
    ),
}
"""Why a release may have other counts than Table 3 of the LLaDA-MedV supplement."""


def count_table(kind: str, index: dict[str, Any]) -> Iterator[str]:
    """Lines: what was prepared, what was published and the difference, what was skipped and why.

    Args:
        index: content of dataset.json.
    """
    head = ("split", "rows", "open", "closed", "images")
    yield f"{head[0]:<12}" + "".join(f"{name:>20}" for name in head[1:])
    sources = []
    for split, counts in index["counts"].items():
        types = counts["answer_types"]
        ours = (counts["rows"], types.get("open", 0), types.get("closed", 0), counts["images"])
        known = PUBLISHED.get(kind, {}).get(split)
        cells = [str(own) for own in ours]
        if known is not None:
            cells = [_beside(*pair) for pair in zip(ours, known[:4], strict=True)]
            sources.append(known.source)
        yield f"{split:<12}" + "".join(f"{cell:>20}" for cell in cells)
    if sources:
        yield "published: " + "; ".join(dict.fromkeys(sources))
    if kind in WHY:
        yield f"why counts differ from Table 3: {WHY[kind]}."
    for split, counts in index["counts"].items():
        for reason, count in sorted(counts["skipped"].items()):
            yield f"skipped in {split}: {count} {reason}{ON_PURPOSE.get(reason, '')}"
        if counts["repeated"]:
            yield f"{split}: {counts['repeated']} rows repeat the images and words of another"
        if counts.get("contradicting"):
            message = "rows ask the same of the same images as an earlier one, and answer otherwise"
            yield f"{split}: {counts['contradicting']} {message}"
        if unknown := counts["answer_types"].get("unknown"):
            yield f"{split}: {unknown} rows neither open nor closed by their source"
    yield from (f"note: {note}" for note in index["notes"])


def _beside(own: int, known: int) -> str:
    """`1797 = 1797`, or `1790 / 1797 (-7)`."""
    return f"{own} = {known}" if own == known else f"{own} / {known} ({own - known:+d})"
