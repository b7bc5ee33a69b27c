"""`Engine`: slots that requests enter, are denoised in side by side, and leave.

A row's answer depends on the row alone: rows draw from generators of their own, and on CPU each is
computed alone, so that company, batch size and order change nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medv_kernels.linear import pack
from medv_ray.data.prompts import SpecialIds, Turn, build, decode
from medv_ray.data.segments import assistant_header, prompt_ends
from medv_ray.diffusion.sampler import Denoising, SampleSpec
from medv_ray.engine.images import ImageStore
from medv_ray.engine.request import Answer, Counters, Request, View
from medv_ray.engine.resolve import resolve
from medv_ray.errors import DataError
from medv_ray.model.denoise import FullRecompute, Prompt, forward_rows
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, EngineSettings, SamplerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class _Slot:
    ticket: int
    started_s: float
    denoising: Denoising
    door: FullRecompute
    blind: FullRecompute | None
    warnings: tuple[str, ...]
    image_sha256: tuple[str, ...]
    prompt_sha256: str
    cancelled: bool = False
    error: DataError | None = None


class Engine:
    """Slots that requests enter, are denoised in, and leave. Not thread-safe: one thread steps
    it."""

    def __init__(
        self,
        model: Medv,
        tokenizer: PreTrainedTokenizerFast,
        answer: AnswerSettings,
        engine: EngineSettings,
    ) -> None:
        self.counters = Counters()
        self._model = model
        self._tokenizer = tokenizer
        self._settings = answer
        self._head = pack(model.head)
        self._special = SpecialIds.of(tokenizer)
        self._header = assistant_header(tokenizer)
        self._images = ImageStore(model, answer.image, engine.image_cache_bytes, self.counters)
        self._specs: dict[SamplerSettings, SampleSpec] = {}
        self._num_slots = engine.slots or (1 if model.device.type == "cpu" else 8)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._slots: list[_Slot] = []
        self._tickets = 0
        self.spec(answer.sampler)  # an unknown token name is an error now, not at the first row

    def admit(self, request: Request) -> int:
        """Queue a request; its ticket comes back from `step`. Raises SettingsError for bad
        settings."""
        self.spec(request.sampler or self._settings.sampler)
        self._tickets += 1
        self._waiting.append((self._tickets, request))
        return self._tickets

    @property
    def idle(self) -> bool:
        """Nothing waits and no slot is taken."""
        return not self._waiting and not self._slots

    def cancel(self, ticket: int) -> None:
        """End a request before its next step; `step` returns what it has, marked `cancelled`."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != ticket)
        for slot in self._slots:
            slot.cancelled |= slot.ticket == ticket

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Answer | DataError]]:
        """Fill free slots, move every slot one denoising step on, and return what ended."""
        ended: list[tuple[int, Answer | DataError]] = []
        while self._waiting and len(self._slots) < self._num_slots:
            ticket, request = self._waiting.popleft()
            try:
                self._slots.append(self._start(ticket, request))
            except DataError as error:
                ended.append((ticket, error))
        active = [slot for slot in self._slots if not slot.cancelled and not slot.denoising.done]
        self._advance(active)
        for slot in [s for s in self._slots if s.error or s.cancelled or s.denoising.done]:
            self._slots.remove(slot)
            ended.append((slot.ticket, slot.error or self._finish(slot)))
        return ended

    def _advance(self, slots: Sequence[_Slot]) -> None:
        """One denoising step of each slot; their forward passes run as one where the model can."""
        xs = [slot.denoising.x for slot in slots]
        needs = [slot.denoising.need() for slot in slots]
        rows = forward_rows([slot.door for slot in slots], xs, needs)
        blind: dict[int, Tensor] = {}
        guided = {i: slot.blind for i, slot in enumerate(slots) if slot.blind is not None}
        if guided:
            found = forward_rows(
                list(guided.values()), [xs[i] for i in guided], [needs[i] for i in guided]
            )
            blind = dict(zip(guided, found, strict=True))
        for i, slot in enumerate(slots):
            self.counters.forward_passes += bool(len(rows[i])) * (2 if i in blind else 1)
            try:
                slot.denoising.advance(rows[i], self._head, blind.get(i))
            except FloatingPointError:
                slot.error = DataError("E1305", f"NaN or infinity at step {slot.denoising.step}.")

    def _start(self, ticket: int, request: Request) -> _Slot:
        started_s = time.perf_counter()
        settings = request.sampler or self._settings.sampler
        spec = self.spec(settings)
        turns = [*request.history, Turn("user", request.question)]
        ids = build(self._tokenizer, turns, len(request.images), self._settings.prompt)
        several = len(request.images) > 1
        features = [self._images.get(data, several) for data in request.images]
        attention = self._model.config.attention
        ends = prompt_ends(ids, attention, self._header, self._special.eot)  # type: ignore[arg-type]
        prompt = Prompt(torch.tensor(ids), tuple(f.tokens for f in features), ends)
        door = FullRecompute(self._model, [prompt], suffix_ids=spec.suffix_ids)
        length, limit = door.sequence_length(0, spec.gen_length), self._model.config.max_length
        if length > limit:
            raise DataError(
                "E1303",
                f"prompt, image and answer need {length} positions; the model has {limit}.",
            )
        generator = torch.Generator().manual_seed(request.seed)
        return _Slot(
            ticket,
            started_s,
            Denoising.blank(spec, 1, [generator], [door.prompt_length(0)], self._model.device),
            door,
            door.unconditional(spec.mask_id) if spec.cfg_scale else None,
            tuple(word for f in features for word in f.warnings),
            tuple(f.sha256 for f in features),
            hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest(),
        )

    def _finish(self, slot: _Slot) -> Answer:
        self.counters.answers += 1
        done = slot.denoising
        # a cancelled answer has masks left, and a model may commit the mask token itself
        kept = ~done.masked[0, : done.stop_position(0)]
        suffix = done.spec.suffix_ids
        ids = [*done.x[0, : len(kept)][kept].tolist(), *suffix]
        confidence = done.token_confidence[0, : len(kept)][kept].tolist()
        steps = done.token_step[0, : len(kept)][kept].tolist()
        return Answer(
            text=decode(self._tokenizer, ids),
            token_ids=tuple(ids),
            token_confidence=(*confidence, *(1.0 for _ in suffix)),
            token_step=(*steps, *(-1 for _ in suffix)),
            forward_passes=done.forward_passes,
            seconds=time.perf_counter() - slot.started_s,
            finish="cancelled" if slot.cancelled else done.finish(0),
            warnings=slot.warnings,
            image_sha256=slot.image_sha256,
            prompt_sha256=slot.prompt_sha256,
        )

    def view(self, ticket: int) -> View | None:
        """The response of a request that holds a slot; None when it holds none."""
        slot = next((s for s in self._slots if s.ticket == ticket), None)
        if slot is None:
            return None
        now = slot.denoising
        ids = now.x[0].tolist()
        return View(
            step=now.step,
            tokens=tuple(
                None if masked else self.token_text(token)
                for token, masked in zip(ids, now.masked[0].tolist(), strict=True)
            ),
            confidence=tuple(now.token_confidence[0].tolist()),
        )

    def token_text(self, token: int) -> str:
        """How one token reads."""
        return str(self._tokenizer.decode([token]))

    def spec(self, settings: SamplerSettings) -> SampleSpec:
        """Sampler settings with token names turned into ids. Raises SettingsError E1001."""
        if settings not in self._specs:
            self._specs[settings] = resolve(settings, self._tokenizer, self._special)
        return self._specs[settings]

    def close(self) -> None:
        """End the image decoder's child processes."""
        self._images.close()
