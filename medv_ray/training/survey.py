"""What is wrong with a dataset for a stage, found before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from medv_ray.data.conversations import IGNORE
from medv_ray.data.dataset import Dataset, Example, image_path
from medv_ray.data.prompts import IMAGE_SLOT
from medv_ray.errors import DataError

Encode = Callable[[Example], tuple[Sequence[int], Sequence[int]]]
SHOWN_ROWS = 5


class Survey(NamedTuple):
    """Lengths of a split, in tokens, image tokens included."""

    rows: int
    tokens: int
    longest: int
    targets: int
    images: int
    """Distinct ones."""


def survey(
    dataset: Dataset, encode: Encode, image_tokens: Callable[[str], int], max_length: int
) -> Survey:
    """Encode every row once.

    Args:
        encode: token ids and labels of a row, as the stage will make them.
        image_tokens: tokens of the image with this digest; asked once a digest.

    Raises DataError E1110 (no rows), E1114 (images are missing), E1118 (rows over `max_length`),
    E1119 (rows without a target), E1109 or E1304 with the row's number for one that cannot be
    encoded.
    """
    if not len(dataset):
        raise DataError("E1110", "the dataset has no rows.")
    tokens_of: dict[str, int] = {}
    long: list[int] = []
    untaught: list[int] = []
    missing: set[str] = set()
    tokens = longest = targets = 0
    for row, example in enumerate(dataset):
        try:
            ids, labels = encode(example)
        except DataError as error:
            raise DataError(error.code, f"row {row} of {dataset.split}: {error.detail}") from None
        for sha256 in example.images:
            if sha256 not in tokens_of and sha256 not in missing:
                if image_path(dataset.folder, sha256).is_file():
                    tokens_of[sha256] = image_tokens(sha256)
                else:
                    missing.add(sha256)
        length = sum(token != IMAGE_SLOT for token in ids)
        length += sum(tokens_of.get(sha256, 0) for sha256 in example.images)
        taught = sum(label != IGNORE for label in labels)
        long += [row] if length > max_length else []
        untaught += [] if taught else [row]
        tokens, longest, targets = tokens + length, max(longest, length), targets + taught
    if missing:
        raise DataError("E1114", f"{len(missing)} images of {dataset.split} are missing.")
    _refuse("E1118", long, f"over {max_length} tokens, the longest {longest}", dataset)
    _refuse("E1119", untaught, "without a target", dataset)
    return Survey(len(dataset), tokens, longest, targets, len(tokens_of))


def _refuse(code: str, rows: list[int], what: str, dataset: Dataset) -> None:
    if rows:
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", ..." if len(rows) > SHOWN_ROWS else "")
        raise DataError(code, f"{len(rows)} rows of {dataset.split} are {what}: {shown}.")
