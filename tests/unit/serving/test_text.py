"""What is said of an answer while it is denoised: never a word too much, and in the end all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from medv_ray.serving.text import GrowingText, cut

LETTERS = ["a", "b", " ", "\n", "ä", "€", "🫀", "中", "e\u0301", "\ufffd", ", ", "ab"]
SPECIAL = b""
"""A special token: it reads as nothing."""


@dataclass(frozen=True)
class Case:
    vocabulary: list[bytes]
    answer: list[int]
    """Ids of all positions, as they are in the end."""
    order: list[int]
    """Positions as they are committed."""
    at_once: list[int]
    """How many each step commits."""
    stop_ids: list[list[int]]
    stops: list[str]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.vocabulary[i] for i in ids).decode(errors="replace")

    @property
    def final(self) -> str:
        """As the engine says it: up to the first stop sequence, without blanks around it."""
        ids = self.answer
        ends = [
            place
            for place in range(len(ids))
            for stop in self.stop_ids
            if ids[place : place + len(stop)] == stop
        ]
        return self.decode(ids[: min(ends, default=len(ids))]).strip()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    text = "".join(draw(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=12)))
    data = text.encode()
    places = draw(st.lists(st.integers(1, max(1, len(data) - 1)), max_size=8))
    borders = sorted({0, len(data), *(place for place in places if place < len(data))})
    pieces = [data[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    vocabulary = sorted({*pieces, *(bytes([b]) for b in "aä ".encode())}) + [SPECIAL, SPECIAL]
    known = [vocabulary.index(piece) for piece in pieces]
    more = st.lists(st.integers(0, len(vocabulary) - 1), max_size=4)
    answer = draw(more) + known + draw(more)
    stop_ids = draw(
        st.lists(st.lists(st.integers(0, len(vocabulary) - 1), min_size=1, max_size=3), max_size=2)
    )
    if draw(st.booleans()):  # one that is surely found
        start = draw(st.integers(0, len(answer) - 1))
        stop_ids.append(answer[start : start + draw(st.integers(1, 3))])
    stops = draw(st.lists(st.text("abä ,\n€", min_size=1, max_size=3), max_size=3))
    if draw(st.booleans()):
        start = draw(st.integers(0, len(text) - 1))
        stops.append(text[start : start + draw(st.integers(1, 3))])
    order = draw(st.permutations(range(len(answer))))
    at_once = draw(st.lists(st.integers(1, 3), min_size=len(order), max_size=len(order)))
    return Case(vocabulary, answer, list(order), at_once, stop_ids, stops)


def plain(text: str, order: Sequence[int], stops: Sequence[str]) -> Case:
    """A byte for a token."""
    data = text.encode()
    vocabulary = [bytes([b]) for b in range(256)]
    return Case(vocabulary, list(data), list(order), [1] * len(data), [], list(stops))


@settings(max_examples=150, deadline=None)
@given(cases())
@example(plain("a€ b", [0, 1, 2, 3, 4, 5], []))
@example(plain("a€ b", [5, 3, 1, 2, 0, 4], ["€"]))
@example(plain("ab STOP c", range(9), ["STOP"]))
@example(plain("ab STOW c", range(9), ["STOP"]))
@example(plain("a  b", [0, 1, 2, 3], [" b"]))
@example(plain("\ufffda", [0, 1, 2, 3], ["\ufffda"]))
def test_what_is_said_only_grows_into_the_answer(case: Case) -> None:
    want = cut(case.final, case.stops)
    growing = GrowingText(case.decode, case.stop_ids, case.stops)
    state: list[int | None] = [None] * len(case.answer)
    order, said = list(case.order), ""
    for number in case.at_once:
        for place in order[:number]:
            state[place] = case.answer[place]
        del order[:number]
        said += growing.feed(state)
        assert want.startswith(said), (want, said)
    said += growing.finish(case.final)
    assert said == want


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_an_answer_may_end_at_any_step_that_has_all_before_its_stop(
    case: Case, data: st.DataObject
) -> None:
    """What lies behind the stop is never committed then."""
    want = cut(case.final, case.stops)
    growing = GrowingText(case.decode, case.stop_ids, case.stops)
    known = data.draw(st.integers(0, len(case.answer)))
    said = growing.feed([*case.answer[:known], *[None] * (len(case.answer) - known)])
    assert want.startswith(said)
    assert said + growing.finish(case.final) == want


def test_a_word_is_said_as_soon_as_nothing_can_change_it() -> None:
    case = plain("one cell. two", range(13), [". t"])
    growing = GrowingText(case.decode, [], case.stops)
    state: list[int | None] = list(case.answer)
    assert growing.feed([*state[:3], None]) == "one"
    assert growing.feed([*state[:4], None]) == ""  # blanks may be the last ones
    assert growing.feed([*state[:9], None]) == " cell"  # the stop may come
    assert growing.feed([*state[:9], None]) == ""
    assert growing.feed(state) == ""
    assert growing.finish("one cell. two") == ""


def test_a_step_back_says_nothing() -> None:
    """Short of memory, the engine begins an answer again."""
    case = plain("abc", range(3), [])
    growing = GrowingText(case.decode, [], [])
    state: list[int | None] = list(case.answer)
    assert growing.feed([*state[:2], None]) == "ab"
    assert growing.feed([None, None, None]) == ""
    assert growing.feed([state[0], None, None]) == ""
    assert growing.feed(state) == "c"
    assert growing.finish("abc") == ""
