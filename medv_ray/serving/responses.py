"""OpenAI's Responses API on top of the chat's: other names for what is asked and said.

A request becomes a ChatRequest, so that both routes answer alike. Nothing is kept between requests.
Source of names and order of events: OpenAI's API reference for responses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from medv_ray.data.canvas import Template
from medv_ray.engine.request import Answer
from medv_ray.serving.completions import Choice, Completion, Texts, event, usage_of
from medv_ray.serving.neutral import OF_INPUT_PART, OF_ITEM, OF_RESPONSES, Tables
from medv_ray.serving.options import MAX_MESSAGES
from medv_ray.serving.protocol import BadRequest, ChatRequest, Wire, check_schema
from medv_ray.settings import SamplerSettings


class InputText(Wire):
    neutral = OF_INPUT_PART
    type: Literal["input_text"]
    text: str


class OutputText(Wire):
    """Of an earlier answer that is sent back."""

    neutral = OF_INPUT_PART
    type: Literal["output_text"]
    text: str


class InputImage(Wire):
    neutral = OF_INPUT_PART
    type: Literal["input_image"]
    image_url: str
    """`data:image/...;base64,...`, or https where the endpoint allows the host."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Taken and ignored: the checkpoint says how an image is cut into tiles."""


InputPart = Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]
_kind = Discriminator(lambda value: "(list)" if isinstance(value, list) else "(text)")
InputContent = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[list[InputPart], Field(fail_fast=True), Tag("(list)")],
    _kind,
]


class InputItem(Wire):
    neutral = OF_ITEM
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent
    type: Literal["message"] | None = None
    id: str | None = None
    """Taken and ignored, like `status`: an item of an earlier answer has them."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None


Items = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Input = Annotated[Annotated[str, Tag("(text)")] | Annotated[Items, Tag("(list)")], _kind]


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schema("schema", self.schema_, self.type)
        return self

    def of_chat(self) -> dict[str, Any]:
        """The same as a chat's `response_format`. What a JSON schema has here beside its type, a
        chat has under `json_schema`."""
        if self.schema_ is None:
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name, "schema": self.schema_}}


class TextConfig(Wire):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Wire):
    include_obfuscation: bool | None = None
    """Taken and ignored."""


class ResponsesRequest(Wire):
    """The body of /v1/responses."""

    neutral = OF_RESPONSES
    entries: ClassVar[tuple[str, Tables]] = ("input", (OF_ITEM, OF_INPUT_PART))
    part_types: ClassVar[tuple[str, ...]] = ("input_text", "input_image", "output_text")
    model: str
    input: Input
    instructions: str | None = None
    """A system message in front of all others."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: dict[str, str] | None = None
    """Comes back with the answer."""
    diffusion: dict[str, Any] | None = None
    """Sampler settings by their names (docs/sampler.md), over the endpoint's own."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """As a chat's; not OpenAI's."""
    user: str | None = None
    """Taken and ignored, like `safety_identifier` and `prompt_cache_key`."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _fits_a_chat(self) -> Self:
        many = isinstance(self.input, list) and len(self.input) >= MAX_MESSAGES
        if many and self.instructions is not None:
            raise ValueError(f"input: at most {MAX_MESSAGES - 1} items beside instructions")
        return self

    def of_chat(self) -> ChatRequest:
        """What a chat would have been asked."""
        given: list[dict[str, Any]] = []
        if self.instructions is not None:
            given.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            given.append({"role": "user", "content": self.input})
        else:
            given += [{"role": one.role, "content": _content(one.content)} for one in self.input]
        form = self.text.format if self.text is not None else None
        asked = {
            "model": self.model,
            "messages": given,
            "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "diffusion": self.diffusion,
            "response_format": None if form is None else form.of_chat(),
        }
        return ChatRequest.model_validate(asked)

    def in_own_words(self, error: BadRequest) -> BadRequest:
        """What a chat was refused for, with this request's names of the fields."""
        first = 0 if self.instructions is None else 1

        def named(text: str) -> str:
            text = re.sub(r"\bmessages\.(\d+)", lambda m: self._place(int(m[1]) - first), text)
            text = re.sub(r"\bmessages\b", "input", text).replace(".image_url.url", ".image_url")
            text = re.sub(r"\bresponse_format\b", "text.format", text)
            return re.sub(r"\bmax(_completion)?_tokens\b", "max_output_tokens", text)

        param = None if error.param is None else named(error.param)
        return BadRequest(error.code, named(error.detail), param)

    def _place(self, number: int) -> str:
        if number < 0:
            return "instructions"
        return "input" if isinstance(self.input, str) else f"input.{number}"


