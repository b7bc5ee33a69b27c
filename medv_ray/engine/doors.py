"""Which door a request gets, and how many bytes of keys and values there is room for."""

from __future__ import annotations

import torch
from torch import Tensor

from medv_ray.diffusion.spec import SampleSpec
from medv_ray.model.cache import Cached, PromptStore
from medv_ray.model.denoise import FullRecompute, Prompt
from medv_ray.model.medv import Medv
from medv_ray.settings import EngineSettings, SamplerSettings

CPU_BYTES = 4 * 2**30


def default_budget(model: Medv) -> int:
    """Bytes of keys and values where settings say nothing."""
    on_cpu = model.device.type == "cpu"
    return CPU_BYTES if on_cpu else torch.cuda.mem_get_info(model.device)[0] // 2


class Doors:
    """Makes the doors of one model, inside a budget of keys and values.

    The beginnings of prompts that are kept for later requests give way to the keys and values of
    requests that are being denoised.
    """

    def __init__(self, model: Medv, engine: EngineSettings) -> None:
        self._model = model
        budget = engine.kv_cache_bytes
        self.budget_bytes = budget = default_budget(model) if budget is None else budget
        self._store = PromptStore(budget)

    def make(
        self, prompt: Prompt | Tensor, settings: SamplerSettings, spec: SampleSpec
    ) -> FullRecompute:
        """The door for one request: a Prompt that cuts attention, or the embeddings of another.

        What lies before the last cut is kept in any case.
        """
        if settings.cache == "none" and isinstance(prompt, Tensor):
            return FullRecompute(self._model, [prompt], spec.suffix_ids)
        return Cached(
            self._model,
            [prompt],
            spec.suffix_ids,
            kind="prefix" if settings.cache == "none" else settings.cache,
            block_length=spec.block_length,
            refresh_interval=1 if settings.cache == "none" else settings.refresh_interval,
            store=self._store,
        )

    def room(self, wanted_bytes: int, taken_bytes: int) -> bool:
        """Whether so many bytes of keys and values fit beside those of other requests; alone they
        always do."""
        if wanted_bytes and taken_bytes and taken_bytes + wanted_bytes > self.budget_bytes:
            return False
        self._store.shrink(max(0, self.budget_bytes - taken_bytes - wanted_bytes))
        return True

    def clear(self) -> None:
        """Drop the beginnings of prompts that are kept."""
        self._store.shrink(0)
        self._store.shrink(self.budget_bytes)

    def told(self) -> tuple[int, int]:
        """How often the beginning of a prompt was there already, and how often one was dropped."""
        return self._store.hits, self._store.evictions
