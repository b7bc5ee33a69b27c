"""The table of fields: whole against OpenAI's own list, neutral values taken, others refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai.types import chat
from openai.types.chat import completion_create_params as params
from openai.types.chat.chat_completion_content_part_image_param import ImageURL

from medv_ray.on_ray.options import serve_settings
from medv_ray.serving.guard import App
from medv_ray.serving.neutral import OF_MESSAGE, OF_PART, OF_REQUEST, asks_for_nothing
from medv_ray.serving.protocol import (
    ChatRequest,
    ImagePart,
    ImageUrl,
    Message,
    StreamOptions,
    TextPart,
    Wire,
)
from tests.unit.serving.client import MODEL, ask

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
OTHER_ROLES = {"tool_call_id"}  # of messages that are refused by their role
ASKS: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"}, "function_call": {"name": "f"},
    "functions": [{"name": "f"}], "logit_bias": {"1": 1}, "modalities": ["text", "audio"],
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required",
    "web_search_options": {}, "top_p": 0.5, "top_logprobs": 5, "presence_penalty": 0.1,
    "frequency_penalty": -1, "store": True, "reasoning_effort": "low", "verbosity": "low",
    "service_tier": "flex", "prediction": {"type": "content", "content": "x"}, "top_k": 50,
    "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "best_of": 2, "min_tokens": 4,
    "guided_json": {}, "skip_special_tokens": False, "use_beam_search": True, "top_p ": None,
}  # fmt: skip


def names(kind: Any) -> set[str]:
    """Fields of a TypedDict or of a model."""
    return set(kind.__annotations__) | set(getattr(kind, "model_fields", {}))


def taken(kind: type[Wire]) -> set[str]:
    return set(kind.model_fields) | set(kind.neutral)


def test_every_field_of_openais_api_is_known() -> None:
    """One that a new version of `openai` has belongs into the table, or into the protocol."""
    asked = names(params.CompletionCreateParamsBase)
    asked |= names(params.CompletionCreateParamsStreaming)
    assert len(asked) > 30
    assert asked - taken(ChatRequest) == set()
    for kind in (
        *(chat.ChatCompletionUserMessageParam, chat.ChatCompletionAssistantMessageParam),
        *(chat.ChatCompletionSystemMessageParam, chat.ChatCompletionDeveloperMessageParam),
        *(chat.ChatCompletionMessage, chat.ChatCompletionToolMessageParam),
    ):
        assert names(kind) - taken(Message) - OTHER_ROLES == set(), kind
    for part in (chat.ChatCompletionContentPartTextParam, chat.ChatCompletionContentPartText):
        assert names(part) - taken(TextPart) == set()
    assert names(chat.ChatCompletionContentPartImageParam) - taken(ImagePart) == set()
    assert names(ImageURL) - taken(ImageUrl) == set()
    assert names(chat.ChatCompletionStreamOptionsParam) - taken(StreamOptions) == set()


def test_no_field_is_both_neutral_and_ours() -> None:
    for kind in (ChatRequest, Message, TextPart, ImagePart):
        assert not set(kind.model_fields) & set(kind.neutral)


TEXT = {"role": "user", "content": "hello?"}


def body(fields: dict[str, Any], message: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": "hello?", **part}]
    return {"model": MODEL, "messages": [{**TEXT, "content": content, **message}], **fields}


def test_values_that_ask_for_nothing_are_taken_all_together(app: App) -> None:
    want = ask(app, body({}, {}, {})).json()["choices"]
    for number in range(3):
        chosen = [
            {name: values[min(number, len(values) - 1)] for name, values in table.items()}
            for table in (OF_REQUEST, OF_MESSAGE, OF_PART)
        ]
        reply = ask(app, body(*chosen))
        assert reply.status == 200, reply.body
        assert reply.json()["choices"] == want


@pytest.mark.parametrize("name", OF_REQUEST)
def test_other_values_are_refused_by_the_fields_name(app: App, name: str) -> None:
    asks = ASKS.get(name, {"x": [1]})
    error = ask(app, body({name: asks}, {}, {})).error
    assert (error["code"], error["param"]) == ("E1701", name)
    assert error["message"].startswith(f"{name}: only null")


@pytest.mark.parametrize("name", [*OF_MESSAGE, *OF_PART])
def test_other_values_in_messages_are_refused(app: App, name: str) -> None:
    in_message = name in OF_MESSAGE
    one = {name: [{"x": 1}]}
    error = ask(app, body({}, one if in_message else {}, {} if in_message else one)).error
    where = "messages.0." if in_message else "messages.0.content.0."
    assert (error["code"], error["param"]) == ("E1701", where + name)


def test_true_is_no_number() -> None:
    assert asks_for_nothing(1.0, (None, 1))
    assert not asks_for_nothing(True, (None, 1))
    assert not asks_for_nothing(0, (None, False))
    assert not asks_for_nothing("", (None, False, 0, [], {}))


def test_the_docs_name_every_field_of_a_request() -> None:
    text = DOCS.read_text()
    assert [name for name in OF_REQUEST if f"`{name}`" not in text] == []
    ours, neutral = text.partition("OpenAI's fields:")[2].split("Clients send many other")[:2]
    neutral = neutral.partition("- In a message")[0]
    assert [name for name in ChatRequest.model_fields if f"`{name}`" not in ours] == []
    assert [name for name in ChatRequest.model_fields if f"`{name}`" in neutral] == []
    assert serve_settings({}).served_name == MODEL
    assert f'model="{MODEL}"' in DOCS.with_name("canvas.md").read_text(), "of a plain medv serve"
    assert f"the toy's: {MODEL}" in text
    for word in ("json_schema", "json_object"):
        assert word in ours, "of response_format"
