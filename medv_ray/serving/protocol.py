"""OpenAI's chat-completions wire format as far as a diffusion model answers to it.

Unknown fields are refused by name; those of `neutral` are taken with a value that asks for nothing.
Source of names and shapes: OpenAI's API reference for chat completions.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

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
from medv_ray.serving.neutral import (
    OF_MESSAGE,
    OF_PART,
    OF_REQUEST,
    Tables,
    asks_for_nothing,
    what_is_taken,
)
from medv_ray.serving.options import MAX_MESSAGES


def _describe(schema: dict[str, Any], kind: type[Wire]) -> None:
    """Add the neutral fields to a JSON schema."""
    for name, taken in kind.neutral.items():
        schema["properties"][name] = {"enum": list(taken)}


class Wire(BaseModel):
    """Base of what comes in."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_describe,
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that `parse` leaves out where they have these values; with others they are unknown."""
    entries: ClassVar[tuple[str, Tables]] = ("messages", (OF_MESSAGE, OF_PART))
    """The field that is a list of messages, and the tables of a message and of a part of one."""
    part_types: ClassVar[tuple[str, ...]] = ("text", "image_url")


class TextPart(Wire):
    neutral = OF_PART
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    """`data:image/...;base64,...`, or https where the endpoint allows the host."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Taken and ignored: the checkpoint says how an image is cut into tiles."""


class ImagePart(Wire):
    neutral = OF_PART
    type: Literal["image_url"]
    image_url: ImageUrl


PART_TYPES = ("text", "image_url", "input_text", "output_text", "input_image")
MAX_FIELDS = 1000
"""Of an object in a body. Of a list (`fail_fast`) the entries behind the first error are not looked
at: a body has room for tens of thousands, each of which would become an error of its own."""
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(fail_fast=True)]
Stops = Annotated[list[str], Field(max_length=4)]
# by hand, so that an error speaks of what was sent, and not of both
_kind = Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)")
Content = Annotated[Annotated[str, Tag("(text)")] | Annotated[Parts, Tag("(list)")], _kind]
Stop = Annotated[Annotated[str, Tag("(text)")] | Annotated[Stops, Tag("(list)")], _kind]


class Message(Wire):
    neutral = OF_MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    """Only an assistant's may be null or without parts: an empty answer."""
    name: str | None = None
    """Taken and ignored."""


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_denoise: bool | None = None
    """Beside the text, what each step committed and where."""
    include_obfuscation: bool | None = None
    """Taken and ignored."""


class JsonSchema(Wire):
    name: str | None = None
    """Taken and ignored, like `description` and `strict`: every answer keeps to the schema."""
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """docs/canvas.md says what is understood of it."""


def check_schema(field: str, given: Any, kind: str) -> None:
    """Raises ValueError for a schema that is missing, or of another type of answer."""
    if kind == "json_schema" and given is None:
        raise ValueError(f"{field}: is missing")
    if kind != "json_schema" and given is not None:
        raise ValueError(f"{field}: belongs to the type json_schema")


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schema("json_schema", self.json_schema, self.type)
        return self


class Prompted(Wire):
    """What both kinds of request say of model, dialogue and denoising."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    diffusion: dict[str, Any] | None = None
    """Sampler settings by their names (docs/sampler.md), over the endpoint's own; and `canvas`,
    `choices` or `json_schema` (docs/canvas.md)."""


class ChatRequest(Prompted):
    """The body of /v1/chat/completions."""

    neutral = OF_REQUEST
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Of `diffusion.choices` alone."""
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    """Taken and ignored, like `user`, `safety_identifier` and `prompt_cache_key`."""
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = (self.max_tokens, self.max_completion_tokens)
        if None not in given and given[0] != given[1]:
            raise ValueError("max_tokens: max_completion_tokens differs from it; give one of them")
        if not self.stream and (self.wants_usage or self.wants_denoise):
            raise ValueError("stream_options: needs stream=true")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs=true")
        if any(not text for text in self.stops):
            raise ValueError("stop: an empty text can not end an answer")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """`n`."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_denoise(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_denoise)


class InspectRequest(Prompted):
    """The body of /v1/inspect: a state of an answer, and the position to look at."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)] | None], Field(min_length=1, fail_fast=True)]
    """L ids, null where the mask is."""
    position: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _masked(self) -> Self:
        if self.position >= len(self.tokens) or self.tokens[self.position] is not None:
            raise ValueError("position: must be one at which tokens holds null")
        return self


