"""Answers and denoising states in OpenAI's wire format: whole, or as chunks of a stream.

The bytes of a stream follow from the request, its id and its time alone: a proxy that lost a
replica in the middle can ask another one and go on where the first one stopped.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from medv_ray.data.canvas import Filled, Template
from medv_ray.engine.inspection import Inspection
from medv_ray.engine.layout import Layout
from medv_ray.engine.request import Answer, View
from medv_ray.errors import MedvError
from medv_ray.serving.protocol import ChatRequest
from medv_ray.serving.text import GrowingText, cut
from medv_ray.settings import SamplerSettings

LEAST_LOGPROB = -9999.0
"""OpenAI's number for a token of no probability."""
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Texts:
    """How ids read: with the tokenizer and stop sequences of the model that answers."""

    decode: Callable[[Sequence[int]], str]
    """Special tokens left out, not trimmed."""
    token: Callable[[int], str]
    """One token, special ones by their names."""
    stops: Callable[[SamplerSettings], Sequence[Sequence[int]]]
    """Token sequences before which an answer ends. Raises BadRequest E1001."""
    placed: Callable[[Template, SamplerSettings, int | None], Layout]
    """Where the parts of a form stand in an answer of so many tokens at most. Raises DataError
    E1309."""


@dataclass
class Choice:
    """One of the answers to a request, as far as it has been sent."""

    index: int
    seed: int
    growing: GrowingText
    sent: set[int] = field(default_factory=set)
    """Positions whose commit has been sent."""
    begun: bool = False
    placed: bool = False
    """It has been sent where the blanks stand."""


