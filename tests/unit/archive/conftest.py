"""Small archives and a job without a model: rows are answered by their own id."""

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medv_ray.archive.plan import plan
from medv_ray.archive.prior import Prior
from medv_ray.archive.reading import read_rows
from medv_ray.archive.rows import quarantine_record, read_run, write_part
from medv_ray.archive.run import Run
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.sources import open_archive

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IDENTITY = {"settings": {"sampler": {"steps": 64, "gen_length": 64}}, "model": "sha256:abc"}


class Make:
    """Builders of archives in a folder, and the shortest possible scoring job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archive = root / "archive"
        self.archive.mkdir()

    def parquet(self, name: str = "a.parquet", rows: int = 10, **columns) -> Path:
        group = columns.pop("row_group_size", 1000)
        table = {
            "image": pa.array(
                [{"bytes": b"img%d" % (r // 3), "path": None} for r in range(rows)], IMAGE
            ),
            "question": [f"what is {name} {r}?" for r in range(rows)],
            "answer": ["yes"] * rows,
            **columns,
        }
        table = {name: column for name, column in table.items() if column is not None}
        path = self.archive / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path, row_group_size=group, write_page_checksum=True)
        return path

    def text(self, name: str, content: str | bytes) -> Path:
        path = self.archive / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def tar(self, members: list[tuple[str, bytes, dict]], name: str = "a.tar") -> Path:
        path = self.archive / name
        with tarfile.open(path, "w") as tar:
            for member, data, fields in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                for field, value in fields.items():
                    setattr(info, field, value)
                tar.addfile(info, io.BytesIO(data))
        return path

    def plan(self, digest: str = "settings", out=None, **settings):
        """Of a run that begins, or of the one in `out`."""
        settings.setdefault("archive", str(self.archive))
        settings.setdefault("chunk_rows", 4)
        prior = Prior() if out is None else Prior.read(str(out))
        archive = open_archive(ArchiveSettings(**settings), prior.images)
        return plan(archive, digest, prior)

    @staticmethod
    def rows(planned) -> list:
        return [row for chunk in planned.chunks for row in read_rows(planned.archive, chunk)]

    @staticmethod
    def records(planned, chunk) -> list[dict]:
        records = []
        for row in read_rows(planned.archive, chunk):
            if row.error is not None:
                records.append(quarantine_record(row, row.error))
                continue
            answer = f"answer to {row.id}"
            record = {"id": row.id, "row": row.row, "question": row.question, "answer": answer}
            record["frame"] = row.frame
            records.append({**record, "status": "answered"})
        return records

    def job(self, planned, out, identity=IDENTITY, stop_after=None, **options):
        """Score until done, or stop without ceremony after so many commits."""
        with Run.open(str(out), planned, identity, **options) as run:
            for done, chunk in enumerate(run.todo()):
                if done == stop_after:
                    return None
                run.commit(write_part(run.store, chunk, self.records(planned, chunk)))
            return run.finish()


def ids_of(out) -> list[str]:
    return sorted(i for table in read_run(str(out)) for i in table.column("id").to_pylist())


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return Make(tmp_path)


@pytest.fixture
def committed_ids():
    """Ids of all committed rows of a run, sorted."""
    return ids_of


@pytest.fixture
def vqa_rad() -> Path:
    """The real VQA-RAD files."""
    path = Path(__file__).parents[4] / "shared" / "data" / "vqa_rad"
    if not path.is_dir():
        pytest.skip("the real VQA-RAD files are not beside the clone")
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A local S3 server with the bucket `bucket`; its address.

    Moto's S3 alone: its server of all services takes a third longer to find each request's own.
    """
    app = pytest.importorskip("moto.server").create_backend_app("s3")
    serving = pytest.importorskip("werkzeug.serving")

    class Quiet(serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # a connection takes many requests

        def log(self, *said: object) -> None:
            pass

    server = serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, port = server.host, server.port
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    values = (f"http://{host}:{port}", "testing", "testing", "us-east-1")
    os.environ.update(dict(zip(names, values, strict=True)))
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield f"{host}:{port}"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.shutdown()
    thread.join()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def out(request, tmp_path: Path) -> str:
    """An output folder that does not exist yet, on each kind of store."""
    if request.param == "local":
        return str(tmp_path / "run")
    request.getfixturevalue("s3_server")
    return f"s3://bucket/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"