class PictureRequest(Wire):
    """The body of /v1/picture."""

    model: str
    image_url: ImageUrl
    frame: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """From 1. None: the one that a question would be about."""


class BadRequest(DataError):
    """A request that is refused; `param` names the field."""

    def __init__(self, code: str, detail: str, param: str | None = None) -> None:
        super().__init__(code, detail)
        self.param = param

    def __reduce__(self) -> tuple[type[BadRequest], tuple[str, str, str | None]]:
        return type(self), (self.code, self.detail, self.param)


W = TypeVar("W", bound=Wire)


def parse(kind: type[W], body: bytes, what: str = "the body") -> W:
    """A body as `kind`. Raises BadRequest E1701 that names the field and never what it holds."""
    try:
        value = _json(body, what)
        _leave_out_neutral(value, kind)
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = _path(first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        tables = (kind.neutral, *kind.entries[1])
        rule = what_is_taken(first["loc"], tables, kind.entries[0]) or "there is no such field"
    elif first["type"] == "missing":
        rule = "is missing"
    elif first["type"] == "union_tag_invalid":  # pydantic's own text repeats what was sent
        rule = f"type must be {' or '.join(kind.part_types)}"
    elif first["type"] in ("model_type", "dict_type"):
        rule = "an object is expected"
    elif first["type"] == "value_error" and ": " in rule:  # of one of our own rules: its field
        name, _, rule = rule.partition(": ")
        path = f"{path}.{name}" if path else name
    raise BadRequest("E1701", f"{path}: {rule}." if path else f"{rule}.", path or None)


def _leave_out_neutral(value: Any, kind: type[Wire]) -> None:
    name, (of_entry, of_part) = kind.entries
    _leave_out(value, kind.neutral)
    for message in _list(value, name)[:MAX_MESSAGES]:
        _leave_out(message, of_entry)
        for part in _list(message, "content"):
            _leave_out(part, of_part)


def _leave_out(value: Any, table: dict[str, tuple[Any, ...]]) -> None:
    for one in _asking_for_nothing(value, table):
        del value[one]


def _list(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _asking_for_nothing(value: Any, table: dict[str, tuple[Any, ...]]) -> list[str]:
    if not isinstance(value, dict) or table.keys().isdisjoint(value):
        return []
    return [n for n in table.keys() & value.keys() if asks_for_nothing(value[n], table[n])]


def _json(body: bytes, what: str) -> Any:
    """What a body says. Raises BadRequest E1701 that tells what is wrong with it, and where."""
    try:
        text = body.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        rule = f"it is no UTF-8 at byte {error.start}"
    else:
        try:
            found = json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
            if "\\u" in text:
                json.dumps(found, ensure_ascii=False).encode()
            return found
        except BadRequest:
            raise
        except json.JSONDecodeError as error:  # its text holds nothing of the body
            found = error.msg.removesuffix(" at").removesuffix(" starting")
            rule = f"{found[:1].lower()}{found[1:]} in line {error.lineno}, column {error.colno}"
        except RecursionError:
            rule = "it is nested too deeply"
        except UnicodeEncodeError:
            rule = "a text holds half a surrogate pair, which is no character"
        except ValueError:  # Python's own limit
            rule = "a whole number has thousands of digits"
    raise BadRequest("E1701", f"{what} is no JSON that can be read: {rule}.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of two values of one name, a reader before us may have taken the other one."""
    if len(pairs) > MAX_FIELDS:  # each would become an error of its own
        raise BadRequest("E1701", f"an object of the body has over {MAX_FIELDS} fields.")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRequest("E1701", "a field stands twice in one object of the body.")
    return found


def _constant(name: str) -> None:
    raise BadRequest("E1701", f"the body holds {name}, which is no JSON.")


def _path(loc: tuple[int | str, ...]) -> str:
    """Where an error lies, without the names of union members, which stand behind an index or in
    brackets."""
    parts = [str(part) for part in loc]
    if parts[:1] == ["metadata"]:  # the client's own names follow
        return parts[0]
    kept = [
        part
        for before, part in zip(["", *parts], parts, strict=False)
        if not part.startswith("(") and not (before.isdigit() and part in PART_TYPES)
    ]
    return shown(".".join(kept))


def shown(name: str) -> str:
    """A field's name that a client sent, cut and made printable."""
    return "".join(mark if mark.isprintable() else "?" for mark in name[:80])
