"""What a scoring job past this machine would take: hours, price, requests, and what is in its way.

Every figure says where it is from: `given` by the user, `measured` by a probe of the user's, or
`assumed`. The rate of a GPU is never assumed. No Ray and no GPU is
looked at: docs/scale.md has the formulas and what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, PositiveInt, field_validator

from medv_ray.archive.chunks import CHUNK_BYTES
from medv_ray.archive.compact import MOST_ROWS, TARGET_BYTES
from medv_ray.archive.run import MERGE_AFTER
from medv_ray.archive.store import AT_ONCE
from medv_ray.settings import Settings

Source = Literal["given", "measured", "assumed"]
Positive = Annotated[float, Field(ge=1e-6, le=1e12)]
MOST = 10**12


class ScaleSettings(Settings):
    """A job, its machines, and what they can do."""

    rows: Annotated[float, Field(ge=1, le=MOST, allow_inf_nan=False)]
    """Rows of the archive: 1e8."""
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    """GPU nodes."""
    gpus: Annotated[int, Field(ge=1, le=64)] = 8
    """GPUs of a node."""
    rate: Positive
    """Rows that one GPU answers in a second."""
    price_per_hour: Annotated[float, Field(ge=0, le=1e9), AfterValidator(abs)] | None = None
    """Of one node, in any currency."""
    cores: Annotated[int, Field(ge=1, le=4096)] = 64
    """CPU cores of a node that decode pictures."""
    decode_rate: Positive = 100.0
    """Pictures that one core decodes in a second."""
    pictures: Positive = 1.0
    """Pictures of a row."""
    image_bytes: Positive = 200_000.0
    """Of an encoded picture, on average."""
    row_bytes: Positive = 300.0
    """Of an answer in a merged file of `rows/`, packed."""
    network: Positive = 1250.0
    """MB/s of a node, each way."""
    store: Literal["s3", "disk"] = "s3"
    """Where archive and run folder lie: an object store, or a disk that all nodes share."""
    requests_per_s: Positive = 3500.0
    """Requests that the store takes for this archive and run folder: S3's figure of writes for
    one prefix."""
    request_ms: Positive = 40.0
    """From the driver to the object store and back."""
    commit_ms: Positive = 10.0
    """Of the driver's processor, for a chunk: commit and merges."""
    chunk_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """`archive.chunk_rows` of the job."""
    group_rows: PositiveInt = 100
    """Rows of a row group; no chunk reaches over the border of two."""

    @field_validator("rows")
    @classmethod
    def _whole(cls, rows: float) -> float:
        if rows != int(rows):
            raise ValueError("rows are whole: 1e8, 250000")
        return rows


class Stage(NamedTuple):
    """Something that every row goes through."""

    name: str
    rows_per_s: float
    why: str
    """The numbers from which it follows."""


class Figure(NamedTuple):
    """A number that the plan goes by."""

    value: float | int | str | None
    source: Source


@dataclass(frozen=True)
class Requests:
    """Requests to an object store for one chunk."""

    read: float
    """GET and HEAD of workers, for the chunk's rows."""
    write: float
    """PUT and POST of workers: the part."""
    record: float
    """Of the driver: PUT of the ledger's record."""
    lock: float
    """Of the driver: whether it still holds the lock. What is committed together shares one."""
    merge: float
    """Of the driver: parts read, written together, and deleted, with their records."""

    @property
    def all(self) -> float:
        return self.read + self.write + self.record + self.lock + self.merge


REQUESTS = Requests(read=3.25, write=1.0, record=1.0, lock=1.0, merge=8.3)
"""As benchmarks/count_requests.py counts them, at 3 MB of pictures a chunk and one chunk a commit.
Of a merge, six are the deletion of part and record: pyarrow looks for each first, and puts the name
of the folder in place afterwards."""


@dataclass(frozen=True)
class ScalePlan:
    """A job in figures."""

    settings: ScaleSettings
    figures: dict[str, Figure]
    stages: tuple[Stage, ...]
    """The slowest first."""
    chunks: int
    merges: int
    files: int
    """Of `rows/`, in the end."""

    @property
    def rows_per_s(self) -> float:
        return self.stages[0].rows_per_s

    @property
    def hours(self) -> float:
        """Of answering; starts, and nodes that come late, are not in it."""
        return self.settings.rows / self.rows_per_s / 3600

    @property
    def price(self) -> float | None:
        """Of all nodes for these hours."""
        each = self.settings.price_per_hour
        return None if each is None else self.hours * self.settings.nodes * each

    @property
    def price_per_million(self) -> float | None:
        """Of 10^6 rows."""
        return None if self.price is None else self.price / self.settings.rows * 1e6

    @property
    def read_mb_per_s(self) -> float:
        """From the store to all nodes, 10^6 bytes a second."""
        return self.rows_per_s * input_bytes(self.settings) / 1e6

    @property
    def requests_per_s(self) -> float:
        """To an object store; 0 on a disk."""
        if self.settings.store == "disk":
            return 0.0
        return self.rows_per_s * self.chunks / self.settings.rows * REQUESTS.all


