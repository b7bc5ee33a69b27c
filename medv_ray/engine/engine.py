"""`Engine`: requests enter a running batch, are denoised side by side, and leave.

A row's answer depends on the row alone: rows draw from generators of their own, and on CPU each is
computed alone, so that company, batch size and order change nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from medv_kernels.linear import pack
from medv_ray.diffusion.likelihood import log_likelihood
from medv_ray.engine.attending import Attention, attention_of
from medv_ray.engine.choices import Choice, check, score
from medv_ray.engine.images import ImageStore
from medv_ray.engine.inspection import Inspection, inspect_position, state_of
from medv_ray.engine.processor import Processor
from medv_ray.engine.request import Answer, Counters, Request, View
from medv_ray.engine.running import RequestState, RunningBatches
from medv_ray.errors import DataError, SettingsError, is_out_of_memory
from medv_ray.model.denoise import FullRecompute
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, EngineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


T = TypeVar("T", bound=Callable[..., Any])


def stateful(method: T) -> T:
    """A method of the engine that touches its state: it runs in inference mode, as the state's
    tensors were made there, and for the thread alone that steps."""
    wrapped: T = torch.inference_mode()(method)
    wrapped.stateful = True  # type: ignore[attr-defined]
    return wrapped


class Engine:
    """Requests that enter a running batch, are denoised, and leave. Not thread-safe: one thread
    calls the `stateful` methods."""

    def __init__(
        self,
        model: Medv,
        tokenizer: PreTrainedTokenizerFast,
        answer: AnswerSettings,
        engine: EngineSettings,
        together: bool | None = None,
    ) -> None:
        """`together`: compute requests side by side where their settings allow it. None: on a GPU
        only; on a CPU it buys nothing, and a row's bits would depend on its company."""
        self.counters = Counters()
        self._model = model
        self._head = pack(model.head)
        self._images = ImageStore(model, answer.image, engine.image_cache_bytes, self.counters)
        self._processor = Processor(model, tokenizer, answer, self._images)
        # any thread may call these
        self.spec, self.text = self._processor.spec, self._processor.text
        self.token_text, self.decode = self._processor.token_text, self._images.decode
        self.placed = self._processor.placed
        self.tiles = self._images.tiles
        on_gpu = model.device.type != "cpu"
        self._batches = RunningBatches(model, engine, on_gpu if together is None else together)
        self._admitted_s: dict[int, float] = {}
        self._most = engine.slots or (8 if on_gpu else 1)
        """Requests together, at most."""
        self._suspects: set[int] = set()
        """Tickets of a step that has raised: they run alone until they have ended."""
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: list[RequestState] = []
        self._ready: RequestState | None = None
        """The next request, when it could run but for memory."""
        self._ended: list[tuple[int, Answer | DataError]] = []
        """What `step` returns next; kept here, as a step may raise after a request has ended."""
        self._at_work: list[int] = []
        """Tickets of what the step is doing now: where it raises, those are to blame."""
        self._tickets = self._last_waited = 0
        self._retried: int | None = None
        """Who was alone when memory was short, last."""
        self.spec(answer.sampler)  # an unknown token name is an error now, not at the first row

    @stateful
    def admit(self, request: Request) -> int:
        """Queue a request; its ticket comes back from `step`. Raises SettingsError for bad
        settings, or a canvas that does not fit them."""
        spec = self.spec(request.sampler)
        if request.canvas is not None:
            request.canvas.check(spec, len(self._model.head))
        self._tickets += 1
        self._admitted_s[self._tickets] = time.perf_counter()
        self._waiting.append((self._tickets, request))
        return self._tickets

    @property
    def slots(self) -> int:
        """Requests that are denoised together at most."""
        return self._most

    @property
    def idle(self) -> bool:
        """Nothing waits or runs, and `step` has nothing to return."""
        return not (self._waiting or self._running or self._ready or self._ended)

    @stateful
    def cancel(self, ticket: int) -> None:
        """End a request before its next step; `step` returns what it has, marked `cancelled`."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] != ticket)
        self._forget(ticket)
        if self._ready is not None and self._ready.ticket == ticket:
            self._ready = None
        for state in self._running:
            if state.ticket == ticket:
                state.cancelled = True
                state.denoising.halt(state.row)

    @stateful
    def give_up(self) -> int | None:
        """End the request for which alone `step` has raised; its ticket. None: there are several,
        or none."""
        if len(self._at_work) != 1:
            return None
        [ticket] = self._at_work
        for state in [state for state in self._running if state.ticket == ticket]:
            self._leave(state)
        self.cancel(ticket)
        return ticket

    @stateful
    def step(self) -> list[tuple[int, Answer | DataError]]:
        """Fill free rows, move every request one denoising step on, and return what ended.

        Raises what a step of one request raises, and a lost GPU. Of several that were at work none
        is to blame alone: where memory was short, half as many run together from now on; else each
        runs alone until it has ended. Nothing is lost either way, and no answer changes.
        """
        self._fill()
        trouble: Exception | None = None
        try:
            self._advance()
        except Exception as error:
            if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
                raise  # the GPU's context is lost
            short = is_out_of_memory(error)
            alone = self._running[0].ticket if len(self._running) == 1 else None
            # what nobody uses any more may be what it lacks: it begins again without that, once
            again = short and alone != self._retried and self._batches.spare
            self._retried = alone
            if (alone or not short and len(self._at_work) == 1) and not again:
                self._start_over()
                raise
            trouble = error.with_traceback(None)  # its frames hold tensors
        if trouble is not None:
            if is_out_of_memory(trouble) and len(self._running) > 1:
                self._reduce(len(self._running) // 2)
            elif is_out_of_memory(trouble):
                log.warning("out of memory: what is kept for later requests is dropped")
            else:
                log.warning(
                    "%s in a step of several requests: each runs alone", type(trouble).__name__
                )
                self._suspects.update(self._at_work)
            self._start_over()
        for state in [state for state in self._running if not state.running]:
            self._at_work = [state.ticket]
            self._ended.append((state.ticket, state.error or self._processor.answer(state)))
            self.counters.answers += state.error is None
            self._leave(state)
        prompts = self._batches.prompts
        self.counters.prompt_hits, self.counters.prompt_evictions = prompts.hits, prompts.evictions
        ended, self._ended = self._ended, []
        return ended

    def _fill(self) -> None:
        """Let waiting requests in, in their order, while there are rows and memory for them."""
        while (self._ready or self._waiting) and len(self._running) < self._limit:
            try:
                state = self._ready or self._next()
                if state is None:
                    continue
                self._ready = state  # so that it is not lost where entering raises
                self._at_work = [state.ticket]
                if not self._batches.enter(state, self._most):
                    # a request that begins again has been counted
                    self.counters.memory_waits += state.ticket > self._last_waited
                    self._last_waited = max(self._last_waited, state.ticket)
                    return
                self._running.append(state)
                self._ready = None
            except Exception as error:
                if not self._running or not is_out_of_memory(error):
                    raise
                self._reduce(len(self._running))

    @property
    def _limit(self) -> int:
        return 1 if self._suspects else self._most

    def _next(self) -> RequestState | None:
        """The first waiting request, ready to enter; None when it ended as an error."""
        ticket, request = self._waiting[0]  # it stays where starting raises
        self._at_work = [ticket]
        try:
            state = self._processor.begin(ticket, request, self._admitted_s[ticket])
        except DataError as error:
            self._forget(ticket)
            self._ended.append((ticket, error))
            state = None
        self._waiting.popleft()
        return state

    def _leave(self, state: RequestState) -> None:
        self._running.remove(state)
        self._forget(state.ticket)
        if state.batch is not None:
            state.batch.leave(state.row)

    def _forget(self, ticket: int) -> None:
        self._admitted_s.pop(ticket, None)
        self._suspects.discard(ticket)

    def _start_over(self) -> None:
        """Every request begins again, which changes no answer: a pass that ended halfway has left
        keys and values that do not fit each other."""
        again = [state for state in self._running if not state.cancelled]
        again += [self._ready] if self._ready else []
        self._waiting.extendleft((state.ticket, state.request) for state in reversed(again))
        self._running, self._ready = [state for state in self._running if state.cancelled], None
        self._batches.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reduce(self, most: int) -> None:
        log.warning("out of memory: %d requests together from now on", most)
        self.counters.memory_shortages += 1
        self._most = most

    def _advance(self) -> None:
        """One denoising step of every running batch."""
        self._at_work = []
        for batch in self._batches.all():
            at_work = [s.ticket for s in self._running if s.batch is batch and s.running]
            if at_work:
                self._at_work = at_work
                passes, positions = batch.step(self._head)
                self.counters.forward_passes += passes
                self.counters.positions += positions

    @stateful
    def view(self, ticket: int) -> View | None:
        """The response of a request that runs; None when it does not."""
        state = next((s for s in self._running if s.ticket == ticket), None)
        return None if state is None else self._processor.view(state)

    @stateful
    def inspect(self, request: Request, ids: Sequence[int | None], position: int) -> Inspection:
        """What could stand at a position of a state of the response, and what it looks at there.

        `ids`: L of them, None where the mask stands, at `position` among others. One forward pass.
        Raises DataError E1001 (no such state), E12xx, E13xx.
        """
        spec, canvas = self._processor.form(request)
        canvas.check(spec, len(self._model.head))
        if canvas.length is not None:  # a view ends where the answer does
            ids = [*ids, *[None] * (spec.gen_length - len(ids))]
        prompt, embeds, features = self._processor.prompt(request, spec)
        x = state_of(ids, position, spec, self._model.config.language.vocab_size)
        given = prompt if prompt.ends else embeds
        denoiser = FullRecompute(self._model, [given], spec.suffix_ids)
        return inspect_position(
            self._model,
            denoiser,
            x,
            position,
            spec,
            prompt.ids.tolist(),
            features,
            self._images.tiles,
            canvas.may_take(position, ids),
        )

    @stateful
    def attend(self, request: Request, ids: Sequence[int | None]) -> Attention:
        """Where the masked positions of a state of the response look, in every layer.

        `ids`: as in `inspect`, None at one position at least. One forward pass. Raises DataError
        E1001 (no such state), E12xx, E13xx.
        """
        spec, canvas = self._processor.form(request)
        if canvas.length is not None:
            ids = [*ids, *[None] * (spec.gen_length - len(ids))]
        prompt, embeds, features = self._processor.prompt(request, spec)
        position = next((i for i, token in enumerate(ids) if token is None), 0)
        x = state_of(ids, position, spec, self._model.config.language.vocab_size)
        given = prompt if prompt.ends else embeds
        denoiser = FullRecompute(self._model, [given], spec.suffix_ids)
        return attention_of(denoiser, x, spec, prompt.ids.tolist(), features)

    @stateful
    def choose(self, request: Request, choices: Sequence[str]) -> list[Choice]:
        """How likely each of some answers is; nothing is sampled. See `choices`.

        Raises DataError E1308 for choices that cannot be compared, E12xx, E13xx.
        """
        spec = self.spec(request.sampler)
        ids = self._processor.ids_of(choices)
        check(choices, ids, spec)
        prompt, embeds, _ = self._processor.prompt(request, spec)
        denoiser = FullRecompute(self._model, [prompt if prompt.ends else embeds], spec.suffix_ids)
        found = score(denoiser, spec, choices, ids)
        self.counters.positions += denoiser.computed
        return found

    @stateful
    def log_likelihood(self, request: Request, text: str, num_samples: int = 128) -> float:
        """Monte Carlo bound of log p(text | question, pictures), nats; nothing is sampled.

        Of the text's tokens alone, as long as they are: no stop sequence, no masks behind them.
        `num_samples` noisy copies go through the model, their masks drawn by `request.seed`; for a
        text of one token it is exact, and one will do. Guidance is that of the sampler settings.
        See `diffusion.likelihood`.

        Raises SettingsError E1001 for no sample, DataError E1308 for a blank text, E12xx, E13xx.
        """
        if num_samples < 1:
            raise SettingsError("E1001", f"num_samples={num_samples} must be 1 at least.")
        spec = self.spec(request.sampler)
        [ids] = self._processor.ids_of([text])
        if not ids:
            raise DataError("E1308", "the answer has no text.")
        n = len(ids)
        sized = replace(spec, gen_length=n, block_length=n, steps=n, suffix_ids=())
        prompt, embeds, _ = self._processor.prompt(request, sized)
        given = prompt if prompt.ends else embeds
        samples = 1 if n == 1 else num_samples
        found = log_likelihood(
            lambda rows: FullRecompute(self._model, [given] * rows),
            torch.tensor(ids, device=self._model.device),
            spec.mask_id,
            num_samples=samples,
            copies=math.gcd(samples, 16),
            cfg_scale=spec.cfg_scale,
            generator=torch.Generator().manual_seed(request.seed),
        )
        if not math.isfinite(found):
            raise DataError("E1305", "NaN or infinity where a likelihood is measured.")
        return found

    def close(self) -> None:
        """End the image decoder's child processes."""
        self._images.close()
