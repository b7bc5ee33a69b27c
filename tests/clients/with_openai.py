"""`openai`: a dialogue whose own answer is fed back as the object that it came as."""

from typing import Any

from cases import Given, case
from openai import OpenAI


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


@case("tools", refused="tools")
def _(given: Given) -> list[str]:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [{"role": "user", "content": given.content}]
    with client(given) as asked:
        asked.chat.completions.create(model=given.model, messages=messages, tools=[tool])
    return []


@case("response_format json_schema (parse)", refused="response_format.type")
def _(given: Given) -> list[str]:
    from pydantic import BaseModel

    class Reply(BaseModel):
        answer: str

    messages: Any = [{"role": "user", "content": given.content}]
    with client(given) as asked:
        asked.chat.completions.parse(model=given.model, messages=messages, response_format=Reply)
    return []
