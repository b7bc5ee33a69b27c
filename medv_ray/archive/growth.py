"""How an archive differs from what its run has planned before."""

from __future__ import annotations

from typing import NamedTuple

from medv_ray.archive.entries import Entry
from medv_ray.archive.prior import Image, Prior


class Growth(NamedTuple):
    """How an archive differs from what its run has planned before."""

    is_known: bool = False
    """Whether there is an earlier plan to compare with."""
    rows: int = 0
    """New ones."""
    longer: tuple[str, ...] = ()
    """Files that changed and begin with all the rows that they had."""
    lost: tuple[str, ...] = ()
    """In words, which images changed or are gone."""
    new_images: tuple[str, ...] = ()


def growth(prior: Prior, entries: list[Entry], inputs: list[Image], lost: list[str]) -> Growth:
    """What is new since an earlier plan."""
    if prior.kind is None:
        return Growth()
    changed = {
        entry.file.name
        for entry in entries
        if not entry.file.pieces and entry.file.name in prior.files
        and prior.files[entry.file.name].pieces
    }  # fmt: skip
    pieces = [p for entry in entries if entry.file.name not in changed for p in entry.pieces]
    longer = [
        entry.file.name
        for entry in entries
        if entry.file.pieces and entry.digest != prior.files[entry.file.name].digest
        and entry.pieces[: len(entry.file.pieces)] == entry.file.pieces
    ]  # fmt: skip
    new_images = tuple(image.name for image in inputs if image.name not in prior.images)
    rows = sum(piece.rows for piece in pieces if piece.generation > prior.generation)
    return Growth(True, rows, tuple(longer), tuple(lost), new_images)
