"""Random numbers of the sampler, drawn on the CPU so that a seed means the same on every device.

`reference` noise covers every position of the sequence in the reference's order (rows, positions,
vocabulary), prompt and suffix included, and drops what is not needed; torch's CPU generator is
sequential, so pieces equal the whole. `needed` noise is drawn for needed positions alone.

Shapes: B rows, L positions of x, S positions of the whole sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medv_kernels.reference import PIECE


class Draws:
    """Uniform numbers in [0, 1) for the rows of one batch."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        reference: bool,
        before: Sequence[int],
        length: int,
        after: int,
    ) -> None:
        """
        Args:
            generators: on the CPU; one per row, or one for all as in a seeded reference batch.
            reference: draw for the whole sequence.
            before: prompt positions of each row, in front of its x.
            length: L.
            after: suffix positions behind x.
        """
        rows = len(before)
        if len(generators) not in (1, rows):
            raise ValueError(
                f"{len(generators)} generators for {rows} rows: give one, or one per row"
            )
        self._generators = list(generators) * rows if len(generators) == 1 else list(generators)
        self._reference = reference
        self._before, self._length, self._after = before, length, after

    def tokens(self, b: int, need: Tensor, vocabulary: int) -> Iterator[Tensor]:
        """float64[n, V] for the needed positions of row b, at most PIECE at a time; need: bool[L].

        Exhaust it: the reference's draws behind the last needed position happen at the end.
        """
        if not self._reference:
            count = int(need.sum())
            for start in range(0, count, PIECE):
                yield self._rand(b, min(PIECE, count - start), vocabulary)
            return
        kept = self._whole(b, need)
        held: list[Tensor] = []  # float64[V] each
        for start in range(0, len(kept), PIECE):
            piece = kept[start : start + PIECE]
            held += self._rand(b, len(piece), vocabulary)[piece].unbind()
            while len(held) >= PIECE:
                yield torch.stack(held[:PIECE])
                held = held[PIECE:]
        if held:
            yield torch.stack(held)

    def positions(self, b: int, need: Tensor) -> Tensor:
        """float64[n], one for each needed position of row b; need: bool[L]."""
        if not self._reference:
            return self._rand(b, int(need.sum()))
        kept = self._whole(b, need)
        return torch.rand(len(kept), generator=self._generators[b])[
            kept
        ].double()  # float32 draws, as the reference's

    def _whole(self, b: int, need: Tensor) -> Tensor:
        """bool[S], `need` with the prompt in front and the suffix behind."""
        return functional.pad(need, (self._before[b], self._after))

    def _rand(self, b: int, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self._generators[b])
