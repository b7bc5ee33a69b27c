"""A predictor that does what its questions say, and an archive to ask them of.

Question words: `sleep:0.04` seconds, `abort`, `segfault`, `killed` (SIGKILL, as when the kernel has
no memory left), `limit` (more memory than RLIMIT_AS lets it have), `raise`, `memory`, `fatal`,
`bad` (a DataError), `move:FILE` to FILE.moved. A calm stub leaves out what stands with `:once`.
"""

import ctypes
import errno
import hashlib
import io
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medv_ray.data.images import Refused
from medv_ray.engine import Answer, Request
from medv_ray.errors import CheckpointError, DataError, RunError
from medv_ray.on_ray.options import ScoreSettings
from medv_ray.settings import TOY

STUB = "tests.integration.stub:load"
ATTEMPTS = "MEDV_TEST_ATTEMPTS"
"""Names a folder in which each process notes the last word of every question that it tries."""


class Stub:
    def __init__(self, calm: bool = False) -> None:
        self._calm = calm
        self.counters = SimpleNamespace(decodes=0, tower_runs=0, answers=0)
        self._seen: set[str] = set()

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Answer | DataError:
        if ATTEMPTS in os.environ:
            with open(f"{os.environ[ATTEMPTS]}/{os.getpid()}", "a") as file:
                file.write(request.question.split()[-1] + "\n")
        for word in request.question.split():
            name, _, value = word.partition(":")
            if self._calm and value == "once":
                continue
            if name == "sleep":
                time.sleep(float(value))
            elif name == "abort":
                os.abort()
            elif name == "segfault":
                ctypes.string_at(0)
            elif name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif name == "limit":
                ask_for_too_much()
            elif name == "raise":
                raise ValueError(f"the question is {request.question}")
            elif name == "memory":
                raise MemoryError
            elif name == "fatal":
                raise RunError("E1508", "nothing works.")
            elif name == "move":
                Path(value).rename(Path(value).with_suffix(".moved"))
            elif name == "bad":
                return DataError("E1303", "too long.")
        refused = [image.error for image in request.images if isinstance(image, Refused)]
        if refused:
            return refused[0]
        sha256 = tuple(
            hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else image.sha256
            for image in request.images
        )
        new = set(sha256) - self._seen
        self._seen |= new
        self.counters.decodes += len(new)
        self.counters.tower_runs += len(new)
        self.counters.answers += 1
        return Answer(
            text=f"yes {request.seed % 97}", token_ids=(1, 2), token_confidence=(0.5, 0.75),
            token_step=(0, 1), forward_passes=2, seconds=0.0, finish="stop", image_sha256=sha256,
        )  # fmt: skip

    def close(self) -> None:
        pass


def ask_for_too_much() -> None:
    """Ask for memory, piece by piece, until the kernel has no more for this process."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    pieces = []
    try:
        while True:
            pieces.append(bytearray(2**24))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def load(settings: ScoreSettings) -> Stub:
    return Stub()


def load_calm(settings: ScoreSettings) -> Stub:
    return Stub(calm=True)


def load_on_a_full_disk(settings: ScoreSettings) -> Stub:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    os.fsync = full
    return Stub()


def load_dying(settings: ScoreSettings) -> Stub:
    """Loading the weights ends the process."""
    os.abort()


def load_broken(settings: ScoreSettings) -> Stub:
    raise CheckpointError("E1402", "no tensor 'lm_head.weight'.")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number % 256, number // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_archive(
    path: Path, questions: Sequence[str], per_image: int = 4, first_row: int = 0, name: str = ""
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{first_row + number:05d}" if not name else f"{name}id{number}",
            "image": {
                "bytes": png(number // per_image),
                "path": f"{name}image{number // per_image}.png",
            },
            "question": question,
            "answer": f"{name}answer" if name else "yes",
        }
        for number, question in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_model(folder: Path, text: str = "{}") -> Path:
    """Enough of a checkpoint to be digested; the stub reads nothing of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def settings(folder: Path, **more: Any) -> ScoreSettings:
    """A job on `folder/in.parquet` into `folder/run`."""
    chunk_rows = more.pop("chunk_rows", 8)
    pool = more.pop("pool", {})
    # who decodes must know how the model's pictures are cut
    model = TOY if "decode_actors" in pool else write_model(folder / "model")
    return ScoreSettings.model_validate(
        {
            "out": str(folder / "run"),
            "archive": {"archive": str(folder / "in.parquet"), "chunk_rows": chunk_rows},
            "model": {"path": str(model)},
            "pool": pool,
            **more,
        }
    )
