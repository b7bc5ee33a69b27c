"""A predictor for the length of a job: made as the settings say, and made again when it raises."""

from __future__ import annotations

import gc
import importlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from medv_kernels import cpu
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.errors import DataError, MedvError, RunError, is_out_of_memory
from medv_ray.on_ray.options import ScoreSettings

CRASH_CODE = 70  # EX_SOFTWARE
PREDICTOR = "medv_ray.on_ray.answerer:load_predictor"
FIRST_ROWS = 8
"""Rows out of memory before any was answered: then it is no matter of single rows, and each has
cost two more loads of the model."""


class Answerer(Protocol):
    """What a chunk needs of a Predictor."""

    @property
    def counters(self) -> Any:
        """An object of whole-number fields."""

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """One answer or error a request."""

    def close(self) -> None:
        """Let go of everything."""


def load_predictor(settings: ScoreSettings) -> Answerer:
    """The predictor of a real job, on as many torch threads as an actor has cores."""
    if settings.pool.cpus >= 1:
        torch.set_num_threads(int(settings.pool.cpus))
    model = settings.model.model_copy(update={"device": settings.device})
    return Predictor.load(model, settings.answer, settings.engine)


def find(path: str) -> Callable[[ScoreSettings], Answerer]:
    """The function that a `module:function` path names."""
    module, _, name = path.partition(":")
    found: Callable[[ScoreSettings], Answerer] = getattr(importlib.import_module(module), name)
    return found


def processor(device: str) -> str:
    """What kernels are chosen by: the kind of GPU; the CPU's library, instruction set, vendor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {cpu.choice()}"


class Failed(NamedTuple):
    """What a call of the predictor raised, without the frames that hold its tensors."""

    kind: str
    out_of_memory: bool


class Renewed:
    """The predictor that `make` makes. One that raised may hold half-done rows: it is replaced."""

    def __init__(self, make: Callable[[], Answerer]) -> None:
        self._make = make
        self._predictor = self._load()
        self._counted: Counter[str] = Counter()  # at the last look
        self._new: Counter[str] = Counter()
        self._works = False  # has answered a row
        self._short_rows = 0  # out of memory

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError] | Failed:
        """All requests in one call. Raises errors that no other row would escape."""
        try:
            ended = self._predictor.answer(requests)
        except Exception as error:
            raise_if_fatal(error)
            failed = Failed(type(error).__name__, is_out_of_memory(error))
        else:
            self._works |= any(isinstance(one, Answer) for one in ended)
            return ended
        # not in the handler: until it is left, the error's frames hold the model
        self._renew()
        return failed

    def answer_alone(self, request: Request) -> Answer | DataError:
        """One request. Raises RunError E1508 when memory is short whatever the row."""
        ended = self.answer([request])
        if isinstance(ended, Failed) and ended.out_of_memory:
            ended = self.answer([request])  # what earlier rows had left in memory is gone now
        if not isinstance(ended, Failed):
            return ended[0]
        if not ended.out_of_memory:
            return DataError("E1509", f"{ended.kind} in one row.")
        self._short_rows += 1
        if self._short_rows == FIRST_ROWS and not self._works:
            told = f"the first {FIRST_ROWS} rows of a worker all ran out of memory, each alone."
            raise RunError("E1508", told)
        return DataError("E1306", f"{ended.kind}: the row alone takes more memory than there is.")

    def take_counters(self) -> Counter[str]:
        """What the predictors did since the last call."""
        self._count()
        new, self._new = self._new, Counter()
        return new

    def close(self) -> None:
        """End the image decoder's processes."""
        self._predictor.close()

    def _count(self) -> None:
        now = Counter(vars(self._predictor.counters))
        for name, count in now.items():
            self._new[name] += count - self._counted[name]
        self._counted = now

    def _renew(self) -> None:
        self._count()
        self._predictor.close()
        del self._predictor  # before the next one is made: there is seldom room for two
        gc.collect()
        torch.cuda.empty_cache()
        self._predictor = self._load()
        self._counted = Counter()

    def _load(self) -> Answerer:
        try:
            return self._make()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = f"a worker ran out of memory ({type(error).__name__}) while it loaded the model."
            raise RunError("E1508", told) from None


def raise_if_fatal(error: Exception) -> None:
    """Errors that no other row would escape: end the job, or the process where only that helps."""
    if isinstance(error, MedvError) and not isinstance(error, DataError):
        raise error
    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
        os._exit(CRASH_CODE)  # the CUDA context is lost; a new process gets a new one
