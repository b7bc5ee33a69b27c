"""Which row comes when: a function of seed, number of rows and position alone.

Epochs follow each other without a gap, each in an order of its own. Position `step * batch_size +
slot` names a row of the run, whatever the number of workers; its noise is drawn from it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np


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
    digest = hashlib.sha256(f"noise:{seed}:{position}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
