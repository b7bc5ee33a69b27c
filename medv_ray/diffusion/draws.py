"""Random numbers of a response, drawn on the CPU so that a seed means the same on every device.

`reference` noise covers every position of the sequence in the reference's order (positions,
vocabulary), prompt and suffix included, and drops what is not needed; torch's CPU generator is
sequential, so pieces equal the whole. `needed` noise is drawn for needed positions alone.

Shapes: L positions of x, S positions of the whole sequence, V vocabulary, n needed positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medv_kernels.reference import PIECE
from medv_ray.diffusion.spec import SampleSpec


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) for one row."""

    generator: torch.Generator | None
    """On the CPU. Rows of a seeded reference batch share one. None where nothing is drawn."""
    spec: SampleSpec
    before: int
    """Prompt positions in front of x."""
    length: int
    """L."""

    @property
    def after(self) -> int:
        """Suffix positions behind x."""
        return len(self.spec.suffix_ids)

    @property
    def seed(self) -> int:
        """For noise="keyed": the generator's 64 bits as a number that an int64 holds."""
        seed = 0 if self.generator is None else self.generator.initial_seed()
        return seed - 2**64 if seed >= 2**63 else seed

    def tokens(self, need: Sequence[int], vocabulary: int) -> Iterator[Tensor]:
        """float64[n, V] for needed positions of x, ascending, at most PIECE at a time.

        Exhaust it: the reference's draws behind the last needed position happen at the end.
        """
        if self.spec.noise != "reference":
            for start in range(0, len(need), PIECE):
                yield self._rand(min(PIECE, len(need) - start), vocabulary)
            return
        kept = self._whole(need)
        held: list[Tensor] = []  # float64[V] each
        for start in range(0, len(kept), PIECE):
            piece = kept[start : start + PIECE]
            held += self._rand(len(piece), vocabulary)[piece].unbind()
            while len(held) >= PIECE:
                yield torch.stack(held[:PIECE])
                held = held[PIECE:]
        if held:
            yield torch.stack(held)

    def positions(self, need: Sequence[int]) -> Tensor:
        """float64[n], one for each needed position of x."""
        if self.spec.noise != "reference":
            return self._rand(len(need))
        kept = self._whole(need)
        # float32 draws, as the reference's
        return torch.rand(len(kept), generator=self.generator)[kept].double()

    def _whole(self, need: Sequence[int]) -> Tensor:
        """bool[S], which positions of the sequence are needed."""
        kept = torch.zeros(self.before + self.length + self.after, dtype=torch.bool)
        kept[[self.before + i for i in need]] = True
        return kept

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self.generator)
