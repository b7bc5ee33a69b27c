r"""Requests to an object store for a chunk: reading its rows, its part, its commit, its merge.

    python benchmarks/count_requests.py

An archive of parquet shards (100 rows a row group, 100 kB a picture) and its run folder lie on
moto's S3 server; what pyarrow asks of it is counted, step by step, over all chunks. One JSON line.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from medv_ray.archive.lock import Lock
from medv_ray.archive.plan import plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive

SHARDS, SHARD_ROWS, GROUP_ROWS, PICTURE_BYTES = 2, 400, 100, 100_000
TOGETHER = 8
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *said: object) -> None:
        pass


class Counted:
    """An S3 server that counts."""

    def __init__(self) -> None:
        self._app = create_backend_app("s3")
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ.update({**VARIABLES, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"})
        boto3.client("s3").create_bucket(Bucket="bucket")

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        listing = "list-type" in environ.get("QUERY_STRING", "")
        with self._lock:
            self.seen["LIST" if listing else environ["REQUEST_METHOD"]] += 1
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    def take(self, chunks: int) -> dict[str, float]:
        """Requests a chunk since the last call."""
        found = {name: round(count / chunks, 3) for name, count in sorted(self.seen.items())}
        self.seen.clear()
        return found


def write_archive() -> None:
    client = boto3.client("s3")
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        held = pa.array([random.bytes(PICTURE_BYTES) for _ in range(SHARD_ROWS)], pa.binary())
        names = pa.nulls(SHARD_ROWS, pa.string())
        columns = {
            "id": [f"study-{shard}-{row}" for row in range(SHARD_ROWS)],
            "image": pa.StructArray.from_arrays([held, names], ["bytes", "path"]),
            "question": ["is it seen?"] * SHARD_ROWS,
            "answer": ["yes"] * SHARD_ROWS,
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, row_group_size=GROUP_ROWS)
        data = sink.getvalue().to_pybytes()
        client.put_object(Bucket="bucket", Key=f"archive/{shard}.parquet", Body=data)


def main() -> None:
    server = Counted()
    write_archive()
    server.seen.clear()
    archive = open_archive(ArchiveSettings(archive="s3://bucket/archive"))
    planned = plan(archive, "settings")
    chunks = len(planned.chunks)
    line: dict[str, Any] = {"bench": "requests", "pyarrow": pa.__version__, "chunks": chunks}
    line["plan"] = server.take(SHARDS)
    with (
        mock.patch.object(Lock, "_beat"),  # a heartbeat every 10 s is not a chunk's
        Run.open("s3://bucket/run", planned, {}) as run,
    ):
        todo = run.todo()
        server.seen.clear()
        read = [read_rows(planned.archive, chunk) for chunk in todo]
        line["read"] = server.take(chunks)
        made = []
        for chunk, found in zip(todo, read, strict=True):
            records = [
                {"id": row.id, "row": row.row, "answer": "yes", "status": "answered"}
                for row in found
            ]
            made.append(write_part(run.store, chunk, records))
        line["write"] = server.take(chunks)
        half = chunks // 2
        for part in made[:half]:
            run.commit(part)
        line["commit_alone"] = server.take(half)
        for first in range(half, chunks, TOGETHER):
            run.commit_all(made[first : first + TOGETHER])
        line["commit_together"] = server.take(chunks - half)
        run.finish()
        line["finish"] = server.take(chunks)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
