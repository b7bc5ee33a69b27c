"""Which row comes when: a function of seed, number of rows and position alone.

Epochs follow each other without a gap, each in an order of its own. Position `step * batch_size +
slot` names a row of the run, whatever the number of workers; its noise is drawn from it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

GOLDEN = (5**0.5 - 1) / 2


class Order:
    """The row at each position of a run."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed = num_rows, seed
        self._epoch, self._rows = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._num_rows)
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, epoch))
            self._epoch, self._rows = epoch, rng.permutation(self._num_rows)
        return int(self._rows[index])


def positions(step: int, batch_size: int, rank: int, num_workers: int) -> range:
    """Positions of a step that a worker computes: a run of neighbours, of equal length for each.

    So ranks hold the batch in order, and its sum over ranks is the sum over slots.
    """
    share = batch_size // num_workers
    first = step * batch_size + rank * share
    return range(first, first + share)


def worker_positions(steps: range, batch_size: int, rank: int, num_workers: int) -> Iterator[int]:
    """Positions of these steps that a worker computes, in their order."""
    return (p for step in steps for p in positions(step, batch_size, rank, num_workers))


def micro_batches(span: range, size: int) -> Iterator[range]:
    """Pieces of `size` positions."""
    for first in range(span.start, span.stop, size):
        yield range(first, min(first + size, span.stop))


def noise_seed(seed: int, position: int) -> int:
    """Seed of a position's noise level and mask, below 2^63."""
    return _number(f"noise:{seed}:{position}")


def validation_seed(row: int) -> int:
    """Seed of a validation row's mask and answer, below 2^63: the same in every run."""
    return _number(f"validation:{row}")


def spread(num_rows: int, most: int) -> list[int]:
    """At most `most` of the rows, evenly over all, ascending."""
    count = min(most, num_rows)
    return [number * num_rows // count for number in range(count)]


def noise_level(number: int) -> float:
    """Level t of the `number`-th validation row: by the golden ratio, so that any few of them in a
    row are spread over [0, 1), and the mean loss varies less than of drawn ones."""
    return (0.5 + number * GOLDEN) % 1.0


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