def scale_plan(settings: ScaleSettings, rate_source: Source = "given") -> ScalePlan:
    """The job's hours and price at the rate of its slowest stage.

    What is left at its default is `assumed`; `rate_source` is that of the GPU's rate.
    """
    chunk, chunks = chunks_of(settings)
    merges, files = merges_of(settings, chunk)
    stages = [
        gpu_stage(settings), decode_stage(settings), network_stage(settings),
        commit_stage(settings, chunk),
    ]  # fmt: skip
    if settings.store == "s3":
        stages.append(
            Stage(
                "object-store requests",
                settings.requests_per_s / REQUESTS.all * chunk,
                f"{settings.requests_per_s:g} requests/s / {REQUESTS.all:.3g} a chunk x "
                f"{chunk:.3g} rows of a chunk",
            )
        )
    given = settings.model_fields_set
    figures = {
        name: Figure(
            getattr(settings, name),
            "given" if name in given else "assumed",
        )
        for name in type(settings).model_fields
    }
    figures["rate"] = Figure(settings.rate, rate_source)
    ordered = sorted(stages, key=lambda stage: stage.rows_per_s)
    return ScalePlan(settings, figures, tuple(ordered), chunks, merges, files)


def input_bytes(settings: ScaleSettings) -> float:
    """Of a row's pictures, encoded."""
    return settings.pictures * settings.image_bytes


def gpu_stage(settings: ScaleSettings) -> Stage:
    gpus = settings.nodes * settings.gpus
    return Stage("GPU", gpus * settings.rate, f"{gpus} GPUs x {settings.rate:g} rows/s")


def decode_stage(settings: ScaleSettings) -> Stage:
    cores = settings.nodes * settings.cores
    return Stage(
        "decode cores",
        cores * settings.decode_rate / settings.pictures,
        f"{cores} cores x {settings.decode_rate:g} pictures/s / {settings.pictures:g} a row",
    )


def network_stage(settings: ScaleSettings) -> Stage:
    size = input_bytes(settings)
    return Stage(
        "network",
        settings.nodes * settings.network * 1e6 / size,
        f"{settings.nodes} nodes x {settings.network:g} MB/s / {size:g} bytes of a row",
    )


def commit_stage(settings: ScaleSettings, chunk: float) -> Stage:
    """The driver commits what came in meanwhile, together: on a disk many chunks share a wait, so
    that its processor is the limit; on an object store each has a record of its own and is merged
    by the driver, AT_ONCE requests at a time. A look at the lock is shared."""
    requests = REQUESTS.record + REQUESTS.merge if settings.store == "s3" else 0.0
    each = settings.commit_ms + requests * settings.request_ms / AT_ONCE
    waits = (
        f" + {requests:g} requests x {settings.request_ms:g} ms / {AT_ONCE} at a time"
        if requests
        else ""
    )
    return Stage(
        "driver and commit",
        chunk / (each / 1000),
        f"{chunk:.3g} rows of a chunk / ({settings.commit_ms:g} ms{waits})",
    )


def chunks_of(settings: ScaleSettings) -> tuple[float, int]:
    """Rows of a chunk on average, and how many chunks there are, as the planner cuts row groups."""
    step = max(1, min(settings.chunk_rows, int(CHUNK_BYTES // input_bytes(settings))))
    rows = int(settings.rows)
    whole, rest = divmod(rows, settings.group_rows)
    chunks = whole * math.ceil(settings.group_rows / step) + math.ceil(rest / step)
    return rows / chunks, chunks


def merges_of(settings: ScaleSettings, chunk: float) -> tuple[int, int]:
    """Merges, and files in the end: `compact` takes 2,000 parts at a time, together with a file
    that it made before, as long as that one has less than half of what a file may have."""
    most = min(MOST_ROWS, TARGET_BYTES / settings.row_bytes)
    batch = min(MERGE_AFTER * chunk, most)
    file = min(batch * math.ceil(most / 2 / batch), most)
    return math.ceil(settings.rows / batch), math.ceil(settings.rows / file)
