"""OpenAI's Responses API: its own client, the order of its events, its fields by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import responses as types
from openai.types.responses import response_create_params as params
from openai.types.responses.response_input_item_param import Message as InputMessage

from medv_ray.serving.guard import App
from medv_ray.serving.neutral import OF_INPUT_PART, OF_ITEM, OF_RESPONSES
from medv_ray.serving.responses import (
    InputImage,
    InputItem,
    InputText,
    OutputText,
    ResponsesRequest,
    ResponseStreamOptions,
    TextConfig,
)
from tests.unit.serving.client import KEY, MODEL, ask, body_of, message, tiles, url_of
from tests.unit.serving.test_forms import Report
from tests.unit.serving.test_neutral import DOCS, names, taken

pytestmark = pytest.mark.integration

RESPONSES = "/v1/responses"
BEGINNING = [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added",
]  # fmt: skip
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
LONG = {"diffusion": {"gen_length": 24, "block_length": 24, "steps": 24}}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def picture(number: int = 0) -> dict[str, Any]:
    row = tiles()[number]
    parts = [
        {"type": "input_image", "image_url": url_of(row.image), "detail": "auto"},
        {"type": "input_text", "text": row.question},
    ]
    return {"role": "user", "content": parts}


def respond(app: App, asked: Any, **fields: Any) -> Any:
    return ask(app, {"model": MODEL, "input": asked, **fields}, path=RESPONSES)


def test_answers_are_a_chats(client: OpenAI, app: App) -> None:
    row = next(row for row in tiles() if row.question_type == "caption")
    number = tiles().index(row)
    chat = ask(app, body_of(row, **LONG)).json()
    want = chat["choices"][0]["message"]["content"]
    given: Any = {"model": MODEL, "input": [picture(number)], "extra_body": LONG}
    got = client.responses.create(**given, metadata={"a": "b"})
    assert got.output_text == want != ""
    assert (got.status, got.store, got.metadata) == ("completed", False, {"a": "b"})
    assert got.usage is not None
    used = (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens)
    assert used == tuple(chat["usage"].values())
    assert got.model_extra is not None
    assert got.model_extra["medv"] == chat["medv"]
    events = list(client.responses.create(**given, stream=True))
    kinds = [event.type for event in events]
    middle = len(kinds) - len(BEGINNING) - len(END) - 1
    delta = "response.output_text.delta"
    assert kinds == [*BEGINNING, *[delta] * middle, *END, "response.completed"]
    assert middle >= 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == delta) == want
    last = events[-1]
    assert isinstance(last, types.ResponseCompletedEvent)
    assert last.response.output_text == want
    assert {event.item_id for event in events if event.type == delta} == {
        last.response.output[0].id
    }
    with client.responses.stream(**given) as stream:
        assert stream.get_final_response().output_text == want


def test_a_dialogue_with_the_answers_own_items_sent_back(client: OpenAI, app: App) -> None:
    one, two = tiles()[0], tiles()[1]
    first = client.responses.create(model=MODEL, input=[picture()], instructions="Be brief.")  # type: ignore[list-item]
    again: Any = [picture(), *first.output, {"role": "user", "content": two.question}]
    second = client.responses.create(model=MODEL, input=again, instructions="Be brief.")
    messages = [
        {"role": "system", "content": "Be brief."},
        message(one.question, one.image),
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": two.question},
    ]
    chat = ask(app, {"model": MODEL, "messages": messages}).json()
    assert second.output_text == chat["choices"][0]["message"]["content"]
    seeded: Any = {"input": "What is shown?", "store": False, "extra_body": {"seed": 3}}
    plain = client.responses.create(model=MODEL, **seeded)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is shown?"}], "seed": 3}
    assert plain.output_text == ask(app, body).json()["choices"][0]["message"]["content"]


def test_a_full_response_is_incomplete(app: App) -> None:
    row = next(row for row in tiles() if row.question_type == "caption")
    number = tiles().index(row)
    got = respond(app, [picture(number)], max_output_tokens=2).json()
    assert got["status"] == "incomplete"
    assert got["incomplete_details"] == {"reason": "max_output_tokens"}
    assert got["usage"]["output_tokens"] <= 2
    assert got["max_output_tokens"] == 2
    reply = respond(app, [picture(number)], max_output_tokens=2, stream=True)
    *_, last = [one for one in reply.body.decode().split("\n\n") if one]
    name, data = last.split("\n")
    assert name == "event: response.incomplete"
    assert json.loads(data.removeprefix("data: "))["response"]["status"] == "incomplete"


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "store": ({"store": True}, "E1701", "store"),
    "previous": ({"previous_response_id": "resp_1"}, "E1701", "previous_response_id"),
    "tools": ({"tools": [{"type": "web_search"}]}, "E1701", "tools"),
    "schema": ({"text": {"format": {"type": "grammar"}}}, "E1701", "text.format.type"),
    "length": ({"max_output_tokens": 9999}, "E1701", "max_output_tokens"),
    "no text": ({"input": ""}, "E1301", "input.content"),
    "nothing": ({"input": []}, "E1701", "input"),
    "last": ({"input": [{"role": "assistant", "content": "x"}]}, "E1701", "input.0.role"),
    "part": ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "E1701",
             "input.0.content.0"),
    "phase": ({"input": [{"role": "user", "content": "x", "phase": "y"}]}, "E1701",
              "input.0.phase"),
    "call": ({"input": [{"type": "function_call_output"}]}, "E1701", "input.0.role"),
    "model": ({"model": "gpt-4"}, "E1706", "model"),
    "many": ({"input": [{"role": "user", "content": "x"}] * 4096, "instructions": "x"}, "E1701",
             "input"),
    "picture": ({"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": url_of(b"xx")}
    ]}], "instructions": "x"}, "E1202", "input.0.content.1.image_url"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_this_routes_own_names(app: App, what: str) -> None:
    fields, code, param = REFUSED[what]
    for stream in (False, True):
        error = ask(
            app, {"model": MODEL, "input": "x", "stream": stream, **fields}, path=RESPONSES
        ).error
        assert (error["code"], error["param"]) == (code, param)
        assert "messages" not in error["message"]


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_other_values_are_refused_by_the_fields_name(app: App, name: str) -> None:
    error = respond(app, "x", **{name: {"x": [1]}}).error
    assert (error["code"], error["param"]) == ("E1701", name)
    assert error["message"].startswith(f"{name}: only null")


def test_values_that_ask_for_nothing_are_taken_all_together(app: App) -> None:
    for number in (0, 1, 3):
        root, item, part = (
            {name: values[min(number, len(values) - 1)] for name, values in table.items()}
            for table in (OF_RESPONSES, OF_ITEM, OF_INPUT_PART)
        )
        content = [{"type": "input_text", "text": "x", **part}]
        reply = respond(app, [{"role": "user", "content": content, **item}], **root)
        assert reply.status == 200, reply.body


def test_every_field_of_openais_api_is_known() -> None:
    asked = names(params.ResponseCreateParamsBase) | names(params.ResponseCreateParamsStreaming)
    assert len(asked) > 30
    assert asked - taken(ResponsesRequest) == set()
    for kind in (
        *(types.EasyInputMessageParam, types.ResponseOutputMessageParam),
        *(InputMessage, types.ResponseInputMessageItem, types.ResponseOutputMessage),
    ):
        assert names(kind) - taken(InputItem) == set(), kind
    assert names(types.ResponseInputTextParam) - taken(InputText) == set()
    assert names(types.ResponseOutputTextParam) - taken(OutputText) == set()
    assert names(types.ResponseInputImageParam) - taken(InputImage) == set()
    assert names(types.ResponseTextConfigParam) - taken(TextConfig) == set()
    assert names(params.StreamOptions) - taken(ResponseStreamOptions) == set()
    for wire in (ResponsesRequest, InputItem, InputText, OutputText, InputImage):
        assert not set(wire.model_fields) & set(wire.neutral)


def test_the_docs_name_every_field_of_a_request() -> None:
    text = DOCS.read_text()
    assert [name for name in OF_RESPONSES if f"`{name}`" not in text] == []


def test_an_error_in_a_stream_is_the_clients_own(client: OpenAI, monkeypatch: Any) -> None:
    from medv_ray.errors import RunError
    from medv_ray.serving.responses import ResponsesCompletion

    def broken(*_: object) -> Any:
        raise RunError("E1708", "no answer within 1 s.")

    monkeypatch.setattr(ResponsesCompletion, "_end_chunks", broken)
    long: Any = {"model": MODEL, "input": [picture()], "stream": True, "extra_body": LONG}
    with pytest.raises(openai.APIError, match="no answer within 1 s"):
        list(client.responses.create(**long))


def test_completions_are_refused_with_a_way_out(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"/v1/chat/completions.*canvas") as refused:
        client.completions.create(model=MODEL, prompt="x", suffix="y")
    assert refused.value.code == "E1706"


def test_json_of_a_schema_by_the_clients_own_model(client: OpenAI, app: App) -> None:
    got = client.responses.parse(model=MODEL, input=[picture()], text_format=Report)  # type: ignore[list-item]
    assert got.output_parsed == Report.model_validate_json(got.output_text)
    form = {"type": "json_schema", "name": "a", "schema": {"type": "string", "format": "date"}}
    for given, param in ((form, "text.format"), ({"type": "json_schema"}, "text.format.schema")):
        reply = respond(app, "Is it?", text={"format": given})
        assert (reply.status, reply.error["param"]) == (400, param)
