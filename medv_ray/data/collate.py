"""From encoded conversations to one padded batch. Shapes: B rows, S tokens of the longest row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[np.int64] | NDArray[np.bool_]]


def collate(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, dialogue_mask: bool = False
) -> Batch:
    """`input_ids` and `labels`, int64[B, S], both padded on the right with `pad_id` (end of text).

    Padding is a prediction target and is attended to, as in LLaDA and LLaDA-V: that is how a model
    learns to end. `dialogue_mask` adds `attention_mask` bool[B, S], all true, and takes one row
    only: turns are told apart by the labels later, and padding has no turn.
    Raises ValueError for no rows, uneven rows, or several with that mask.
    """
    if not rows or any(len(ids) != len(labels) for ids, labels in rows):
        raise ValueError("collate needs at least one row, and as many labels as ids in each.")
    if dialogue_mask and len(rows) > 1:
        raise ValueError(f"the dialogue mask takes one row a batch, not {len(rows)}.")
    longest = max(len(ids) for ids, _ in rows)
    input_ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    labels = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for index, (row_ids, row_labels) in enumerate(rows):
        input_ids[index, : len(row_ids)] = row_ids
        labels[index, : len(row_labels)] = row_labels
    batch: Batch = {"input_ids": input_ids, "labels": labels}
    if dialogue_mask:
        batch["attention_mask"] = np.ones_like(input_ids, dtype=bool)
    return batch
