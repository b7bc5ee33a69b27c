"""`instructor`: its modes that need no tools. The toy does not write JSON; that the request is
taken, and its answer read and fed back with what was wrong with it, is what is tried."""

from typing import Any

import instructor
from cases import Given, case
from openai import OpenAI
from pydantic import BaseModel


class Reply(BaseModel):
    answer: str


def ask(given: Given, mode: instructor.Mode, retries: int = 0) -> Any:
    raw = OpenAI(base_url=given.url, api_key=given.key, max_retries=0)
    asked = instructor.from_openai(raw, mode=mode)
    messages: Any = [{"role": "user", "content": given.content}]
    return asked.chat.completions.create(
        model=given.model, messages=messages, response_model=Reply, max_retries=retries
    )


@case("no response_model: multi-turn")
def _(given: Given) -> list[str]:
    raw = OpenAI(base_url=given.url, api_key=given.key, max_retries=0)
    asked = instructor.from_openai(raw, mode=instructor.Mode.MD_JSON)
    messages: Any = [{"role": "user", "content": given.content}]
    texts = []
    for following in (given.second, None):
        answer = asked.chat.completions.create(
            model=given.model, messages=messages, response_model=None
        )
        texts.append(answer.choices[0].message.content)
        message = answer.choices[0].message.model_dump()  # it takes no objects here
        messages += [message, {"role": "user", "content": following}]
    return texts


@case("MD_JSON: the request is taken (the toy's answer is no JSON)")
def _(given: Given) -> list[str]:
    try:
        ask(given, instructor.Mode.MD_JSON, retries=1)
    except Exception as error:
        if "E1701" in str(error):
            raise
    return []


@case("JSON_SCHEMA")
def _(given: Given) -> list[str]:
    assert isinstance(ask(given, instructor.Mode.JSON_SCHEMA), Reply)
    return []


@case("JSON", refused="response_format.type")
def _(given: Given) -> list[str]:
    ask(given, instructor.Mode.JSON)
    return []


@case("TOOLS", refused="tool_choice")
def _(given: Given) -> list[str]:
    ask(given, instructor.Mode.TOOLS)
    return []
