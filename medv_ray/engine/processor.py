"""`Processor`: requests into prompts and embeddings, and what is denoised into answers and views.

Shapes: P prompt positions, D width.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medv_ray.data.canvas import Template
from medv_ray.data.prompts import SpecialIds, Turn, build, decode, encode_text
from medv_ray.data.segments import assistant_header, prompt_ends
from medv_ray.diffusion.canvas import Canvas
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine.images import Features, ImageStore
from medv_ray.engine.layout import Layout, Reading, Tokens, check_length, layout_of
from medv_ray.engine.request import Answer, Request, View
from medv_ray.engine.resolve import resolve
from medv_ray.engine.running import RequestState
from medv_ray.errors import DataError
from medv_ray.model.denoise import Prompt, splice
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, SamplerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_SPECS = 256
"""Different sampler settings that are kept in resolved form; clients of an endpoint send many."""
MAX_LAYOUTS = 16
"""Templates that are kept with their positions; those of an archive's rows are one."""


class Processor:
    """Both ends of a request. `spec`, `text`, `token_text` and `placed` may be called by any
    thread."""

    def __init__(
        self,
        model: Medv,
        tokenizer: PreTrainedTokenizerFast,
        settings: AnswerSettings,
        images: ImageStore,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._settings, self._images = settings, images
        self._special = SpecialIds.of(tokenizer)
        self._header = assistant_header(tokenizer)
        self._specs: dict[SamplerSettings, SampleSpec] = {}
        self._tokens = Tokens(tokenizer, len(model.head))
        self._layouts: tuple[tuple[Template, SampleSpec, Layout], ...] = ()

    def spec(self, settings: SamplerSettings | None) -> SampleSpec:
        """Sampler settings, or the engine's own, with token names turned into ids. Raises
        SettingsError E1001."""
        settings = settings or self._settings.sampler
        found = self._specs.get(settings)
        if found is None:
            found = resolve(settings, self._tokenizer, self._special)
            if len(self._specs) >= MAX_SPECS:
                self._specs.clear()
            self._specs[settings] = found
        return found

    def layout(self, template: Template, spec: SampleSpec, most: int | None = None) -> Layout:
        """A template's positions, `most` of them or as many as the model has. Raises DataError
        E1309."""
        limit = self._model.config.max_length
        most = limit if most is None else min(most, limit)
        for kept, settings, layout in self._layouts:
            if settings == spec and kept == template:
                check_length(layout.canvas.length or 0, most)
                return layout
        found = layout_of(template, spec, self._tokens, most)
        self._layouts = (*self._layouts[1 - MAX_LAYOUTS :], (template, spec, found))
        return found

    def placed(
        self, template: Template, settings: SamplerSettings, most: int | None = None
    ) -> Layout:
        """A template's positions in an answer. Raises DataError E1309, SettingsError E1001."""
        return self.layout(template, self.spec(settings), most)

    def form(self, request: Request) -> tuple[SampleSpec, Canvas]:
        """Settings and canvas of a request's response. Raises as `placed`."""
        spec = self.spec(request.sampler)
        if request.template is None:
            return spec, request.canvas or Canvas()
        layout = self.layout(request.template, spec)
        return layout.spec, layout.canvas

    def begin(self, ticket: int, request: Request, admitted_s: float) -> RequestState:
        """A request that is ready to enter a batch. Raises as `prompt`, and DataError E1309."""
        started_s = time.perf_counter()
        spec, layout = self.spec(request.sampler), None
        if request.template is not None:
            layout = self.layout(request.template, spec)
            spec = layout.spec
        prompt, embeds, features = self.prompt(request, spec)
        return RequestState(
            ticket,
            started_s,
            request,
            request.sampler or self._settings.sampler,
            spec,
            prompt,
            embeds,
            tuple(word for f in features for word in f.warnings),
            tuple(f.sha256 for f in features),
            hashlib.sha256(prompt.ids.numpy().astype("<i8").tobytes()).hexdigest(),
            started_s - admitted_s,
            time.perf_counter() - started_s,
            layout,
        )

    def prompt(self, request: Request, spec: SampleSpec) -> tuple[Prompt, Tensor, list[Features]]:
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

    def view(self, state: RequestState) -> View:
        """The response as it stands."""
        now, row, canvas, layout = state.denoising, state.row, state.canvas, state.layout
        parts = (now.x, now.masked, now.token_confidence, now.token_step)
        end = canvas.length if canvas is not None else None
        x, masked, confidence, steps = torch.stack([part[row].double() for part in parts])[
            :, :end
        ].tolist()
        for i in canvas.pinned if canvas else ():
            confidence[i] = 1.0
        # what waits for the rest of its piece shows the mask, too
        none = state.spec.mask_id
        ids = tuple(
            None if hidden or token == none else int(token)
            for token, hidden in zip(x, masked, strict=True)
        )
        return View(
            step=now.row(row).total,
            tokens=tuple(None if token is None else self.token_text(token) for token in ids),
            confidence=tuple(confidence),
            ids=ids,
            token_step=tuple(map(int, steps)),
            text=None if layout is None else self._reading(state, layout, ids, confidence).text,
        )

    def _reading(
        self,
        state: RequestState,
        layout: Layout,
        ids: Sequence[int | None],
        confidence: Sequence[float],
    ) -> Reading:
        """What stands of an answer with a template."""
        spans = state.denoising.row(state.row).spans
        odds = [() if one.found is None else one.found.tolist() for one in spans]
        return layout.read(ids, confidence, odds)

    def answer(self, state: RequestState) -> Answer:
        """What a request that takes no further step has come to."""
        last, row, suffix = self.view(state), state.denoising.row(state.row), state.spec.suffix_ids
        suffix = () if state.layout is not None else suffix  # an answer in a form is the form
        # a cancelled answer has masks left, and a model may commit the mask token itself
        kept = [i for i, token in enumerate(last.ids[: row.stop]) if token is not None]
        reading = None
        if state.layout is not None:
            reading = self._reading(state, state.layout, last.ids, last.confidence)
            kept = reading.positions
        ids = [token for i in kept if (token := last.ids[i]) is not None]
        return Answer(
            text=decode(self._tokenizer, [*ids, *suffix]) if reading is None else reading.text,
            token_ids=(*ids, *suffix),
            token_confidence=(*(last.confidence[i] for i in kept), *(1.0 for _ in suffix)),
            token_step=(*(last.token_step[i] for i in kept), *(-1 for _ in suffix)),
            forward_passes=row.forward_passes,
            seconds=time.perf_counter() - state.started_s,
            finish="cancelled" if state.cancelled else state.denoising.finish(state.row),
            warnings=state.warnings,
            image_sha256=state.image_sha256,
            prompt_sha256=state.prompt_sha256,
            prompt_tokens=len(state.embeds),
            waited_s=state.waited_s,
            vision_s=state.vision_s,
            last=last,
            positions=tuple(kept),
            blanks=() if reading is None else reading.blanks,
        )

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, as an answer has them."""
        return [encode_text(self._tokenizer, text.strip()) for text in texts]

    def token_text(self, token: int) -> str:
        """How one token reads."""
        return str(self._tokenizer.decode([token]))

    def text(self, ids: Sequence[int]) -> str:
        """How tokens read together, special ones left out; not trimmed."""
        found = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(found)
