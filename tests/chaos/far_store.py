"""A scoring job without Ray and its S3 server, in one process: `... FOLDER ROWS`.

For `fault_runs`, which starts it in a network of its own. One JSON line: rows, seconds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from medv_ray.archive.plan import plan
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive
from tests.integration import stub


def serve() -> None:
    """S3 on the loopback device, as long as this process lives."""
    import boto3
    from moto.server import create_backend_app
    from werkzeug import serving

    class Quiet(serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *said: object) -> None:
            pass

    app: Any = create_backend_app("s3")
    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    values = (f"http://127.0.0.1:{server.port}", "testing", "testing", "us-east-1")
    os.environ.update(dict(zip(names, values, strict=True)))
    boto3.client("s3").create_bucket(Bucket="bucket")


def main() -> None:
    folder, num_rows = Path(sys.argv[1]), int(sys.argv[2])
    stub.write_archive(folder / "in.parquet", [f"row {row}" for row in range(num_rows)])
    serve()
    archive = open_archive(ArchiveSettings(archive=str(folder / "in.parquet"), chunk_rows=6))
    planned, out, began = plan(archive, "digest"), "s3://bucket/run", time.monotonic()
    for stop_after in (1, None):  # the second start goes on
        with Run.open(out, planned, {}) as run:
            for done, chunk in enumerate(run.todo()):
                if done == stop_after:
                    break
                found = read_rows(planned.archive, chunk)
                records = [{"id": row.id, "row": row.row, "status": "answered"} for row in found]
                run.commit(write_part(run.store, chunk, records))
            else:
                run.finish()
    seconds = time.monotonic() - began
    ids = [one for table in read_run(out) for one in table.column("id").to_pylist()]
    said = {"rows": len(ids), "distinct": len(set(ids)), "job_s": round(seconds, 1)}
    print(json.dumps({**said, "round_trip_ms": 400, "loss": "5 %"}))


if __name__ == "__main__":
    main()