class Completion:
    """Everything that is said of one request."""

    def __init__(
        self,
        request: ChatRequest,
        texts: Texts,
        seeds: Sequence[int],
        sampler: SamplerSettings,
        request_id: str,
        created: int,
        form: Template | None = None,
    ) -> None:
        # without the pictures, which would be held until the answer's end
        self.request = request.model_copy(update={"messages": []})
        self._texts, self._sampler, self._form = texts, sampler, form
        self.id = f"chatcmpl-{request_id}"
        self._about = {"id": self.id, "created": created, "model": request.model}
        self.answers: dict[int, Answer] = {}
        """By the number of the choice; those that have come."""
        self.error: str | None = None
        """The code of what ended it."""
        self.image_sha256: list[str] = []
        self.warnings: Sequence[str] = ()
        """Of the dialogue; an answer's own stand behind them."""
        stop_ids = texts.stops(sampler)
        self.choices = [
            Choice(i, seed, GrowingText(texts.decode, stop_ids, request.stops))
            for i, seed in enumerate(seeds)
        ]

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Remember what it ends with."""
        try:
            yield
        except Exception as error:
            self.error = error.code if isinstance(error, MedvError) else "E1509"
            raise

    @property
    def outcome(self) -> str:
        """`answered`, the code of an error, or `left`: by the client."""
        whole = len(self.answers) == len(self.choices)
        return self.error or ("answered" if whole else "left")

    def _in_order(self) -> list[Answer]:
        return [answer for _, answer in sorted(self.answers.items())]

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        answers, choices = self._in_order(), []
        for choice, answer in zip(self.choices, answers, strict=True):
            message = {"role": "assistant", "content": self.text(answer), "refusal": None}
            choices.append(
                {
                    "index": choice.index,
                    "message": message,
                    "logprobs": self._logprobs(answer),
                    "finish_reason": self._finish(answer),
                }
            )
        return {
            **self._about,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_of(answers),
            "medv": [self._ours(c, a) for c, a in zip(self.choices, answers, strict=True)],
        }

    def text(self, answer: Answer) -> str:
        """An answer's text, cut at the request's stop texts."""
        return cut(answer.text, self.request.stops)

    def chunks(self, index: int, event: View | Answer) -> list[dict[str, Any]]:
        """What a step has brought of a choice, or its end; empty when there is nothing to say."""
        choice = self.choices[index]
        if isinstance(event, Answer):
            return self._end_chunks(choice, event)
        return self._view_chunks(choice, event)

    def _view_chunks(self, choice: Choice, view: View) -> list[dict[str, Any]]:
        chunks = self._begin(choice)
        chunks += self._steps(choice, view)
        if view.text is not None:
            return chunks + self._delta(choice, choice.growing.grown(view.text))
        return chunks + self._delta(choice, choice.growing.feed(view.ids))

    def _end_chunks(self, choice: Choice, answer: Answer) -> list[dict[str, Any]]:
        chunks = self._begin(choice)
        if answer.last is not None:
            chunks += self._steps(choice, answer.last)
        chunks += self._delta(choice, choice.growing.finish(answer.text))
        end = self._chunk(choice, {}, self._finish(answer))
        end["choices"][0]["logprobs"] = self._logprobs(answer)
        return [*chunks, end | {"medv": self._ours(choice, answer)}]

    def usage_chunk(self) -> dict[str, Any]:
        """What comes before the end when usage was asked for."""
        return {
            **self._about,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage_of(self._in_order()),
        }

    def event(self, chunk: dict[str, Any]) -> bytes:
        """A chunk as it is sent."""
        return event(chunk)

    def last(self) -> bytes:
        """What ends a stream."""
        usage = event(self.usage_chunk()) if self.request.wants_usage else b""
        return usage + DONE

    def failed(self, error: dict[str, Any]) -> bytes:
        """What ends a stream early."""
        return event({"error": error})

    def _begin(self, choice: Choice) -> list[dict[str, Any]]:
        if choice.begun:
            return []
        choice.begun = True
        return [self._chunk(choice, {"role": "assistant", "content": ""})]

    def _delta(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        return [self._chunk(choice, {"content": text})] if text else []

    def _chunk(
        self, choice: Choice, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        said = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._about, "object": "chat.completion.chunk", "choices": [said]}

    def _steps(self, choice: Choice, view: View) -> list[dict[str, Any]]:
        """A chunk for each step whose commits have not been sent, if they are wanted."""
        if not self.request.wants_denoise:
            return []
        new = [p for p, i in enumerate(view.ids) if i is not None and p not in choice.sent]
        chunks, steps = [], {view.token_step[p] for p in new}
        blanks = None if self._form is None or choice.placed else self._blanks()
        choice.placed = True
        choice.sent.update(new)
        for step in sorted(steps if blanks is None else {-1, *steps}):
            committed = [
                {
                    "position": p,
                    "token": view.tokens[p],
                    "token_id": view.ids[p],
                    "confidence": round(view.confidence[p], 6),
                    "pinned": view.token_step[p] < 0,
                }
                for p in new
                if view.token_step[p] == step
            ]
            denoise: dict[str, Any] = {
                "index": choice.index,
                "step": step,
                "length": len(view.ids),
                "committed": committed,
            }
            if step < 0 and blanks is not None:
                denoise["blanks"] = blanks
            chunk = {**self._about, "object": "chat.completion.chunk", "choices": []}
            chunks.append(chunk | {"denoise": denoise})
        return chunks

    def _layout(self) -> Layout:
        assert self._form is not None, "of an answer in a form"
        return self._texts.placed(self._form, self._sampler, None)

    def _blanks(self) -> list[dict[str, Any]]:
        """Where each blank stands; those without a name are part of the form alone."""
        return [
            {"name": one.part.name, "start": one.positions.start, "stop": one.positions.stop}
            for one in self._layout().parts
            if not isinstance(one.part, str) and one.part.name
        ]

    def _left_out(self, answer: Answer) -> list[int]:
        """Given positions that are no part of the answer: it chose to leave them out."""
        kept = {*answer.positions}
        given = [one.positions for one in self._layout().parts if isinstance(one.part, str)]
        return [p for place in given for p in place if p not in kept]

    def _finish(self, answer: Answer) -> str:
        cut_short = len(self.text(answer)) < len(answer.text)
        return "stop" if cut_short or answer.finish == "stop" else "length"

    def _ours(self, choice: Choice, answer: Answer) -> dict[str, Any]:
        found: dict[str, Any] = {
            "confidence": round(answer.confidence, 6),
            "forward_passes": answer.forward_passes,
            "seed": choice.seed,
            "warnings": [*self.warnings, *answer.warnings],
        }
        if answer.blanks:
            found["blanks"] = [blank_object(blank) for blank in answer.blanks]
        if self._form is not None and self.request.wants_denoise:
            found["left_out"] = self._left_out(answer)
        return found

    def _kept(self, answer: Answer) -> Sequence[int]:
        """Tokens of an answer up to the one in which its text was cut."""
        ids, size = answer.token_ids, len(self.text(answer))
        if size == len(answer.text):
            return ids

        def reached(count: int) -> bool:
            return len(self._texts.decode(ids[:count]).strip()) >= size

        return ids[: bisect_left(range(len(ids)), True, key=reached)]

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        """From the confidence at which each token was committed."""
        if not self.request.logprobs:
            return None
        if (self.request.diffusion or {}).get("choices") is not None:
            return {"content": [self._chosen(answer)], "refusal": None}
        content = []
        for token, confidence in zip(self._kept(answer), self._once(answer), strict=False):
            text = self._texts.token(token)
            content.append(_likely(text, confidence) | {"top_logprobs": []})
        return {"content": content, "refusal": None}

    def _once(self, answer: Answer) -> Sequence[float]:
        """Confidence of each token; of a choice, which is committed whole, its first token has the
        whole's, so that logarithms can be summed."""
        if self._form is None:
            return answer.token_confidence
        later = {p for one in self._layout().parts if one.options for p in one.positions[1:]}
        given = zip(answer.positions, answer.token_confidence, strict=True)
        return [1.0 if position in later else confidence for position, confidence in given]

    def _chosen(self, answer: Answer) -> dict[str, Any]:
        """A choice as one token, and the likeliest ones beside it."""
        shares = answer.blanks[0].probabilities
        best = sorted(shares, key=lambda text: -shares[text])[: self.request.top_logprobs or 0]
        beside = [_likely(text, shares[text]) for text in best]
        return _likely(answer.text, shares[answer.text]) | {"top_logprobs": beside}


def _likely(text: str, probability: float) -> dict[str, Any]:
    logprob = math.log(probability) if probability > 0 else LEAST_LOGPROB
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def blank_object(blank: Filled) -> dict[str, Any]:
    """What a blank has come to, as it is sent."""
    found = {"name": blank.name, "value": blank.value, "confidence": round(blank.confidence, 6)}
    if blank.probabilities:
        found["probabilities"] = {t: round(p, 6) for t, p in blank.probabilities.items()}
    return found


def usage_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens in OpenAI's words; those of the prompt include the image's, and count once."""
    prompt = answers[0].prompt_tokens
    said = sum(len(answer.token_ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def inspection_body(found: Inspection, position: int, texts: Texts) -> dict[str, Any]:
    """The body of /v1/inspect."""
    return {
        "position": position,
        "alternatives": [
            {"token": texts.token(token), "token_id": token, "probability": round(probability, 6)}
            for token, probability in zip(found.ids, found.probabilities, strict=True)
        ],
        "attention": [
            {
                "image": number,
                "rows": len(one.weights),
                "columns": len(one.weights[0]),
                "box": one.box,
                "weights": [[round(weight, 7) for weight in row] for row in one.weights],
            }
            for number, one in enumerate(found.images)
        ],
    }


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
