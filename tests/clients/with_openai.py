"""`openai`: a dialogue whose own answer is fed back as the object that it came as."""

import json
import time
from typing import Any, Literal

from cases import Given, case
from openai import OpenAI
from pydantic import BaseModel, Field


def client(given: Given) -> OpenAI:
    return OpenAI(base_url=given.url, api_key=given.key, max_retries=0)


def dialogue(given: Given, back: Any) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": given.content}]
    texts = []
    with client(given) as asked:
        for following in (given.second, None):
            answer = asked.chat.completions.create(model=given.model, messages=messages)
            texts.append(answer.choices[0].message.content)
            messages += [back(answer.choices[0].message), {"role": "user", "content": following}]
    return texts


@case("multi-turn, the message object fed back")
def _(given: Given) -> list[str]:
    return dialogue(given, lambda message: message)


@case("multi-turn, message.model_dump() fed back")
def _(given: Given) -> list[str]:
    return dialogue(given, lambda message: message.model_dump())


@case("multi-turn, streamed")
def _(given: Given) -> list[str]:
    messages: list[Any] = [{"role": "user", "content": given.content}]
    texts = []
    with client(given) as asked:
        for following in (given.second, None):
            with asked.chat.completions.stream(model=given.model, messages=messages) as stream:
                final = stream.get_final_completion()
            texts.append(final.choices[0].message.content)
            messages += [final.choices[0].message, {"role": "user", "content": following}]
    return texts


@case("responses.create, its output items fed back")
def _(given: Given) -> list[str]:
    picture = {"type": "input_image", "image_url": given.data_url, "detail": "auto"}
    asked: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": given.first}, picture]}
    ]
    with client(given) as ours:
        first = ours.responses.create(model=given.model, input=asked)
        asked += [*first.output, {"role": "user", "content": given.second}]
        with ours.responses.stream(model=given.model, input=asked) as stream:
            second = stream.get_final_response()
    return [first.output_text, second.output_text]


@case("files and batches, from upload to delete")
def _(given: Given) -> list[str]:
    body = {"model": given.model, "messages": [{"role": "user", "content": given.content}]}
    url = "/v1/chat/completions"
    line = {"custom_id": "one", "method": "POST", "url": url, "body": body}
    with client(given) as ours:
        file = ours.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = ours.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            time.sleep(0.2)
            batch = ours.batches.retrieve(batch.id)
        answer = json.loads(ours.files.content(batch.output_file_id or "").text)
        assert [one.id for one in ours.batches.list()][0] == batch.id
        for one in list(ours.files.list()):
            assert ours.files.delete(one.id).deleted
    return [answer["response"]["body"]["choices"][0]["message"]["content"]]


@case("tools", refused="tools")
def _(given: Given) -> list[str]:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [{"role": "user", "content": given.content}]
    with client(given) as asked:
        asked.chat.completions.create(model=given.model, messages=messages, tools=[tool])
    return []


class Report(BaseModel):
    kind: Literal["tile", "smear"]
    cells: int = Field(ge=0, le=12)
    note: str | None = Field(max_length=12)


@case("parse and stream of a pydantic model, by chat and by responses")
def _(given: Given) -> list[str]:
    messages: Any = [{"role": "user", "content": given.content}]
    asked: Any = {"model": given.model, "messages": messages, "response_format": Report}
    with client(given) as ours:
        whole = ours.chat.completions.parse(**asked).choices[0].message
        with ours.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0].message
        response = ours.responses.parse(model=given.model, input=given.first, text_format=Report)
    assert isinstance(whole.parsed, Report)
    assert streamed.parsed == whole.parsed
    assert isinstance(response.output_parsed, Report)
    return []


@case("choices with top_logprobs")
def _(given: Given) -> list[str]:
    messages: Any = [{"role": "user", "content": given.content}]
    with client(given) as asked:
        reply = asked.chat.completions.create(
            model=given.model, messages=messages, logprobs=True, top_logprobs=2,
            extra_body={"diffusion": {"choices": ["yes", "no"]}},
        )  # fmt: skip
    [choice] = reply.choices
    assert choice.logprobs is not None
    [token] = choice.logprobs.content or []
    assert {one.token for one in token.top_logprobs} == {"yes", "no"}
    assert choice.message.content == token.token
    return []


@case("response_format json_object", refused="response_format.type")
def _(given: Given) -> list[str]:
    messages: Any = [{"role": "user", "content": given.content}]
    kind: Any = {"type": "json_object"}
    with client(given) as asked:
        asked.chat.completions.create(model=given.model, messages=messages, response_format=kind)
    return []
