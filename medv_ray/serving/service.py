"""What an endpoint holds: models, the thread that steps them, settings, counters."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from medv_ray.canvases import TileSettings
from medv_ray.data.images import Prepared
from medv_ray.data.viewing import Viewed, Viewer
from medv_ray.engine.engine import Engine
from medv_ray.engine.inspection import Inspection
from medv_ray.engine.predictor import load_model
from medv_ray.engine.request import Answer, Request, View
from medv_ray.engine.running import default_budget
from medv_ray.errors import MedvError, RunError, SettingsError
from medv_ray.hub import here
from medv_ray.model import lora, weights
from medv_ray.model.config import no_vision
from medv_ray.serving.completions import Texts
from medv_ray.serving.meters import Meters
from medv_ray.serving.options import ServeSettings
from medv_ray.serving.protocol import BadRequest
from medv_ray.serving.scheduler import Event, Job, Scheduler, sink_to
from medv_ray.serving.traces import current
from medv_ray.settings import SamplerSettings


class Service:
    """Answers requests of many clients at the same time."""

    def __init__(
        self,
        settings: ServeSettings,
        engines: Mapping[str, Engine],
        meters: Meters | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        """`engines`: by the name that clients call them. `on_failure`: see Scheduler."""
        self.settings = settings
        self.meters = meters or Meters()
        self.texts = {name: texts_of(engine) for name, engine in engines.items()}
        self.created = {name: _created(settings, name) for name in engines}
        """When the folder of each model or adapter was written, in seconds since 1970."""
        self.scheduler = Scheduler(engines, on_failure)
        self._engines = dict(engines)  # for what any thread may call
        self._viewers: dict[TileSettings, Viewer] = {}
        self._opening = threading.Lock()
        slots = max(engine.slots for engine in engines.values())
        self.in_flight = settings.batch.in_flight or slots + 1
        """Answers beside which no line of a batch starts."""
        self.beside: list[Callable[[], None]] = []
        """Ends what works beside the scheduler; called before it is closed."""

    @classmethod
    def load(
        cls,
        settings: ServeSettings,
        meters: Meters | None = None,
        on_failure: Callable[[], None] | None = None,
    ) -> Service:
        """From checkpoint folders. Raises CheckpointError, SettingsError."""
        return cls(settings, load_engines(settings), meters, on_failure)

    def model(self, name: str) -> Texts:
        """How a model's tokens read. Raises BadRequest E1706 when there is none of that name."""
        found = self.texts.get(name)
        if found is None:
            known = ", ".join(self.texts)
            raise BadRequest("E1706", f"there is no such model here; there are: {known}.", "model")
        return found

    def decode(self, model: str, data: bytes, several: bool) -> bytes | Prepared:
        """See `Engine.decode`."""
        found = self._engines[model].decode(data, several)
        return data if found is data else cast("Prepared", found)

    def tiles(self, model: str) -> TileSettings:
        """How the model's pictures are cut. Raises CheckpointError E1410 where it sees none."""
        tiles = self._engines[model].tiles
        if tiles is None:
            raise no_vision()
        return tiles

    def view(self, model: str, data: bytes, frame: int | None) -> Viewed:
        """See `Viewer.view`. Any thread may call it."""
        tiles = self.tiles(model)
        with self._opening:
            viewer = self._viewers.setdefault(tiles, Viewer(self.settings.image, tiles))
        return viewer.view(data, frame)

    async def inspect(
        self, model: str, request: Request, ids: Sequence[int | None], position: int
    ) -> Inspection:
        """See `Engine.inspect`; between two steps. Raises MedvError."""
        work = partial(Engine.inspect, request=request, ids=ids, position=position)
        seconds = self.settings.limits.request_seconds
        try:
            future = self.scheduler.call(model, work)
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            raise RunError("E1708", f"no answer within {seconds:g} s.") from None
        except asyncio.CancelledError:
            if not self.scheduler.is_over:
                raise
            raise self.scheduler.over() from None

    @asynccontextmanager
    async def asked(
        self, model: str, requests: list[Request], watched: bool, started_s: float
    ) -> AsyncIterator[AsyncIterator[tuple[int, View | Answer]]]:
        """Events of some requests, each with the request's number, until each has its answer.

        Leaving cancels those that have none. Raises what a request ended with, and RunError E1708
        when `limits.request_seconds` from `started_s`, a monotonic time, are over.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        jobs: list[Job] = []
        for number, request in enumerate(requests):
            put = partial(_put, events, number)
            jobs.append(self.scheduler.submit(model, request, sink_to(loop, put), watched))
        try:
            deadline = started_s + self.settings.limits.request_seconds
            yield self._events(events, len(requests), deadline)
        finally:
            for job in jobs:
                self.scheduler.cancel(job)

    async def _events(
        self, events: asyncio.Queue[tuple[int, Event]], left: int, deadline: float
    ) -> AsyncIterator[tuple[int, View | Answer]]:
        while left:
            try:
                # no wait_for: before Python 3.12 it forgets that its client left if an event comes
                # at that moment
                async with asyncio.timeout(deadline - time.monotonic()):
                    number, event = await events.get()
            except TimeoutError:
                seconds = self.settings.limits.request_seconds
                raise RunError("E1708", f"no answer within {seconds:g} s.") from None
            if isinstance(event, MedvError):
                raise event
            if isinstance(event, Answer):
                left -= 1
                self._count(event)
                if (trace := current()) is not None:
                    trace.answered(number, event)
            yield number, event

    def _count(self, answer: Answer) -> None:
        add = self.meters.add
        add("medv_queue_seconds", answer.waited_s)
        add("medv_vision_seconds", answer.vision_s)
        add("medv_denoise_seconds", max(0.0, answer.seconds - answer.vision_s))
        add("medv_answer_tokens", len(answer.token_ids))
        add("medv_prompt_tokens", answer.prompt_tokens)
        add("medv_steps", answer.forward_passes)

    def sample(self) -> None:
        """Take over what changes without a request's end."""
        self.meters.add("medv_ongoing", self.scheduler.ongoing)
        self.meters.follow(self.scheduler.counters())

    def health(self) -> str | None:
        """What is wrong; None when nothing is."""
        if self.scheduler.failed is not None:
            return f"the scheduler's thread ended ({self.scheduler.failed})"
        stuck_s, limit_s = self.scheduler.stuck_s(), self.settings.limits.stuck_seconds
        if stuck_s > limit_s:
            return f"one denoising step has taken {stuck_s:.0f} s; the limit is {limit_s:g} s"
        return None

    @property
    def is_over(self) -> bool:
        """Whether nothing can be answered here any more."""
        return self.scheduler.is_over

    def close(self) -> None:
        """End the scheduler's thread, and processes."""
        for end in self.beside:
            end()
        self.scheduler.close()
        for viewer in self._viewers.values():
            viewer.close()


