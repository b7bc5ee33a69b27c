"""`Engine`: slots that requests enter, are denoised in side by side, and leave.

A row's answer depends on the row alone: rows draw from generators of their own, and on CPU each is
computed alone, so that company, batch size and order change nothing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medv_kernels.linear import pack
from medv_ray.data.images import Prepared
from medv_ray.data.prompts import SpecialIds, Turn, build, decode
from medv_ray.data.segments import assistant_header, prompt_ends
from medv_ray.diffusion.blocks import fits
from medv_ray.diffusion.sampler import Denoising, SampleSpec
from medv_ray.engine.doors import Doors
from medv_ray.engine.images import Features, ImageStore
from medv_ray.engine.inspection import Inspection, inspect_position, state_of
from medv_ray.engine.lane import LaneRow, Lanes
from medv_ray.engine.request import Answer, Counters, Request, View
from medv_ray.engine.resolve import resolve
from medv_ray.engine.slot import Slot, advance_alone, not_finite
from medv_ray.errors import DataError
from medv_ray.model.denoise import FullRecompute, Prompt, splice
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, EngineSettings, SamplerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)
MAX_SPECS = 256
"""Different sampler settings that are kept in resolved form; clients of an endpoint send many."""


class Engine:
    """Slots that requests enter, are denoised in, and leave. Not thread-safe: one thread steps
    it."""

    def __init__(
        self,
        model: Medv,
        tokenizer: PreTrainedTokenizerFast,
        answer: AnswerSettings,
        engine: EngineSettings,
        together: bool | None = None,
    ) -> None:
        """`together`: compute requests side by side in lanes where their settings allow it. None:
        on a GPU only; on a CPU it buys nothing, and a row's bits would depend on its company."""
        self.counters = Counters()
        self._model = model
        self._tokenizer = tokenizer
        self._settings = answer
        self._head = pack(model.head)
        self._special = SpecialIds.of(tokenizer)
        self._header = assistant_header(tokenizer)
        self._images = ImageStore(model, answer.image, engine.image_cache_bytes, self.counters)
        self._doors = Doors(model, engine)
        together = model.device.type != "cpu" if together is None else together
        self._lanes = Lanes(model, self._doors.budget_bytes) if together else None
        self._no_lane: set[int] = set()  # tickets that a lane has handed back
        self._specs: dict[SamplerSettings, SampleSpec] = {}
        self._admitted_s: dict[int, float] = {}
        self._num_slots = engine.slots or (1 if model.device.type == "cpu" else 8)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._slots: list[Slot] = []
        self._ready: Slot | None = None
        """The next request, when there is a slot for it and no memory yet."""
        self._ended: list[tuple[int, Answer | DataError]] = []
        """What `step` returns next; kept here, as a step may raise after a request has ended."""
        self._at_work: list[int] = []
        """Tickets of what the step is doing now: where it raises, those are to blame."""
        self._tickets = self._last_waited = 0
        self.spec(answer.sampler)  # an unknown token name is an error now, not at the first row

    def admit(self, request: Request) -> int:
        """Queue a request; its ticket comes back from `step`. Raises SettingsError for bad
        settings."""
        self.spec(request.sampler or self._settings.sampler)
        self._tickets += 1
        self._admitted_s[self._tickets] = time.perf_counter()
        self._waiting.append((self._tickets, request))
        return self._tickets

    @property
    def idle(self) -> bool:
        """Nothing waits, no slot is taken, and `step` has nothing to return."""
        return not (self._waiting or self._slots or self._ready or self._ended)

    def cancel(self, ticket: int) -> None:
        """End a request before its next step; `step` returns what it has, marked `cancelled`."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != ticket)
        self._admitted_s.pop(ticket, None)
        self._no_lane.discard(ticket)
        if self._ready is not None and self._ready.ticket == ticket:
            self._ready = None
        for slot in self._slots:
            slot.cancelled |= slot.ticket == ticket

    def give_up(self) -> int | None:
        """End the request for which alone `step` has raised; its ticket. None: there are several,
        or none."""
        if len(self._at_work) != 1:
            return None
        [ticket] = self._at_work
        for slot in [slot for slot in self._slots if slot.ticket == ticket]:
            self._leave(slot)
        self.cancel(ticket)
        return ticket

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Answer | DataError]]:
        """Fill free slots, move every slot one denoising step on, and return what ended.

        Raises torch.OutOfMemoryError for a request that is alone; of several the slots are halved.
        """
        self._fill()
        fitted = True
        steps = [slot for slot in self._slots if slot.steps]
        self._at_work = [slot.ticket for slot in steps]
        try:
            self._advance(steps)
        except torch.OutOfMemoryError:
            if len(self._slots) == 1:
                self._start_over()
                raise
            fitted = False
        if not fitted:  # not in the handler: until it is left, the error's frames hold tensors
            self._reduce(len(self._slots) // 2)
            self._start_over()
        for slot in [s for s in self._slots if not s.steps]:
            self._at_work = [slot.ticket]
            self._ended.append((slot.ticket, slot.error or self._finish(slot)))
            self._leave(slot)
        self.counters.prompt_hits, self.counters.prompt_evictions = self._doors.told()
        ended, self._ended = self._ended, []
        return ended

    def _fill(self) -> None:
        """Let waiting requests in, in their order, while there are slots and memory for them."""
        while (self._ready or self._waiting) and len(self._slots) < self._num_slots:
            slot = self._ready or self._next()
            if slot is None:
                continue
            self._ready = slot  # so that it is not lost where entering raises
            self._at_work = [slot.ticket]
            if not self._enter(slot):
                # a request that begins again has been counted
                self.counters.memory_waits += slot.ticket > self._last_waited
                self._last_waited = max(self._last_waited, slot.ticket)
                return
            self._slots.append(slot)
            self._ready = None

    def _next(self) -> Slot | None:
        """The first waiting request, ready to enter; None when it ended as an error, or when memory
        is for those that have a slot."""
        ticket, request = self._waiting[0]  # it stays where starting raises
        self._at_work = [ticket]
        try:
            slot = self._start(ticket, request)
        except DataError as error:
            self._waiting.popleft()
            self._admitted_s.pop(ticket, None)
            self._ended.append((ticket, error))
        except torch.OutOfMemoryError:
            if not self._slots:
                raise
            self._reduce(len(self._slots))
        else:
            self._waiting.popleft()
            return slot
        return None

    def _enter(self, slot: Slot) -> bool:
        """Whether there is room for a request; in a lane it has its place then."""
        taken = sum(other.kv_bytes for other in self._slots)
        if slot.door is not None:
            if self._lanes is not None:
                taken += self._lanes.nbytes(drop_empty=slot.kv_bytes > 0)
            return self._doors.room(slot.kv_bytes, taken)
        assert self._lanes is not None
        spec = self.spec(slot.settings)
        try:
            slot.denoising = self._lanes.enter(
                spec, slot.settings, slot.prompt, self._num_slots, taken
            )
        except torch.OutOfMemoryError:
            if not self._slots:
                raise
            self._reduce(len(self._slots))
        self._doors.room(0, taken + self._lanes.nbytes())
        return slot.denoising is not None

    def _leave(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._admitted_s.pop(slot.ticket, None)
        self._no_lane.discard(slot.ticket)
        if isinstance(slot.denoising, LaneRow):
            slot.denoising.leave()

    def _start_over(self) -> None:
        """Every request begins again, which changes no answer: a pass that ended halfway has left
        keys and values that do not fit each other."""
        again = [slot for slot in self._slots if not slot.cancelled]
        again += [self._ready] if self._ready else []
        self._waiting.extendleft((slot.ticket, slot.request) for slot in reversed(again))
        self._slots, self._ready = [slot for slot in self._slots if slot.cancelled], None
        self._doors.clear()
        if self._lanes is not None:
            self._lanes.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reduce(self, num_slots: int) -> None:
        log.warning("out of memory: %d requests together from now on", num_slots)
        self.counters.memory_shortages += 1
        self._num_slots = num_slots

    def _advance(self, slots: Sequence[Slot]) -> None:
        """One denoising step of each slot; their forward passes run as one where the model can."""
        alone = [slot for slot in slots if slot.door is not None]
        if alone:
            advance_alone(alone, self._head, self.counters)
        if self._lanes is None or len(alone) == len(slots):
            return
        passes, positions = self._lanes.step()
        self.counters.forward_passes += passes
        self.counters.positions += positions
        for slot in slots:
            row = slot.row
            if isinstance(row, LaneRow) and row.state == "failed":
                slot.error = not_finite(row.step - 1)  # the step is counted
            elif isinstance(row, LaneRow) and row.state == "unfit":
                self._leave(slot)
                self._no_lane.add(slot.ticket)
                self._waiting.appendleft((slot.ticket, slot.request))

    def _start(self, ticket: int, request: Request) -> Slot:
        started_s = time.perf_counter()
        settings = request.sampler or self._settings.sampler
        spec = self.spec(settings)
        prompt, embeds, features = self._prompt(request, spec)
        vision_s = time.perf_counter() - started_s
        ends = prompt.ends
        in_lane = self._lanes is not None and ticket not in self._no_lane and not ends
        in_lane = in_lane and settings.cache in ("none", "dual") and fits(spec)
        door = None if in_lane else self._doors.make(prompt if ends else embeds, settings, spec)
        return Slot(
            ticket,
            started_s,
            request,
            settings,
            embeds,
            None if door is None else self._denoising(spec, door, request.seed),
            door,
            door.unconditional(spec.mask_id) if door and spec.cfg_scale else None,
            door.kept_bytes(spec.gen_length) * (2 if spec.cfg_scale else 1) if door else 0,
            tuple(word for f in features for word in f.warnings),
            tuple(f.sha256 for f in features),
            hashlib.sha256(prompt.ids.numpy().astype("<i8").tobytes()).hexdigest(),
            started_s - self._admitted_s.get(ticket, started_s),
            vision_s,
        )

    def _prompt(self, request: Request, spec: SampleSpec) -> tuple[Prompt, Tensor, list[Features]]:
        """The prompt, its embeddings float[P, D], and its pictures' features.

        Raises DataError E1109, E12xx, E13xx.
        """
        turns = [*request.history, Turn("user", request.question)]
        ids = build(
            self._tokenizer, turns, len(request.images), self._settings.prompt, request.system
        )
        several = len(request.images) > 1
        features = [self._images.get(data, several) for data in request.images]
        attention = self._model.config.attention
        ends = prompt_ends(ids, attention, self._header, self._special.eot)  # type: ignore[arg-type]
        prompt = Prompt(torch.tensor(ids), tuple(f.tokens for f in features), ends)
        embeds = splice(self._model, prompt.ids, prompt.images)
        length = len(embeds) + spec.gen_length + len(spec.suffix_ids)
        limit = self._model.config.max_length
        if length > limit:
            raise DataError(
                "E1303",
                f"prompt, image and answer need {length} positions; the model has {limit}.",
            )
        return prompt, embeds, features

    def _denoising(self, spec: SampleSpec, door: FullRecompute, seed: int) -> Denoising:
        generator = torch.Generator().manual_seed(seed)
        return Denoising.blank(spec, 1, [generator], [door.prompt_length(0)], self._model.device)

    def _finish(self, slot: Slot) -> Answer:
        self.counters.answers += 1
        done = slot.row
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
            prompt_tokens=len(slot.prompt),
            waited_s=slot.waited_s,
            vision_s=slot.vision_s,
            last=self._view(slot),
        )

    def view(self, ticket: int) -> View | None:
        """The response of a request that holds a slot; None when it holds none."""
        slot = next((s for s in self._slots if s.ticket == ticket), None)
        return None if slot is None else self._view(slot)

    def _view(self, slot: Slot) -> View:
        now = slot.row
        masked = now.masked[0].tolist()
        ids = [None if hidden else i for i, hidden in zip(now.x[0].tolist(), masked, strict=True)]
        return View(
            step=now.step,
            tokens=tuple(None if token is None else self.token_text(token) for token in ids),
            confidence=tuple(now.token_confidence[0].tolist()),
            ids=tuple(ids),
            token_step=tuple(now.token_step[0].tolist()),
        )

    @torch.inference_mode()
    def inspect(self, request: Request, ids: Sequence[int | None], position: int) -> Inspection:
        """What could stand at a position of a state of the response, and what it looks at there.

        `ids`: L of them, None where the mask stands, at `position` among others. One forward pass.
        Raises DataError E1001 (no such state), E12xx, E13xx.
        """
        settings = request.sampler or self._settings.sampler
        spec = self.spec(settings)
        prompt, embeds, features = self._prompt(request, spec)
        x = state_of(ids, position, spec, self._model.config.language.vocab_size)
        door = FullRecompute(self._model, [prompt if prompt.ends else embeds], spec.suffix_ids)
        return inspect_position(
            self._model,
            door,
            x,
            position,
            spec,
            prompt.ids.tolist(),
            features,
            self._images.tiles,
        )

    def decode(self, data: bytes, several: bool) -> bytes | Prepared:
        """An image of a request, decoded, or itself where its features are kept. Any thread may
        call it; `several`: the request has more. Raises DataError E12xx, CheckpointError E1410."""
        return self._images.decode(data, several)

    def token_text(self, token: int) -> str:
        """How one token reads."""
        return str(self._tokenizer.decode([token]))

    def text(self, ids: Sequence[int]) -> str:
        """How tokens read together, special ones left out; not trimmed."""
        found = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(found)

    def stop_ids(self, settings: SamplerSettings) -> tuple[tuple[int, ...], ...]:
        """Token sequences before which an answer ends. Raises SettingsError E1001. Any thread may
        call it, as `text` and `token_text`."""
        return resolve(settings, self._tokenizer, self._special).stop_ids

    def spec(self, settings: SamplerSettings) -> SampleSpec:
        """Sampler settings with token names turned into ids. Raises SettingsError E1001."""
        if settings not in self._specs:
            if len(self._specs) == MAX_SPECS:
                self._specs.clear()
            self._specs[settings] = resolve(settings, self._tokenizer, self._special)
        return self._specs[settings]

    def close(self) -> None:
        """End the image decoder's child processes."""
        self._images.close()
