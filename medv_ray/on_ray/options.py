"""Settings of a scoring job: one object for flags, YAML, `--set` and the manifest. Loads no ray."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from medv_ray import __version__
from medv_ray.archive.pseudonyms import PrivacySettings, Pseudonyms
from medv_ray.archive.settings import ArchiveSettings
from medv_ray.archive.store import is_hub, is_local
from medv_ray.data.canvas import Template
from medv_ray.data.json_schema import template_of_text
from medv_ray.dicomweb.token import VARIABLE as TOKEN_FILE
from medv_ray.errors import SettingsError, no_torchao
from medv_ray.hub import here
from medv_ray.serving.options import ServeSettings
from medv_ray.settings import (
    AnswerSettings,
    EngineSettings,
    Gpus,
    ModelSettings,
    Settings,
    SlideSettings,
    build,
    model_folder,
)


class PoolSettings(Settings):
    """How many scoring actors there are and what each takes of the cluster."""

    min_actors: PositiveInt | None = None
    """Actors that are started at once. None: all of `max_actors` without a cluster, else 1."""
    max_actors: PositiveInt | None = None
    """Actors that the pool may grow to. None: as many as the cluster has room for now."""
    num_gpus: Gpus = 0
    """GPUs of each actor; a fraction puts several actors on one GPU."""
    cpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """CPU cores and torch threads of each actor. None: 1 on CPU, 0 beside a GPU."""
    decode_actors: NonNegativeInt = 0
    """Actors of one CPU core each that read and decode in front of the others, on whatever node has
    the core. 0: every scoring actor decodes its own pictures."""

    @model_validator(mode="after")
    def _min_below_max(self) -> PoolSettings:
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(f"min_actors={self.min_actors} > max_actors={self.max_actors}")
        return self

    @property
    def cpus(self) -> float:
        """CPU cores that one actor takes."""
        if self.cpus_per_actor is not None:
            return self.cpus_per_actor
        return 0.0 if self.num_gpus else 1.0


class ScoreSettings(AnswerSettings):
    """A scoring job. The fields of AnswerSettings stand at the top: `--set sampler.steps=32`."""

    out: str
    """Run folder, local or `s3://`, `gs://`; outside the archive. Not on the hub."""
    archive: ArchiveSettings
    model: ModelSettings
    slides: SlideSettings = SlideSettings()
    engine: EngineSettings = EngineSettings()
    pool: PoolSettings = PoolSettings()
    privacy: PrivacySettings = PrivacySettings()
    canvas: str | None = None
    """The answers' form (docs/canvas.md): a text with blanks, or a JSON schema. `--canvas` reads it
    from a file."""

    @field_validator("canvas")
    @classmethod
    def _is_a_form(cls, canvas: str | None) -> str | None:
        if canvas is not None:
            template_of_text(canvas)  # whose DataError is a ValueError
        return canvas

    @property
    def template(self) -> Template | None:
        """The answers' form; None for free text."""
        return None if self.canvas is None else template_of_text(self.canvas)

    @property
    def answer(self) -> AnswerSettings:
        """Only what decides an answer."""
        return AnswerSettings(**{name: getattr(self, name) for name in AnswerSettings.model_fields})

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where actors compute. `auto` goes by the GPUs that are asked for and not by what a
        process sees, so that the driver, which may lie on a machine without any, knows it too."""
        if self.model.device == "auto":
            return "cuda" if self.pool.num_gpus else "cpu"
        return self.model.device

    def located(self, on_cluster: bool) -> ScoreSettings:
        """With local folders as absolute paths, which mean the same in every process, and the hub's
        models as such folders. Raises what `check_out` raises."""
        self.check_out(on_cluster)
        images = self.archive.images
        if images is not None and is_local(images):
            images = os.path.abspath(images)
        token_file = self.archive.token_file or os.environ.get(TOKEN_FILE) or None
        token_file = token_file and os.path.abspath(token_file)
        update = {"images": images, "token_file": token_file}
        archive = self.archive.model_copy(update=update)
        out = os.path.abspath(self.out) if "://" not in self.out else self.out
        salt = self.privacy.salt_file
        salt_file = salt if salt is None else os.path.abspath(salt)
        privacy = self.privacy.model_copy(update={"salt_file": salt_file})
        path = model_folder(self.model.path)
        adapter = self.model.adapter and model_folder(self.model.adapter)
        if not on_cluster:  # there, a relative folder is one of the job's own on every node
            path, adapter = os.path.abspath(path), adapter and os.path.abspath(adapter)
        model = self.model.model_copy(update={"path": path, "adapter": adapter})
        changed = {"out": out, "archive": archive, "model": model, "privacy": privacy}
        return self.model_copy(update=changed)

    def check_out(self, on_cluster: bool) -> None:
        """Raises SettingsError E1001 for a relative `out` on a cluster (the job's own folder there
        is a temporary copy of the working directory) and for one on the hub."""
        if is_hub(self.out):
            raise SettingsError(
                "E1001",
                "--out hf://...: a run commits each chunk by a small file and holds a lock, and on "
                "the hub each of these would be a commit of git. Write to a disk, s3:// or gs://, "
                "and put the finished rows there: hf upload org/name RUN/rows --repo-type dataset.",
            )
        if on_cluster and is_local(self.out) and not os.path.isabs(self.out):
            raise SettingsError(
                "E1001", f"--out {self.out!r}: on a cluster, give an absolute path or a URI."
            )

    def identity(
        self,
        model_sha256: str,
        adapter_sha256: str | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> dict[str, Any]:
        """What must be equal for a resume, beside the input: answers depend on it.

        The kind of CPU or GPU is not in it: a cluster has several, and the driver's need not be
        among them. `Run.note_processor` records those that answered.
        """
        # a run without an adapter is named as it was before there were any
        adapter = {} if adapter_sha256 is None else {"adapter_sha256": adapter_sha256}
        privacy = {} if pseudonyms is None else {"privacy": pseudonyms.identity}
        canvas = {} if self.canvas is None else {"canvas": self.canvas}
        code = {"medv_ray": __version__, "torch": version("torch")}
        quantised = quantised_as(self.model)
        if quantised:
            code["torchao"] = version("torchao")
        return {
            **privacy,
            **canvas,
            "settings": self.answer.model_dump(mode="json"),
            "slides": self.slides.model_dump(mode="json", exclude={"seconds"}),
            "model": {
                **adapter,
                **quantised,
                "sha256": model_sha256,
                "dtype": self.model.dtype,
                "device": self.device,
                "logit_size": self.model.logit_size,
            },
            "code": code,
        }


def quantised_as(model: ModelSettings) -> dict[str, Any]:
    """What a manifest says of it, beside the digest of the weights in full; nothing for none.

    Raises SettingsError E1003 without torchao.
    """
    if model.quantisation == "none":
        return {}
    if find_spec("torchao") is None:
        raise no_torchao(model.quantisation)
    group = {"group_size": model.group_size} if model.quantisation == "int4" else {}
    return {"quantisation": model.quantisation, **group}


def checkpoint_defaults(path: str) -> dict[str, Any]:
    """Sampler settings that the checkpoint's config.json recommends (`medv_defaults`), if it does.

    Flags, files and `--set` go over them.
    """
    try:
        config = json.loads((Path(path) / "config.json").read_text())
        found = config.get("medv_defaults")
    except (OSError, ValueError, AttributeError):
        return {}  # loading the checkpoint says what is wrong with it
    return {"sampler": found} if isinstance(found, dict) else {}


def serve_settings(values: dict[str, Any]) -> ServeSettings:
    """Settings of an endpoint, over what its checkpoint recommends. `model` may be a folder alone.

    Raises SettingsError E1001, E1002.
    """
    model = values.get("model")
    model = {"path": model} if isinstance(model, str) else model or {}
    if not isinstance(model, dict):  # as another kind of value is, told of by the schema
        return build(ServeSettings, values)
    model = dict(model)
    path = model.setdefault("path", "toy")
    sampler = values.get("sampler") or {}
    if isinstance(path, str) and isinstance(sampler, dict):
        model["path"] = os.path.abspath(model_folder(path))
        sampler = checkpoint_defaults(model["path"]).get("sampler", {}) | sampler
    batch = values.get("batch")
    folder = batch.get("folder") if isinstance(batch, dict) else None
    if isinstance(batch, dict) and isinstance(folder, str):  # replicas may work elsewhere
        values = {**values, "batch": {**batch, "folder": os.path.abspath(folder)}}
    settings = build(ServeSettings, {**values, "model": model, "sampler": sampler})
    adapter = settings.model.adapter and model_folder(settings.model.adapter)
    adapters = {name: model_folder(one) for name, one in settings.adapters.items()}
    held = settings.model.model_copy(update={"adapter": adapter})
    return settings.model_copy(update={"model": held, "adapters": adapters})


def model_digests(model: ModelSettings) -> tuple[str, str | None]:
    """Of the model's folder, and of its adapter's if it has one.

    Raises CheckpointError E1401, and E1411 for an adapter of another model.
    """
    from medv_ray.model import lora, weights  # here, as this module is to stay light

    base = weights.digest(here(model.path))
    if model.adapter is None:
        return base, None
    adapter = here(model.adapter)
    lora.check_base(adapter, base)
    return base, lora.adapter_digest(adapter)
