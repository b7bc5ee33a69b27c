"""Feeds chunks into Ray Data one block at a time: a chunk is a block, a block is a task, and its
result reaches the driver as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


class ChunkSource(Datasource):
    """One read task that asks the supervisor for chunks until there are no more.

    Ray Data holds blocks back by their bytes, never by their number: millions of chunks of 300
    bytes would all become objects at once. So the driver feeds the supervisor a window at a time.
    """

    def __init__(self, supervisor: Any, num_chunks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._supervisor = supervisor
        self._num_chunks = num_chunks

    def get_name(self) -> str:
        """The name of the stage."""
        return "Chunks"

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known, and of no weight."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        """One task, whatever `parallelism` asks for."""
        supervisor = self._supervisor

        def read() -> Iterator[pa.Table]:
            number = 0
            while (chunks := ray.get(supervisor.take.remote(number))) is not None:
                for chunk in chunks:
                    yield pa.table({"chunk": [chunk]})
                number += len(chunks)

        metadata = BlockMetadata(
            num_rows=self._num_chunks, size_bytes=None, exec_stats=None, input_files=None
        )
        return [ReadTask(read, metadata)]