def _content(content: str | Sequence[InputText | OutputText | InputImage]) -> Any:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": part.image_url}}
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for part in content
    ]


class ResponsesCompletion(Completion):
    """Everything that is said of one request to /v1/responses."""

    def __init__(
        self,
        asked: ResponsesRequest,
        request: ChatRequest,
        texts: Texts,
        seeds: Sequence[int],
        sampler: SamplerSettings,
        request_id: str,
        created: int,
        form: Template | None = None,
    ) -> None:
        super().__init__(request, texts, seeds, sampler, request_id, created, form)
        self.id = f"resp_{request_id}"
        self._item = f"msg_{request_id}"
        self._created, self._events = created, 0
        self._asked = asked.model_copy(update={"input": ""})  # without the pictures

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        return self._ended(self.answers[0])

    def _ended(self, answer: Answer) -> dict[str, Any]:
        return self._object(self._status(answer), [self._message(answer)], answer)

    def _status(self, answer: Answer) -> str:
        return "completed" if self._finish(answer) == "stop" else "incomplete"

    def _object(
        self, status: str, output: list[dict[str, Any]], answer: Answer | None = None
    ) -> dict[str, Any]:
        asked = self._asked
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        made: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": cut,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": self._format(), "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": asked.user,
            "metadata": asked.metadata or {},
        }
        if answer is not None:
            made["medv"] = [self._ours(self.choices[0], answer)]
        return made

    def _format(self) -> dict[str, Any]:
        given = self._asked.text.format if self._asked.text is not None else None
        return (
            {"type": "text"}
            if given is None
            else given.model_dump(mode="json", by_alias=True, exclude_none=True)
        )

    def _message(self, answer: Answer) -> dict[str, Any]:
        return self._item_of(self._status(answer), [_part(self.text(answer))])

    def _item_of(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._item,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._events = self._events, self._events + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _of_part(self, kind: str, **fields: Any) -> dict[str, Any]:
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _begin(self, choice: Choice) -> list[dict[str, Any]]:
        if choice.begun:
            return []
        choice.begun = True
        begun = self._object("in_progress", [])
        item = self._item_of("in_progress", [])
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=item),
            self._of_part("response.content_part.added", part=_part("")),
        ]

    def _delta(self, choice: Choice, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        return [self._of_part("response.output_text.delta", delta=text, logprobs=[])]

    def _end_chunks(self, choice: Choice, answer: Answer) -> list[dict[str, Any]]:
        chunks = self._begin(choice)
        chunks += self._delta(choice, choice.growing.finish(answer.text))
        text, status = self.text(answer), self._status(answer)
        item = self._message(answer)
        return [
            *chunks,
            self._of_part("response.output_text.done", text=text, logprobs=[]),
            self._of_part("response.content_part.done", part=_part(text)),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{status}", response=self._ended(answer)),
        ]

    def event(self, chunk: dict[str, Any]) -> bytes:
        """A server-sent event, which has its name outside as well."""
        return f"event: {chunk['type']}\n".encode() + event(chunk)

    def last(self) -> bytes:
        """Nothing: the event before was the last one."""
        return b""

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event that ends a stream early. OpenAI's client raises what stands under `error`."""
        about = {name: error[name] for name in ("code", "message", "param")}
        return self.event(self._event("error", **about, error=error))


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    found = usage_of([answer])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found["total_tokens"],
    }
