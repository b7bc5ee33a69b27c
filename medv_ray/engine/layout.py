"""Templates as positions of a response, and what stands there as an answer again.

Every literal and every choice is encoded by itself, so no text becomes a special token, whatever
stands beside it. Two rules make the tokens those that the model knows: a blank of words or choices
takes the one space in front of it, as words are tokens with their spaces; and a number's marks are
tokens of one mark each. What is shown is the template's own text with the values in it; how it was
cut into tokens does not show. Where a value is shorter than its blank, end tokens fill the tail.

Shapes: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from medv_ray.data.canvas import Choice, Filled, Number, Part, Template, Words, shown
from medv_ray.data.decimals import Decimals
from medv_ray.data.prompts import SpecialIds, encode_text
from medv_ray.diffusion.canvas import Canvas, Pieces, Span
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = "-.0123456789"


class Placed(NamedTuple):
    """A part of a template at its positions."""

    part: Part
    positions: range
    options: Pieces = ()
    """Of a choice: the tokens of its texts."""


class Reading(NamedTuple):
    """What stands in a response, from the left as far as it is known."""

    text: str
    blanks: tuple[Filled, ...]
    positions: list[int]
    """Those whose tokens are shown."""


@dataclass(frozen=True)
class Digits:
    """The pieces of a number: one mark each."""

    bounds: Decimals
    ids: tuple[int, ...]
    """Of MARKS."""
    end: int

    def pieces(self, tokens: tuple[int, ...]) -> Pieces:
        """See `Span.pieces`."""
        if self.end in tokens:
            return [(self.end,)]
        marks = {token: mark for mark, token in zip(MARKS, self.ids, strict=True)}
        # a state to look at may hold tokens that are no marks: nothing follows those
        follow = self.bounds.next("".join(marks.get(token, " ") for token in tokens))
        return [(self.ids[MARKS.index(mark)] if mark else self.end,) for mark in follow]


@dataclass(frozen=True)
class Options:
    """The pieces of a choice: each of its texts, whole."""

    tokens: Pieces

    def pieces(self, tokens: tuple[int, ...]) -> Pieces:
        """See `Span.pieces`."""
        known = len(tokens)
        return [piece[known:] for piece in self.tokens if piece[:known] == tokens]


class Tokens:
    """What templates need of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
        """`vocabulary`: V, of the model, which may have more ids than the tokenizer."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self.special = SpecialIds.of(tokenizer)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text."""
        return tuple(encode_text(self._tokenizer, text))

    def text(self, ids: Sequence[int]) -> str:
        """How ids read; not trimmed."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def _texts(self) -> list[str]:
        """Of each id, alone."""
        ids = range(min(len(self._tokenizer), self._vocabulary))
        return [self.text([i]) for i in ids]

    @cached_property
    def plain(self) -> Tensor:
        """bool[V], ids of text."""
        found = torch.zeros(self._vocabulary, dtype=torch.bool)
        found[: len(self._tokenizer)] = True
        found[[i for i in self._tokenizer.added_tokens_decoder if i < self._vocabulary]] = False
        return found

    @cached_property
    def in_json(self) -> Tensor:
        """bool[V], those of them that may stand between a JSON string's quotes as they are."""
        bad = [
            i
            for i, text in enumerate(self._texts)
            if json.dumps(text, ensure_ascii=False)[1:-1] != text
        ]
        found = self.plain.clone()
        found[bad] = False
        return found

    @cached_property
    def characters(self) -> Tensor:
        """bool[V], those of them that are whole characters, one at least."""
        bad = [i for i, text in enumerate(self._texts) if not text or "\ufffd" in text]
        found = self.in_json.clone()
        found[bad] = False
        return found

    @cached_property
    def marks(self) -> tuple[int, ...]:
        """Of MARKS. Raises DataError E1309 where one is no token."""
        found = [self.encode(mark) for mark in MARKS]
        if any(len(ids) != 1 for ids in found) or len({*found}) < len(MARKS):
            raise DataError("E1309", "numbers: this tokenizer has no token for each digit.")
        return tuple(ids[0] for ids in found)


@dataclass(frozen=True)
class Layout:
    """A template's positions in a response.

    Attributes:
        spec: of a response that is long enough.
    """

    parts: tuple[Placed, ...]
    canvas: Canvas
    spec: SampleSpec
    tokens: Tokens

    def read(
        self,
        ids: Sequence[int | None],
        confidence: Sequence[float],
        odds: Sequence[Sequence[float]],
    ) -> Reading:
        """What stands in a response.

        Args:
            ids: of all positions, None where none is committed.
            confidence: of all positions.
            odds: of each span, how likely its first pieces were when one was taken.
        """
        text, blanks, positions, skip = "", list[Filled](), list[int](), 0
        spans = iter(odds)
        for part, place, options in self.parts:
            shares = () if isinstance(part, str | Words) else next(spans)
            if skip:
                skip -= 1
                continue
            if isinstance(part, str):
                text += part
                positions += place
                continue
            known = self._known(ids[place.start : place.stop])
            if known is None:
                break
            value: Any
            if isinstance(part, Choice):
                number = options.index(tuple(ids[i] for i in place))
                said = part.texts[number]
                value = part.values[number] if part.values else said
                skip = part.skips[number] if part.skips else 0
            elif isinstance(part, Number):
                said = self.tokens.text(known)
                value = json.loads(said)
            else:
                said = shown(part, self.tokens.text(known))
                value = json.loads(f'"{said}"') if part.in_json else said
            text += said
            kept = place[: len(known)]
            positions += kept
            if part.name:
                sure = [confidence[i] for i in kept or place[:1]]
                named = (
                    dict(zip(part.texts, shares, strict=True)) if isinstance(part, Choice) else {}
                )
                blanks.append(Filled(part.name, value, sum(sure) / len(sure), named))
        return Reading(text, tuple(blanks), positions)

    def _known(self, ids: Sequence[int | None]) -> list[int] | None:
        """Ids before the first end token; None where one of them is still masked."""
        known: list[int] = []
        for token in ids:
            if token is None:
                return None
            if token == self.canvas.end:
                break
            known.append(token)
        return known


