"""What is known of a response before it is denoised: pinned tokens, allowed ones, and spans.

A span is filled from left to right in pieces, each the likeliest of those that may stand, so that
what stands there is always one of the things that may: a choice is one piece, a number goes digit
by digit. The first position of a piece, its leader, competes with the other masked positions by the
piece's probability; when it is committed, the rest of the piece is.

    score(piece) = sum over its positions of the logit of its token there; the softmax over the
    pieces is its probability. Each piece fills the same positions, so the norms cancel.

Shapes: C pieces, M positions of a piece, L response positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError

Pieces = Sequence[tuple[int, ...]]
"""Tokens for the same positions, two different sequences at least or one that is given."""


@dataclass(frozen=True)
class Span:
    """Positions of a response that are filled in pieces."""

    positions: tuple[int, ...]
    """Ascending."""
    pieces: Callable[[tuple[int, ...]], Pieces]
    """What may stand next, given the tokens that stand already; of two equally likely the first is
    taken."""
    voids: Mapping[tuple[int, ...], Sequence[int]] = field(default_factory=dict)
    """By all of its tokens: positions that are then of no use, and take `Canvas.end`."""


@dataclass(frozen=True)
class Canvas:
    """What is known of a response before it is denoised. Positions count from its start."""

    pinned: Mapping[int, int] = field(default_factory=dict)
    """Tokens that stand at positions from the beginning and never change."""
    allowed: Mapping[int, Collection[int] | Tensor] = field(default_factory=dict)
    """The only tokens that a position may take, or bool[V], which of all; confidence is a share of
    these. Forbidden tokens stay forbidden."""
    spans: Sequence[Span] = ()
    length: int | None = None
    """Of the answer, where it is known: all of it is filled however many steps that takes, no stop
    sequence ends it, and positions from here on stay masked."""
    tails: Sequence[range] = ()
    """Positions that are of no use behind the first of them that takes `end`."""
    end: int | None = None
    """Token of positions that turn out to be of no use."""

    @property
    def plain(self) -> bool:
        """Whether it has pinned tokens alone."""
        return not self.allowed and not self.spans and self.length is None

    def check(self, spec: SampleSpec, vocabulary: int) -> None:
        """Raises SettingsError E1001 where a position or a token does not exist, or nothing is left
        to stand there."""
        pinned = {i: (token,) for i, token in self.pinned.items()}
        for name, asked in (("pinned", pinned), ("allowed", self.allowed)):
            none = {spec.mask_id} if name == "pinned" else {*spec.excluded, spec.mask_id}
            for i, given in asked.items():
                tokens = given.nonzero().flatten().tolist() if isinstance(given, Tensor) else given
                wrong = [token for token in tokens if not 0 <= token < vocabulary]
                if not 0 <= i < spec.gen_length:
                    said = f"position {i} lies outside the response (gen_length={spec.gen_length})"
                elif wrong:
                    said = f"{wrong[0]} at position {i} is no token id below {vocabulary}"
                elif set(tokens) <= none:
                    said = f"position {i} is left no token; the mask and sampler.forbidden are none"
                else:
                    continue
                raise SettingsError("E1001", f"{name}: {said}.")
        if (self.length or 0) > spec.gen_length:
            raise SettingsError(
                "E1001",
                f"the canvas has {self.length} positions, the response gen_length="
                f"{spec.gen_length}.",
            )

    def may_take(
        self, position: int, tokens: Sequence[int | None]
    ) -> Collection[int] | Tensor | None:
        """The only tokens that a masked position may take in a state of the response, as in
        `allowed` (a tensor is int64[n]); None for any. `tokens`: the state, None where the mask
        stands."""
        span = next((span for span in self.spans if position in span.positions), None)
        if span is None:
            return self.allowed.get(position)
        known = []
        for i in span.positions:
            token = tokens[i]
            if token is None:
                break
            known.append(token)
        ahead = span.positions.index(position) - len(known)
        pieces = span.pieces((*known,))
        return {piece[ahead] for piece in pieces if ahead < len(piece)} or None

    def sets(self, length: int, begin: int, vocabulary: int, mask_id: int) -> tuple[Tensor, Tensor]:
        """bool[A, V] sets of tokens and int64[L], the set of each position of x; the first set is
        all, but for the mask where an answer is filled whole. `begin`: where the response begins
        in x."""
        found: dict[object, int] = {}
        rows = [torch.ones(vocabulary, dtype=torch.bool)]
        if self.length is not None and mask_id < vocabulary:
            rows[0][mask_id] = False
        which = torch.zeros(length, dtype=torch.int64)
        for i, tokens in self.allowed.items():
            key: object = id(tokens) if isinstance(tokens, Tensor) else frozenset(tokens)
            if key not in found:
                found[key] = len(rows)
                rows.append(as_mask(tokens, vocabulary))
            which[begin + i] = found[key]
        return torch.stack(rows), which


def as_mask(tokens: Collection[int] | Tensor, vocabulary: int) -> Tensor:
    """bool[V] of what `Canvas.allowed` holds for a position."""
    if isinstance(tokens, Tensor):
        return tokens[:vocabulary]
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[list(tokens)] = True
    return found


class OpenSpan:
    """A span of a response that is being denoised.

    Attributes:
        positions: in x.
        leader: the position that stands for the next piece; None when there is none.
        tokens: those that stand.
        found: float64[C], how likely each of the first pieces was when one of them was taken.
    """

    def __init__(self, span: Span, start: int) -> None:
        """`start`: of the response, in x."""
        self.positions = [start + i for i in span.positions]
        self._span, self._start = span, start
        self.tokens: tuple[int, ...] = ()
        self.found: Tensor | None = None
        self._best: Tensor | None = None
        self._odds: Tensor | None = None
        self._next()

    def _next(self) -> None:
        self._pieces = [] if self.done else list(self._span.pieces(self.tokens))
        self.leader = None if self.done else self.positions[len(self.tokens)]

    @property
    def done(self) -> bool:
        """Whether all of it stands."""
        return len(self.tokens) == len(self.positions)

    @property
    def ahead(self) -> list[int]:
        """Positions of the next piece."""
        begin = len(self.tokens)
        return self.positions[begin : begin + len(self._pieces[0])] if self._pieces else []

    @property
    def void(self) -> list[int]:
        """Positions in x that are of no use now that it is filled."""
        return [self._start + i for i in self._span.voids.get(self.tokens, ())]

    def close(self) -> None:
        """It is of no use itself."""
        self.leader, self._pieces = None, []

    def look(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """int64[], the leader's token, and float64[], the odds against its piece; NaN where a
        logit is no number.

        Args:
            logits: float[M, V], of `ahead`.
        """
        pieces = torch.tensor(self._pieces, device=logits.device)  # [C, M]
        scores = logits.double().T.gather(0, pieces).sum(1)
        number = torch.arange(len(scores), device=scores.device)
        # the first of the best, which argmax does not promise
        best = (
            torch.where(scores == scores.max(), number, len(scores))
            .amin()
            .clamp(max=len(scores) - 1)
        )
        odds = (scores - scores[best]).exp()
        rest = odds.sum() - odds[best]
        self._best, self._odds = best, odds / odds.sum()
        return pieces[best, 0], rest

    def take(self) -> list[tuple[int, int, float]]:
        """Fill in the piece that was likeliest at the last look, and what can only stand behind it:
        (position, token, confidence) of each. Reads from the device."""
        assert self._best is not None, "it has been looked at"
        assert self._odds is not None, "as above"
        best, sure = int(self._best), float(self._odds[self._best])
        if self.found is None:
            self.found = self._odds.cpu()
        piece, taken = self._pieces[best], []
        while piece:
            begin = len(self.tokens)
            taken += [(self.positions[begin + i], token, sure) for i, token in enumerate(piece)]
            self.tokens += piece
            self._next()
            piece, sure = (self._pieces[0] if len(self._pieces) == 1 else ()), 1.0
        return taken
