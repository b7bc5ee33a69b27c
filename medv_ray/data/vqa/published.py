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
    # images as in the official release: this one only lacks repeated rows
    "pathvqa-hf": {
        "train": Published(19654, 9903, 9751, 2599, _CARD),
        "validation": Published(6259, 3134, 3125, 832, _CARD),
        "test": Published(6719, 3357, 3362, 858, _CARD),
    },
}


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
    for split, counts in index["counts"].items():
        for reason, count in sorted(counts["skipped"].items()):
            yield f"skipped in {split}: {count} {reason}{ON_PURPOSE.get(reason, '')}"
        if counts["repeated"]:
            yield f"{split}: {counts['repeated']} rows repeat the images and words of another"
        if unknown := counts["answer_types"].get("unknown"):
            yield f"{split}: {unknown} rows neither open nor closed by their source"
    yield from (f"note: {note}" for note in index["notes"])


def _beside(own: int, known: int) -> str:
    """`1797 = 1797`, or `1790 / 1797 (-7)`."""
    return f"{own} = {known}" if own == known else f"{own} / {known} ({own - known:+d})"
