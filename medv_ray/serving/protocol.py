"""OpenAI's chat-completions wire format as far as a diffusion model answers to it.

Unknown fields are refused by name; fields whose neutral value only makes sense here take that value
and no other. Source of names and shapes: OpenAI's API reference for chat completions.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from medv_ray.errors import DataError


class Wire(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    """`data:image/...;base64,...`, or https where the endpoint allows the host."""
    detail: Literal["auto", "low", "high"] | None = None
    """Taken and ignored: the checkpoint says how an image is cut into tiles."""


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1)]
Stops = Annotated[list[str], Field(max_length=4)]
# by hand, so that an error speaks of what was sent, and not of both
_kind = Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)")
Content = Annotated[Annotated[str, Tag("(text)")] | Annotated[Parts, Tag("(list)")], _kind]
Stop = Annotated[Annotated[str, Tag("(text)")] | Annotated[Stops, Tag("(list)")], _kind]


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    """Taken and ignored."""


class StreamOptions(Wire):
    include_usage: bool = False
    include_denoise: bool = False
    """Beside the text, what each step committed and where."""
    include_obfuscation: bool = False
    """Taken and ignored."""


class ResponseFormat(Wire):
    type: Literal["text"]


class Prompted(Wire):
    """What both kinds of request say of model, dialogue and denoising."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    diffusion: dict[str, Any] = {}
    """Sampler settings by their names (docs/sampler.md), over the endpoint's own."""


class ChatRequest(Prompted):
    """The body of /v1/chat/completions."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1)] = 1
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None
    """Alternatives come from /v1/inspect."""
    top_p: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    """Taken and ignored."""
    metadata: dict[str, str] | None = None
    """Taken and ignored."""
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = (self.max_tokens, self.max_completion_tokens)
        if None not in given and given[0] != given[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream=true")
        if any(not text for text in self.stops):
            raise ValueError("stop: an empty text can not end an answer")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_denoise(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_denoise


class InspectRequest(Prompted):
    """The body of /v1/inspect: a state of an answer, and the position to look at."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)] | None], Field(min_length=1)]
    """L ids, null where the mask is."""
    position: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _masked(self) -> Self:
        if self.position >= len(self.tokens) or self.tokens[self.position] is not None:
            raise ValueError("position must be one at which tokens holds null")
        return self


class BadRequest(DataError):
    """A request that is refused; `param` names the field."""

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(code, detail)
        self.param = param

    def __reduce__(self) -> tuple[type[BadRequest], tuple[str, str, str | None]]:
        return type(self), (self.code, self.detail, self.param)


W = TypeVar("W", bound=Wire)


def parse(kind: type[W], body: bytes) -> W:
    """A body as `kind`. Raises BadRequest E1701 that names the field and never what it holds."""
    try:
        value = kind.model_validate_json(body)
        json.loads(body, object_pairs_hook=_once)
        return value
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = _path(first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        raise BadRequest("E1701", "the body is no JSON.")
    if first["type"] == "extra_forbidden":
        rule = "there is no such field"
    elif first["type"] == "missing":
        rule = "is missing"
    elif first["type"] == "union_tag_invalid":  # pydantic's own text repeats what was sent
        rule = "type must be text or image_url"
    raise BadRequest("E1701", f"{path}: {rule}." if path else f"{rule}.", path or None)


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Of two values of one name, a reader before us may have taken the other one."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise BadRequest("E1701", "a field stands twice in one object of the body.")


def _path(loc: tuple[int | str, ...]) -> str:
    """Where an error lies, without the names of union members, which stand behind an index or in
    brackets."""
    parts = [str(part) for part in loc]
    if parts[:1] == ["metadata"]:  # the client's own names follow
        return parts[0]
    kept = [
        part
        for before, part in zip(["", *parts], parts, strict=False)
        if not part.startswith("(") and not (before.isdigit() and part in ("text", "image_url"))
    ]
    return shown(".".join(kept))


def shown(name: str) -> str:
    """A field's name that a client sent, cut and made printable."""
    return "".join(mark if mark.isprintable() else "?" for mark in name[:80])
