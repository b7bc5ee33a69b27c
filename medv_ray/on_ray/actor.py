"""The Ray Data actor around `ChunkScorer`: reports to the supervisor, keeps Ray's errors clean."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import ray

from medv_ray.archive.chunks import Chunk
from medv_ray.archive.pseudonyms import Pseudonyms
from medv_ray.archive.sources import Archive
from medv_ray.archive.store import Store
from medv_ray.errors import DataError, RunError
from medv_ray.on_ray.chunk import ChunkScorer, reasons_of
from medv_ray.on_ray.decode import Decoded, DecodeWork, unpack
from medv_ray.on_ray.options import ScoreSettings, model_digests
from medv_ray.on_ray.predictor import PREDICTOR, find, processor
from medv_ray.on_ray.supervisor import Orders
from medv_ray.on_ray.worker import Stopped, die_with_parent, guarded, obeyed


class Work:
    """What an actor is made of. No dataclass, and its repr holds nothing: Ray Data takes the fields
    of dataclasses, and the repr of the rest, into what it logs and exports of its operators."""

    def __init__(
        self,
        settings: ScoreSettings,
        archive: Archive,
        supervisor: Any,
        factory: str = PREDICTOR,
        digests: tuple[str, str | None] | None = None,
        pseudonyms: Pseudonyms | None = None,
        decoding: DecodeWork | None = None,
    ) -> None:
        """`factory`: `module:function` from ScoreSettings to a predictor; tests put their own here.
        `digests`: of model and adapter, which the run is named after; the folders of every node
        must have them. None: not compared. `pseudonyms`: what rows are written under; None: their
        own ids. `decoding`: of the actors in front of it, if there are any."""
        self.settings = settings
        self.archive = archive
        self.supervisor = supervisor
        self.factory = factory
        self.digests = digests
        self.pseudonyms = pseudonyms
        self.decoding = decoding


class ScoreChunk:
    """Batch in: one chunk as JSON, and its rows where they were read and decoded before. Out:
    nothing; the supervisor gets the result.

    Ray calls from two threads, so that one chunk is read or written while another one is answered.
    A worker that took the place of a dead one handles one chunk at a time, so that the supervisor
    sees on which chunk it dies, whatever it does with it.
    """

    def __init__(self, work: Work) -> None:
        self._supervisor = work.supervisor
        context = ray.get_runtime_context()
        self._me = str(context.get_actor_id())
        self._turn = threading.Lock() if context.was_current_actor_reconstructed else nullcontext()
        # file cursors belong to a thread, and so do torch's settings
        self._reading = ThreadPoolExecutor(1)
        self._answering = ThreadPoolExecutor(1)
        die_with_parent()
        self._scorer: ChunkScorer = guarded(self._supervisor, self._load, work)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        text = str(batch["chunk"][0])
        if text:  # a source that was run again has nothing for a finished chunk
            message = json.loads(text)
            chunk = Chunk.from_json(message["chunk"])
            data = batch["decoded"][0] if "decoded" in batch else None
            guarded(self._supervisor, self._handle, message["number"], chunk, data)
        return {"done": [1]}

    def _load(self, work: Work) -> ChunkScorer:
        why = ray.get(self._supervisor.born.remote(self._me))
        if why:
            raise RunError("E1508", why)
        settings, store = work.settings, Store(work.settings.out)
        if work.digests is not None and model_digests(settings.model) != work.digests:
            raise RunError("E1502", "a worker's node has another model under the same path.")
        self._processor = processor(settings.device)
        make = find(work.factory)
        scorer = self._answering.submit(
            ChunkScorer,
            work.archive,
            store,
            settings.answer,
            lambda: make(settings),
            work.pseudonyms,
            settings.template,
        ).result()
        self._supervisor.ready.remote(self._me)
        return scorer

    def _handle(self, number: int, chunk: Chunk, data: bytes | None) -> None:
        result: dict[str, Any] = {"number": number}
        with self._turn:
            try:
                orders = None if isinstance(self._turn, nullcontext) else self._ask(chunk)
                decoded = self._reading.submit(self._read, chunk, data).result()
                records, counters = self._answering.submit(
                    self._answer, chunk, decoded, orders
                ).result()
                part = self._scorer.write(chunk, records)
                result |= {
                    "part": part.to_json(),
                    "reasons": reasons_of(records),
                    "counters": counters,
                    "processor": self._processor,
                }
            except Stopped:
                return
            except DataError as error:
                result["skip"] = [error.code, error.detail]
            # waits, so that a worker that dies at once has said so
            ray.get(self._supervisor.done.remote(chunk.source_key, json.dumps(result)))

    def _ask(self, chunk: Chunk) -> Orders:
        """Tell that the chunk is tried now. Raises Stopped, or DataError for a hopeless chunk."""
        return obeyed(ray.get(self._supervisor.start.remote(chunk.source_key)))

    def _read(self, chunk: Chunk, data: bytes | None) -> Decoded:
        """The chunk's rows. Raises DataError when its input was not there."""
        decoded = Decoded(self._scorer.read(chunk)) if data is None else unpack(data)
        if decoded.skip is not None:
            raise decoded.skip
        return decoded

    def _answer(
        self, chunk: Chunk, decoded: Decoded, orders: Orders | None
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        orders = orders or self._ask(chunk)

        def announce(row: int | None) -> None:
            ray.get(self._supervisor.row.remote(chunk.source_key, row))

        records = self._scorer.answer(
            decoded.rows, orders.crashed, announce if orders.announce else None
        )
        counters = Counter(self._scorer.take_counters())
        counters["decodes"] += decoded.decodes
        return records, dict(counters)
