"""Settings of an endpoint: one object for flags, YAML, `--set` and `serve deploy`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from medv_ray.hub import name_of
from medv_ray.settings import (
    AnswerSettings,
    EngineSettings,
    Gpus,
    ImageSettings,
    ModelSettings,
    OnePicture,
    Settings,
)

MAX_MESSAGES = 4096
"""What `limits.max_messages` may be: no more of them are even looked at."""


class LimitSettings(Settings):
    """What a request may ask for, and how many are taken at once."""

    max_body_bytes: PositiveInt = 20 * 2**20
    """A longer body is refused (413) by its header, or as soon as it is longer."""
    max_header_bytes: PositiveInt = 32 * 2**10
    """Of all headers together (431)."""
    body_seconds: PositiveFloat = 30.0
    """Time for a whole body to arrive; a slower sender is refused (408)."""
    max_messages: Annotated[PositiveInt, Field(le=MAX_MESSAGES)] = 64
    """Of a request, a dialogue's earlier turns included."""
    max_text_bytes: PositiveInt = 64 * 2**10
    """Of all messages together, before they are made into tokens; each of the user's is held to
    `prompt.max_question_bytes` as well."""
    max_images: PositiveInt = 4
    """Pictures of a request."""
    max_gen_length: PositiveInt = 512
    """L, response positions of a request."""
    max_steps: PositiveInt = 512
    """Z, denoising steps of a request."""
    max_n: PositiveInt = 8
    """Answers to one request."""
    per_key: PositiveInt = 8
    """Answers to requests of one API key that a replica makes at the same time (a request takes as
    many as its `n`); further ones get 429. Without keys there is no such limit."""
    ongoing: PositiveInt = 64
    """Answers that a replica makes, those that wait for a slot included."""
    queue: NonNegativeInt = 64
    """Requests that wait for a replica, in each proxy; further ones get 429."""
    request_seconds: PositiveFloat = 120.0
    """From a request's arrival at the replica to its last token; then 503, or an error event."""
    retry_after_s: PositiveInt = 1
    """What 429 and 503 tell the client to wait."""
    stuck_seconds: PositiveFloat = 40.0
    """A denoising step that takes longer makes the replica unhealthy; it is replaced."""


class FetchSettings(Settings):
    """Images by URL. Nothing is fetched unless hosts are named here."""

    hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], ...] = ()
    """Host names that https images may come from, images.example.org say: no address, no port. Each
    is resolved once, must be a public address, and no redirect is followed."""
    max_bytes: PositiveInt = 10 * 2**20
    """Of a fetched picture; a longer one is refused."""
    seconds: PositiveFloat = 10.0
    """For name, connection and picture together."""


class BatchSettings(Settings):
    """Files of requests that are answered when there is time (docs/batch-files.md)."""

    folder: str | None = None
    """Where files and batches lie, readable by this user alone; all replicas and proxies must share
    it. None: /v1/files and /v1/batches are switched off."""
    max_file_bytes: PositiveInt = 200 * 2**20
    """Of an uploaded file. Of its lines each may be as long as a body (`limits.max_body_bytes`)."""
    max_lines: PositiveInt = 1_000_000
    """Of an uploaded file."""
    files_per_key: PositiveInt = 1000
    """Files of an API key, those that batches have written included; and as many batches."""
    bytes_per_key: PositiveInt = 10 * 2**30
    """Of all files of an API key. An upload that would go over it is refused; what a batch writes
    is counted, but never cut."""
    uploads: PositiveInt = 4
    """Files that arrive at the same time in one process; further ones get 429."""
    upload_seconds: PositiveFloat = 600.0
    """Time for a whole file to arrive; a slower sender is refused (408)."""
    keep_seconds: Annotated[PositiveInt, Field(ge=3600)] = 30 * 86400
    """Files are removed so long after they were made, unless an unfinished batch reads them;
    batches so long after they ended. Clients may ask for less."""
    in_flight: PositiveInt | None = None
    """A batch's next line starts only while the replica makes fewer answers than this, those of
    other clients included. None: one more than `engine.slots`."""
    side_by_side: PositiveInt = 4
    """Batches that a replica works on at the same time."""


class TracingSettings(Settings):
    """Traces of requests, for a collector of OpenTelemetry (docs/observability.md). They hold
    times, sizes, counts and codes, never what was asked or answered."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$")] | None = None
    """A collector's OTLP/HTTP address, http://127.0.0.1:4318 say; needs the extra
    `medv-ray[otel]`. Keys for it go into the environment: OTEL_EXPORTER_OTLP_HEADERS. None: nothing
    is traced."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the requests that bring no trace of their own; for those that do, theirs decides."""


class ScalingSettings(Settings):
    """How many replicas there are, and what each takes of the cluster."""

    min_replicas: NonNegativeInt = 1
    """0 gives the last replica back when nobody asks; the next request then waits for one."""
    max_replicas: PositiveInt = 1
    """Replicas at most."""
    target_ongoing: PositiveFloat | None = None
    """Requests a replica should hold; more start another one. None: half of `limits.ongoing`."""
    downscale_seconds: NonNegativeFloat = 600.0
    """How long a replica must be spare before it is given back."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas that a changed deployment may start beside the old ones, in percent of those; they
    need room. 0: the old ones end first, and requests wait (`limits.queue`) while models load."""
    num_gpus: Gpus = 0
    """GPUs of each replica; a fraction puts several replicas on one GPU."""
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1
    """CPU cores and torch threads of each replica."""

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} > max_replicas={self.max_replicas}")
        return self


class ServeSettings(AnswerSettings):
    """An endpoint. The fields of AnswerSettings stand at the top: `--set sampler.steps=32`."""

    model: ModelSettings
    name: str | None = None
    """What clients call the model. None: the name of its folder."""
    adapters: dict[str, str] = {}
    """LoRA adapters of the model by the name that clients call them; local folders. Their weights
    lie beside the model's, which are held once."""
    engine: EngineSettings = EngineSettings()
    # smaller than a scoring job's: these pictures come from anybody
    image: OnePicture = ImageSettings(
        max_bytes=15 * 2**20, max_pixels=40_000_000, decode_seconds=5.0, decode_bytes=2**30
    )
    limits: LimitSettings = LimitSettings()
    fetch: FetchSettings = FetchSettings()
    scaling: ScalingSettings = ScalingSettings()
    batch: BatchSettings = BatchSettings()
    tracing: TracingSettings = TracingSettings()
    keys_file: str | None = None
    """File of API keys, one `name key` a line. None: the environment's MEDV_API_KEYS_FILE; without
    any, only clients on the same machine are answered."""
    audit_log: str | None = None
    """File that gets one line a chat, inspection or picture: time, key's name, digests of prompt
    and images, outcome. Never what was asked or answered. None: none is written."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if self.served_name in self.adapters:
            raise ValueError(f"adapters: {self.served_name!r} is the name of the model itself")
        return self

    @property
    def answer(self) -> AnswerSettings:
        """Only what decides an answer."""
        return AnswerSettings(**{name: getattr(self, name) for name in AnswerSettings.model_fields})

    @property
    def served_name(self) -> str:
        """What clients call the model."""
        of = name_of(self.model.path).partition("@")[0]
        return self.name or of.rpartition("/")[2] or "model"
