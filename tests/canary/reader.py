"""A predictor that decodes pictures as the real one does, and answers with a canary.

Questions may hold the words of `tests.integration.stub`; one that begins with "And" raises an error
with the question in its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medv_ray.data.decode_child import Decoder
from medv_ray.engine import Answer, Request
from medv_ray.engine.choices import Choice
from medv_ray.errors import DataError
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.settings import ImageSettings
from tests.canary.planting import ANSWER
from tests.integration.stub import Stub

READER = "tests.canary.reader:load"


class Reader:
    def __init__(self) -> None:
        self._decoder, self._stub = Decoder(ImageSettings(), None), Stub()
        self.counters = self._stub.counters

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer | DataError:
        if request.question.startswith("And"):
            raise ValueError(f"the question is {request.question}")
        try:
            for image in request.images:
                self._decoder.prepare(image)
        except DataError as error:
            return error
        [answer] = self._stub.answer([request])
        if not isinstance(answer, Answer):
            return answer
        share = 1 / max(1, len(request.choices))
        choices = tuple(Choice(text, -1.0, share) for text in request.choices)
        return replace(answer, text=ANSWER, choices=choices)

    def close(self) -> None:
        self._decoder.close()


def load(settings: ScoreSettings) -> Reader:
    return Reader()
