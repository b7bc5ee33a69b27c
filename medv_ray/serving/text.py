"""The text of an answer that is not whole yet: its committed left part, which only grows.

A denoising step commits tokens anywhere. What may be said already is what no later step can change:
text in front of the first mask, before the end of the answer, without bytes or words that may still
turn out to be part of something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class GrowingText:
    """Deltas of one answer; together they are its text."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop_ids: Sequence[Sequence[int]],
        stops: Sequence[str],
    ) -> None:
        """
        Args:
            decode: text of ids, special tokens left out, not trimmed.
            stop_ids: token sequences before which an answer ends.
            stops: texts before which it ends.
        """
        self._decode, self._stop_ids, self._stops = decode, stop_ids, stops
        self._said = ""

    def feed(self, ids: Sequence[int | None]) -> str:
        """What can be said more, given the ids of all positions, None where the mask stands."""
        known: list[int] = []
        for token in ids:
            if token is None:
                break
            known.append(token)
        text = self._decode(known[: self._settled(known)]).lstrip()
        text = cut(text, self._stops).rstrip("\ufffd")  # the first bytes of a character
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        return self._say(text[: len(text) - held].rstrip())

    def grown(self, text: str) -> str:
        """What can be said more of a text that only grows."""
        return self._say(text)

    def finish(self, text: str) -> str:
        """The rest, given the whole answer's text."""
        return self._say(cut(text, self._stops))

    def _say(self, text: str) -> str:
        if not text.startswith(self._said):
            return ""
        more = text[len(self._said) :]
        self._said = text
        return more

    def _settled(self, known: list[int]) -> int:
        """Tokens that surely belong to the answer: up to what is or may become a stop sequence."""
        for index, token in enumerate(known):
            for stop in self._stop_ids:
                if stop[0] != token:  # clients may send long ones
                    continue
                part = known[index : index + len(stop)]
                if list(stop[: len(part)]) == part:
                    return index
        return len(known)


def cut(text: str, stops: Sequence[str]) -> str:
    """Text before the first of some texts, trimmed where one was found."""
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    return text[: min(found)].rstrip() if found else text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` may begin with."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
