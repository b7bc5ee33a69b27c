"""Chunks through Ray Data: one result each, as many at a time as have finished meanwhile."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medv_ray import errors
from medv_ray.archive.chunks import Chunk
from medv_ray.disk import is_full
from medv_ray.errors import MedvError
from medv_ray.on_ray.actor import ScoreChunk, Work
from medv_ray.on_ray.cluster import STREAM, Lost, no_room
from medv_ray.on_ray.decode import DecodeChunk
from medv_ray.on_ray.preflight import DECODE_IN_FLIGHT, PoolSize
from medv_ray.on_ray.private_ray import set_window
from medv_ray.on_ray.source import ChunkSource
from medv_ray.on_ray.supervisor import Supervisor, death_limit

LOOK_S = 0.2
PATIENCE_S = 5.0  # with running chunks and with the supervisor, once the job has failed
LOST_S = 60.0
"""In which Ray Data meets a lost supervisor, or node, too."""


class Stream:
    """One pass over chunks: iterate over `run`."""

    def __init__(
        self, chunks: Sequence[Chunk], size: PoolSize, check: Callable[[], bool] = lambda: False
    ) -> None:
        """`check` is called several times a second: True asks for a stop; it raises when waiting is
        in vain."""
        self._chunks = chunks
        self._check = check
        self._size = size
        # not beside the actors, whose nodes come and go
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote(Supervisor)
        self.supervisor: Any = remote.options(num_cpus=0, scheduling_strategy=here).remote(
            death_limit(size.largest), death_limit(size.decoders)
        )
        self._out: dict[int, Chunk] = {}
        self._fed = 0
        self._pump = threading.Thread(daemon=True)
        self._error: str | None = None
        """The name of the exception with which Ray Data ended."""
        self._full = False
        self.stopped = False
        """No further chunk starts; those that run are finished and come out."""

    def run(self, work: Work) -> Iterator[list[tuple[Chunk, dict[str, Any]]]]:
        """Each chunk once with its result, those together that came in since the last ones were
        taken. Raises the error that an actor reported."""
        self._feed([])
        given = (self._dataset(work),)
        self._pump = threading.Thread(target=self._consume, args=given, name=STREAM, daemon=True)
        del given
        self._pump.start()
        while (texts := self._ask("results")) is not None:
            results = [json.loads(text) for text in texts]
            ended = [(self._out.pop(result["number"], None), result) for result in results]
            # without a chunk: two attempts at it ended
            yield [(chunk, result) for chunk, result in ended if chunk is not None]
            self._feed([result["number"] for result in results])
        self._pump.join()
        if self._error is not None:
            raise self._reported(self._error)

    def _consume(self, dataset: ray.data.Dataset) -> None:
        """Run the dataset to its end; its blocks hold nothing."""
        try:
            for _ in dataset.iter_batches(batch_size=None, prefetch_batches=0):
                pass
        except Exception as error:
            self._error, self._full = type(error).__name__, is_full(error)
        # actors end when the last reference to them does: not in the frames of a kept error, and
        # not in a cycle that waits for the next collection
        del dataset
        gc.collect()
        with suppress(Exception):  # the driver may have ended Ray
            self.supervisor.end.remote()

    def abandon(self) -> None:
        """Let the actors go, with what they have not finished soon."""
        with suppress(MedvError, ray.exceptions.RayError):
            self._check()
            self._stop()
            if self._pump.is_alive():
                self._pump.join(PATIENCE_S)

    def is_over(self) -> bool:
        """Whether Ray Data ends soon, and so nothing of this pass goes on beside the next one."""
        self._pump.join(LOST_S)
        return not self._pump.is_alive()

    def _stop(self) -> None:
        self.stopped = True
        self.supervisor.stop.remote()

    def report(self) -> dict[str, Any]:
        """What the supervisor counted."""
        report: dict[str, Any] = self._ask("report", PATIENCE_S)
        return report

    def _ask(self, method: str, patience_s: float = math.inf) -> Any:
        """The supervisor's answer. Raises Lost, E1512, when there is none."""
        deadline = time.monotonic() + patience_s
        try:
            reply = getattr(self.supervisor, method).remote()
            while True:
                if self._check() and not self.stopped:
                    self._stop()
                # Python sees signals only between waits
                if ray.wait([reply], timeout=LOOK_S)[0] or time.monotonic() > deadline:
                    return ray.get(reply, timeout=LOOK_S)
        except ray.exceptions.RayError as error:
            kind = type(error).__name__
            raise Lost("E1512", f"the job's supervisor is gone ({kind}).") from None

    def _feed(self, finished: list[int]) -> None:
        room = self._size.window - len(self._out)
        new = self._chunks[self._fed : self._fed + room]
        messages = []
        for number, chunk in enumerate(new, self._fed):
            self._out[number] = chunk
            messages.append(json.dumps({"number": number, "chunk": chunk.to_json()}))
        self._fed += len(new)
        self.supervisor.feed.remote(messages, finished, self._fed == len(self._chunks))

    def _dataset(self, work: Work) -> ray.data.Dataset:
        source = ChunkSource(self.supervisor, len(self._chunks))
        chunks = ray.data.read_datasource(source, num_cpus=0, override_num_blocks=1)
        context = chunks.context  # this dataset's own copy
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a row is a block
        set_window(context, self._size.window)
        context.print_on_execution_start = False
        pool, settings = self._size, work.settings.pool
        # a chunk is answered (or decoded) while another one is read or written; see ScoreChunk
        calls: dict[str, Any] = {
            "max_concurrent_calls_per_actor": 2,
            "enable_true_multi_threading": True,
        }
        if work.decoding is not None:
            chunks = chunks.map_batches(
                DecodeChunk,
                fn_constructor_args=(work.decoding,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                compute=ActorPoolStrategy(
                    size=pool.decoders,
                    max_tasks_in_flight_per_actor=DECODE_IN_FLIGHT,
                    **calls,
                ),
            )
        scored: ray.data.Dataset = chunks.map_batches(
            ScoreChunk,
            fn_constructor_args=(work,),
            batch_size=1,
            batch_format="numpy",
            num_cpus=settings.cpus,
            num_gpus=settings.num_gpus or None,
            compute=ActorPoolStrategy(
                min_size=pool.smallest,
                max_size=pool.largest,
                max_tasks_in_flight_per_actor=pool.in_flight,
                **calls,
            ),
        )
        return scored

    def _reported(self, error: str) -> MedvError:
        """The error that the job's own code reported, in place of Ray's wrapping of it."""
        try:
            fatal = self.report()["fatal"]
        except Exception:
            fatal = None
        if fatal is None and self._full:
            return no_room()
        if fatal is None:
            return Lost("E1512", f"Ray ended the job ({error}).")
        kind, code, detail = fatal
        found: MedvError = getattr(errors, kind)(code, detail)
        return found
