"""Questions about a tile in the style of PathVQA, planned so that their text gives nothing away.

Each question has every answer equally often, by itself. So a guess from the text alone is right by
chance: one half for yes/no and presence, one quarter for colour, count and side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from medv_ray.data.tissue import COLOURS, COUNTS, SIDES

QUESTION_TYPES = ("yes/no", "colour", "count", "side", "presence")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "count": COUNTS,
    "vessel": ("none", *SIDES),
    "pigment": ("yes", "no"),
    "band": ("yes", "no"),
}
BLOCK_ROWS = 600  # rows whose balance is exact: five times every target of every type
ATTEMPTS = 40

Allowed = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Target:
    """A question with its answer, and what a scene must show for the answer to be true."""

    question: str
    answer: str
    needs: Allowed = field(hash=False)


@cache
def targets(question_type: str) -> tuple[Target, ...]:
    """Every (question, answer) of a type, each question with all its answers.

    Raises KeyError for a type that does not exist.
    """
    makers = (_yes_no, _colour, _count, _side, _presence)
    return tuple(dict(zip(QUESTION_TYPES, makers, strict=True))[question_type]())


def plan(
    num_rows: int, counts: list[int], rng: np.random.Generator
) -> list[list[tuple[str, Target]]]:
    """For each tile, `counts[i]` (type, target) that can be true together, the types in turn.

    A greedy walk through shuffled decks may be left with targets that fit none of the tiles to
    come: then it starts again. After some tries, and beyond BLOCK_ROWS rows, it takes a fitting
    question outside the balance instead.
    """
    for _ in range(ATTEMPTS if num_rows <= BLOCK_ROWS else 0):
        asked = _walk(num_rows, counts, rng, strict=True)
        if asked is not None:
            return asked
    asked = _walk(num_rows, counts, rng, strict=False)
    assert asked is not None, "a walk that is not strict always arrives"
    return asked


def true_of(attributes: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Every question that a tile answers: type -> answer -> questions."""
    found: dict[str, dict[str, list[str]]] = {kind: {} for kind in QUESTION_TYPES}
    for kind in QUESTION_TYPES:
        for target in targets(kind):
            if all(attributes[name] in values for name, values in target.needs.items()):
                found[kind].setdefault(target.answer, []).append(target.question)
    return found


def _walk(
    num_rows: int, counts: list[int], rng: np.random.Generator, *, strict: bool
) -> list[list[tuple[str, Target]]] | None:
    kinds = [QUESTION_TYPES[row % len(QUESTION_TYPES)] for row in range(num_rows)]
    decks = {kind: _deck(kind, kinds.count(kind), rng) for kind in QUESTION_TYPES}
    asked: list[list[tuple[str, Target]]] = []
    row = 0
    for count in counts:
        allowed = everything()
        questions: list[tuple[str, Target]] = []
        for kind in kinds[row : row + count]:
            target = _take(decks[kind], allowed, {known.question for _, known in questions})
            if target is None and strict:
                return None
            if target is None:
                kind, target = _any(kind, allowed, {known.question for _, known in questions}, rng)
            questions.append((kind, target))
            allowed = both(allowed, target.needs)
        row += count
        asked.append(questions)
    return asked


def _any(
    kind: str, allowed: Allowed, asked: set[str], rng: np.random.Generator
) -> tuple[str, Target]:
    """A true question outside the decks, of another type if the tile can have none of this one."""
    for other in (kind, *QUESTION_TYPES):
        target = _take(_deck(other, len(targets(other)), rng), allowed, asked)
        if target is not None:
            return other, target
    raise AssertionError(f"no question is left after {len(asked)} on one tile")


def _deck(kind: str, size: int, rng: np.random.Generator) -> list[Target]:
    """`size` targets in random order: whole sets, then as many whole questions as fit."""
    every = targets(kind)
    sets, rest = divmod(size, len(every))
    texts = list(dict.fromkeys(target.question for target in every))
    order = [texts[i] for i in rng.permutation(len(texts))]
    partial = sorted(every, key=lambda target: order.index(target.question))[:rest]
    deck = [*every] * sets + partial
    return [deck[i] for i in rng.permutation(len(deck))]


def _take(deck: list[Target], allowed: Allowed, asked: set[str]) -> Target | None:
    """Remove and return the first target that is new and can be true with what is fixed already."""
    for index, target in enumerate(deck):
        if target.question not in asked and all(both(allowed, target.needs).values()):
            return deck.pop(index)
    return None


def everything() -> Allowed:
    """What a tile may show before anything is asked about it."""
    return {name: frozenset(values) for name, values in ATTRIBUTES.items()}


def both(allowed: Allowed, needs: Allowed) -> Allowed:
    return {name: values & needs.get(name, values) for name, values in allowed.items()}


def _only(name: str, *values: str) -> Allowed:
    return {name: frozenset(values)}


def _but(name: str, value: str) -> Allowed:
    """Any other value; of the vessel any other side: the question presupposes a vessel."""
    return {name: frozenset(ATTRIBUTES[name]) - {value, "none"}}


def _yes_no() -> Iterator[Target]:
    texts = {("colour", colour): f"Are the large cells {colour}?" for colour in COLOURS}
    texts |= {("count", "one"): "Is there exactly one large cell?"}
    texts |= {("count", count): f"Are there exactly {count} large cells?" for count in COUNTS[1:]}
    place = {
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "bottom": "at the bottom",
    }
    texts |= {("vessel", side): f"Is the vessel {where}?" for side, where in place.items()}
    for (name, value), text in texts.items():
        yield Target(text, "yes", _only(name, value))
        yield Target(text, "no", _but(name, value))


def _colour() -> Iterator[Target]:
    for text in (
        "What colour are the large cells?",
        "Which colour are the large cells stained?",
        "What is the colour of the large cells?",
    ):
        yield from (Target(text, colour, _only("colour", colour)) for colour in COLOURS)


def _count() -> Iterator[Target]:
    for text in (
        "How many large cells are there?",
        "How many large cells are seen in the picture?",
        "What is the number of large cells?",
    ):
        yield from (Target(text, count, _only("count", count)) for count in COUNTS)


def _side() -> Iterator[Target]:
    for text in (
        "Where is the vessel located?",
        "On which side is the vessel?",
        "Which side of the tile does the vessel lie on?",
    ):
        yield from (Target(text, side, _only("vessel", side)) for side in SIDES)


def _presence() -> Iterator[Target]:
    names = {"vessel": "a vessel", "pigment": "pigment", "band": "a fibrous band"}
    for name, words in names.items():
        there = frozenset(ATTRIBUTES[name]) - {"no", "none"}
        for text in (f"Is {words} present?", f"Is there {words} in the tile?"):
            yield Target(text, "yes", {name: there})
            yield Target(text, "no", {name: frozenset(ATTRIBUTES[name]) - there})