def layout_of(
    template: Template, spec: SampleSpec, tokens: Tokens, most: int | None = None
) -> Layout:
    """A template's positions. A response that is too short for it gets more blocks, or a longer
    one where there is one alone, at as many tokens a step as before.

    Raises DataError E1309 where it takes over `most` positions, two choices are the same tokens, or
    no token may end a blank.
    """
    ends = [i for i in (tokens.special.eot, tokens.special.eos) if i not in spec.excluded]
    end = ends[0] if ends else tokens.special.eot
    # the answer's end, where it is known, is given like the rest of its form
    stop = spec.stop_ids[0] if spec.stop_ids else ()
    stop = () if {*stop} & {*spec.excluded, spec.mask_id} else stop
    sized = list(_sized(template, tokens))
    # before a position is made: a few words can ask for millions
    check_length(sum(size for _, _, size in sized) + len(stop), most)
    parts, pinned, allowed = list[Placed](), dict[int, int](), dict[int, Tensor]()
    masks = cache(lambda in_json: _masks(in_json, end, tokens))
    at = 0
    for part, ids, size in sized:
        options: Pieces = ()
        if isinstance(part, str):
            pinned |= dict(enumerate(ids[0], at))
        elif isinstance(part, Words):
            if part.least < part.most and not ends:
                rule = "sampler.forbidden leaves no token to end it"
                raise DataError("E1309", f"{part.name}: {rule}.")
            must, may = masks(part.in_json)
            allowed |= {at + i: must if i < part.least else may for i in range(size)}
        elif isinstance(part, Choice):
            if len({*ids}) < len(ids):
                raise DataError("E1309", f"{part.name}: two choices are the same tokens.")
            options = [(*one, *[end] * (size - len(one))) for one in ids]
        parts.append(Placed(part, range(at, at + size), options))
        at += size
    spans = [
        Span(tuple(place), _pieces(part, options, end, tokens), _voids(parts, number, pinned))
        for number, (part, place, options) in enumerate(parts)
        if isinstance(part, Choice | Number)
    ]
    pinned |= dict(enumerate(stop, at))
    at += len(stop)
    tails = [
        place for part, place, _ in parts if isinstance(part, Words) and part.least < part.most
    ]
    canvas = Canvas(pinned, allowed, spans, at, tails, end)
    return Layout(tuple(parts), canvas, _long_enough(spec, at), tokens)


def check_length(positions: int, most: int | None) -> None:
    """Raises DataError E1309."""
    if most is not None and positions > most:
        rule = f"it takes {positions} tokens with the answer's end; the limit is {most}"
        raise DataError("E1309", f"{rule}.")


def _sized(
    template: Template, tokens: Tokens
) -> Iterator[tuple[Part, Sequence[tuple[int, ...]], int]]:
    """Each part, the tokens of its text or texts, and how many positions it takes."""
    encode = cache(tokens.encode)  # a list's items say the same
    lead = ""
    for part, following in zip(template.parts, (*template.parts[1:], ""), strict=True):
        ids: Sequence[tuple[int, ...]] = ()
        if isinstance(part, str):
            # a number keeps its marks apart from the space
            lead = " " if part.endswith(" ") and isinstance(following, Words | Choice) else ""
            ids = [encode(part.removesuffix(lead))]
            yield part, ids, len(ids[0])
            continue
        if isinstance(part, Choice):
            ids = [encode(lead + text) for text in part.texts]
            size = max(map(len, ids))
        else:
            size = part.most if isinstance(part, Words) else part.bounds.width
        lead = ""
        yield part, ids, size


def _masks(in_json: bool, end: int, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """bool[V] twice: what the tokens that a blank has in any case may be, and the others."""
    may = (tokens.in_json if in_json else tokens.plain).clone()
    may[end] = True
    return tokens.characters if in_json else tokens.plain, may


def _pieces(part: Part, options: Pieces, end: int, tokens: Tokens) -> Callable[..., Pieces]:
    if isinstance(part, Number):
        return Digits(part.bounds, tokens.marks, end).pieces
    return Options(options).pieces


def _voids(
    parts: Sequence[Placed], number: int, pinned: Mapping[int, int]
) -> dict[tuple[int, ...], list[int]]:
    """What is of no use behind each text of a choice that leaves parts out."""
    part, _, options = parts[number]
    skips = part.skips if isinstance(part, Choice) else ()
    found = {}
    for ids, skip in zip(options if skips else (), skips, strict=True):
        left_out = parts[number + 1 : number + 1 + skip]
        places = [i for one in left_out for i in one.positions if i not in pinned]
        if places:
            found[ids] = places
    return found


def _long_enough(spec: SampleSpec, length: int) -> SampleSpec:
    if length <= spec.gen_length:
        return spec
    if spec.block_length == spec.gen_length:
        steps = max(1, round(length * spec.steps / spec.gen_length))
        return replace(spec, gen_length=length, block_length=length, steps=steps)
    blocks = -(-length // spec.block_length)
    each = spec.steps * spec.block_length // spec.gen_length
    return replace(spec, gen_length=blocks * spec.block_length, steps=blocks * each)
