"""`litellm`, as it calls any OpenAI-compatible server."""

from collections.abc import Callable
from typing import Any, Literal

import litellm
from cases import Given, case
from pydantic import BaseModel, Field

litellm.telemetry = False


def ask(given: Given, messages: list[Any], **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{given.model}",
        api_base=given.url,
        api_key=given.key,
        messages=messages,
        num_retries=0,
        **more,
    )


def conversation(given: Given, reply: Callable[[list[Any]], Any]) -> list[str]:
    """The texts of two turns; what `reply` makes of the messages so far goes back with the next."""
    messages: list[Any] = [{"role": "user", "content": given.content}]
    texts = []
    for following in (given.second, None):
        message = reply(messages)
        texts.append(message["content"])
        messages += [message, {"role": "user", "content": following}]
    return texts


@case("multi-turn, the message object fed back")
def _(given: Given) -> list[str]:
    return conversation(given, lambda messages: ask(given, messages).choices[0].message)


@case("multi-turn, message.model_dump() fed back")
def _(given: Given) -> list[str]:
    return conversation(
        given, lambda messages: ask(given, messages).choices[0].message.model_dump()
    )


@case("multi-turn, streamed, rebuilt by stream_chunk_builder")
def _(given: Given) -> list[str]:
    def reply(messages: list[Any]) -> Any:
        chunks = list(ask(given, messages, stream=True, stream_options={"include_usage": True}))
        whole: Any = litellm.stream_chunk_builder(chunks, messages=messages)
        return whole.choices[0].message

    return conversation(given, reply)


@case("vLLM's neutral settings as extra_body")
def _(given: Given) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": given.content}]
    extra = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "ignore_eos": False}
    return [ask(given, messages, top_p=1, extra_body=extra).choices[0].message.content]


class Report(BaseModel):
    kind: Literal["tile", "smear"]
    cells: int = Field(ge=0, le=12)
    note: str | None = Field(max_length=12)


@case("response_format: a pydantic model, a JSON schema; streamed")
def _(given: Given) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": given.content}]
    schema = {"name": "report", "strict": True, "schema": Report.model_json_schema()}
    texts = []
    for kind in (Report, {"type": "json_schema", "json_schema": schema}):
        texts.append(ask(given, messages, response_format=kind).choices[0].message.content)
    chunks = list(ask(given, messages, response_format=Report, stream=True))
    whole: Any = litellm.stream_chunk_builder(chunks, messages=messages)
    texts.append(whole.choices[0].message.content)
    assert len({Report.model_validate_json(text).model_dump_json() for text in texts}) == 1
    return []


@case("top_p=0.9", refused="top_p")
def _(given: Given) -> list[str]:
    ask(given, [{"role": "user", "content": given.content}], top_p=0.9)
    return []
