"""`Predictor`: the engine for callers that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from medv_ray.data.prompts import SpecialIds, load_tokenizer
from medv_ray.engine.engine import Engine
from medv_ray.engine.request import Answer, Counters, Request, View
from medv_ray.errors import CheckpointError, DataError, SettingsError
from medv_ray.hub import here
from medv_ray.model import lora, weights
from medv_ray.model.medv import Medv
from medv_ray.model.quantise import quantise
from medv_ray.settings import AnswerSettings, EngineSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACK_BYTES = 2**30
"""Towers up to this size are held a second time in the layout that the CPU multiplies fastest."""


def load_model(model: ModelSettings) -> tuple[Medv, PreTrainedTokenizerFast]:
    """A checkpoint folder's model, its adapter beside its weights if one is named, and tokenizer.

    Raises CheckpointError E14xx, SettingsError E1001, E1003, E1414.
    """
    folder = Path(here(model.path))
    tokenizer = load_tokenizer(folder)
    device = model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "E1001", "model.device=cuda: torch sees no GPU; use cpu, without --num-gpus."
        )
    size = len(tokenizer) if model.logit_size == "tokenizer" else None
    quantised = model.quantisation != "none"
    first = "cpu" if quantised else device  # a GPU never holds what is quantised in full
    loaded = weights.load(folder, dtype=getattr(torch, model.dtype), device=first, logit_size=size)
    if model.adapter is not None:
        lora.load_adapter(loaded, here(model.adapter), weights.digest(folder))
    if quantised:
        quantise(loaded, model.quantisation, model.group_size, device)
    else:
        loaded.pack(PACK_BYTES)
    if max(SpecialIds.of(tokenizer)) >= loaded.config.language.vocab_size:
        raise CheckpointError("E1408", "the tokenizer's special ids lie outside the vocabulary.")
    return loaded, tokenizer


class Predictor:
    """`Engine` for callers that wait. Use as a context manager, or call `close`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def load(
        cls,
        model: ModelSettings,
        answer: AnswerSettings | None = None,
        engine: EngineSettings | None = None,
    ) -> Self:
        """From a checkpoint folder, with an adapter beside its weights if one is named.

        Raises CheckpointError E14xx, SettingsError E1001, E1003.
        """
        loaded, tokenizer = load_model(model)
        return cls(
            Engine(loaded, tokenizer, answer or AnswerSettings(), engine or EngineSettings())
        )

    @property
    def counters(self) -> Counters:
        """What the engine has done so far."""
        return self.engine.counters

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """One answer per request, in their order; for a bad row its DataError. Choices are scored
        when all are answered, one request after the other."""
        positions: dict[int, int] = {}
        answers: list[Answer | DataError | None] = [None] * len(requests)
        try:
            for i, request in enumerate(requests):
                positions[self.engine.admit(request)] = i
            while not self.engine.idle:
                for ticket, answer in self.engine.step():
                    if ticket in positions:  # else of a watch or a call that ended early
                        answers[positions[ticket]] = answer
        except BaseException:
            for ticket in positions:
                self.engine.cancel(ticket)
            raise
        ended = [one for one in answers if one is not None]
        return [self._choose(*pair) for pair in zip(requests, ended, strict=True)]

    def _choose(self, request: Request, ended: Answer | DataError) -> Answer | DataError:
        """The answer with the request's choices."""
        if not request.choices or isinstance(ended, DataError):
            return ended
        try:
            return replace(ended, choices=tuple(self.engine.choose(request, request.choices)))
        except DataError as error:
            return error

    def watch(self, request: Request) -> Iterator[View]:
        """The response after every step; the last view carries the answer. Raises DataError.

        Closing the iterator cancels the request.
        """
        ticket = self.engine.admit(request)
        last: View | None = None
        try:
            while True:
                for ended_ticket, ended in self.engine.step():
                    if ended_ticket != ticket:
                        continue
                    if isinstance(ended, DataError):
                        raise ended
                    yield self._last_view(ended)
                    return
                last = self.engine.view(ticket)
                if last is not None:
                    yield last
        finally:
            self.engine.cancel(ticket)

    def _last_view(self, answer: Answer) -> View:
        tokens = tuple(self.engine.token_text(token) for token in answer.token_ids)
        assert answer.last is not None
        return View(
            answer.last.step,
            tokens,
            answer.token_confidence,
            answer.token_ids,
            answer.token_step,
            answer,
        )

    def close(self) -> None:
        """End the image decoder's child processes."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
