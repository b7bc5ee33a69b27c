"""The Ray Data actor around `ChunkScorer`: reports to the supervisor, keeps Ray's errors clean."""

from __future__ import annotations

import ctypes
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from medv_ray.archive.chunks import Chunk
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Store
from medv_ray.errors import DataError, MedvError, RunError
from medv_ray.on_ray.chunk import PREDICTOR, ChunkScorer, find
from medv_ray.on_ray.options import ScoreSettings

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, repr=False)
class Work:
    """What an actor is made of. Its repr holds nothing: Ray Data writes it into its own logs."""

    settings: ScoreSettings
    archive: Archive
    supervisor: Any
    factory: str = PREDICTOR
    """`module:function` from ScoreSettings to a predictor; tests put their own here."""


def die_with_parent() -> None:
    """Have the kernel end this process when its raylet ends.

    Ray's own workers notice it a second later; until then they go on with work whose driver may be
    dead and whose rows the next run tries too.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class ScoreChunk:
    """Batch in: one chunk as JSON. Out: nothing; the supervisor gets the result."""

    def __init__(self, work: Work) -> None:
        die_with_parent()
        self._supervisor = work.supervisor
        self._me = str(ray.get_runtime_context().get_actor_id())
        # Ray Data calls from changing threads; cursors and torch's settings belong to one
        self._thread = ThreadPoolExecutor(1)
        self._scorer: ChunkScorer = self._guarded(self._load, work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        text = str(batch["chunk"][0])
        if text:  # a source that was run again has nothing for a finished chunk
            self._guarded(self._score, json.loads(text))
        return {"done": [1]}

    def _load(self, work: Work) -> ChunkScorer:
        told = ray.get(self._supervisor.born.remote(self._me))
        if told:
            raise RunError("E1508", told)
        settings = work.settings
        make = find(work.factory)
        store = Store(settings.out)
        scorer = ChunkScorer(work.archive, store, settings.answer, lambda: make(settings))
        self._supervisor.ready.remote(self._me)
        return scorer

    def _score(self, message: dict[str, Any]) -> None:
        number, chunk = message["number"], Chunk.from_json(message["chunk"])
        orders = ray.get(self._supervisor.start.remote(chunk.place))
        if orders.skip == "stop":
            return
        result: dict[str, Any] = {"number": number}
        announce = self._announce(chunk.place) if orders.announce else None
        try:
            if orders.skip == "lost":
                raise DataError("E1508", "workers died on a chunk of it; no row is to blame.")
            part, reasons = self._scorer.score(chunk, orders.crashed, announce)
            result |= {"part": part.to_json(), "reasons": reasons}
        except DataError as error:
            result["skip"] = [error.code, error.detail]
        result["counters"] = self._scorer.take_counters()
        # waits, so that a worker that dies at once has told it
        ray.get(self._supervisor.done.remote(chunk.place, json.dumps(result)))

    def _announce(self, place: str) -> Callable[[int | None], None]:
        return lambda row: ray.get(self._supervisor.row.remote(place, row))

    def _guarded(self, call: Callable[..., Any], *given: Any) -> Any:
        """Run in the actor's own thread; report what ends the job, and show Ray nothing of it."""
        try:
            return self._thread.submit(call, *given).result()
        except MedvError as error:
            told = error
        except Exception as error:
            told = RunError("E1509", f"{type(error).__name__} in a worker.")
        report = (type(told).__name__, told.code, told.detail)
        ray.get(self._supervisor.fail.remote(*report))
        raise RunError(told.code, "the job's driver says more.") from None