def load_engines(settings: ServeSettings) -> dict[str, Engine]:
    """An engine for the model and one for each adapter, by the names that clients call them.

    The model's weights are held once. All engines together stay within `engine.kv_cache_bytes` and
    `engine.image_cache_bytes`. Raises CheckpointError, SettingsError.
    """
    model, tokenizer = load_model(settings.model)
    models = {settings.served_name: model}
    if settings.adapters:
        digest = weights.digest(here(settings.model.path))
        for name, folder in settings.adapters.items():
            models[name] = lora.sharing_copy(model)
            lora.load_adapter(models[name], here(folder), digest)
    share = settings.engine
    if len(models) > 1:
        whole = share.kv_cache_bytes or default_budget(model)
        shares = {"kv_cache_bytes": whole, "image_cache_bytes": share.image_cache_bytes}
        share = share.model_copy(update={name: n // len(models) for name, n in shares.items()})
    return {name: Engine(one, tokenizer, settings.answer, share) for name, one in models.items()}


def _created(settings: ServeSettings, name: str) -> int:
    folder = settings.adapters.get(name)
    file = "config.json" if folder is None else "adapter_config.json"
    try:
        return int(os.stat(os.path.join(folder or settings.model.path, file)).st_mtime)
    except OSError:
        return 0


def _put(events: asyncio.Queue[tuple[int, Event]], number: int, event: Event) -> None:
    events.put_nowait((number, event))


def texts_of(engine: Engine) -> Texts:
    """How ids of an engine's answers read."""

    def stops(sampler: SamplerSettings) -> tuple[tuple[int, ...], ...]:
        try:
            return engine.spec(sampler).stop_ids
        except SettingsError as error:  # its words hold the name
            rule = "diffusion: forbidden names no special token of this model, or stop is empty."
            raise BadRequest(error.code, rule, "diffusion") from None

    return Texts(engine.text, engine.token_text, stops, engine.placed)


def models_list(service: Service) -> dict[str, Any]:
    """The body of /v1/models."""
    return {"object": "list", "data": [model_object(service, name) for name in service.texts]}


def model_object(service: Service, name: str) -> dict[str, Any]:
    """The body of /v1/models/NAME. Raises BadRequest E1706 when there is none of that name."""
    service.model(name)
    settings = service.settings
    limits = settings.limits.model_dump(
        include={"max_images", "max_body_bytes", "max_gen_length", "max_steps", "max_n"}
    )
    ours = {
        "sampler": settings.sampler.model_dump(mode="json"),
        "limits": limits,
        "presets": ["exact", "fast", "turbo"],
    }
    created = service.created[name]
    return {"id": name, "object": "model", "created": created, "owned_by": "medv_ray", "medv": ours}
