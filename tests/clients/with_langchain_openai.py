"""`langchain-openai`: ChatOpenAI with the messages of langchain-core."""

from typing import Any, Literal

from cases import Given, case
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


def chat(given: Given, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=given.model, base_url=given.url, api_key=given.key, max_retries=0, **more
    )


@case("multi-turn, the AIMessage fed back")
def _(given: Given) -> list[str]:
    asked = chat(given)
    messages: list[Any] = [HumanMessage(content=given.content)]
    first = asked.invoke(messages)
    second = asked.invoke([*messages, first, HumanMessage(given.second)])
    return [first.content, second.content]


@case("multi-turn, streamed, the joined chunks fed back")
def _(given: Given) -> list[str]:
    asked = chat(given, stream_usage=True)
    messages: list[Any] = [HumanMessage(content=given.content)]
    texts = []
    for following in (given.second, ""):
        whole: Any = None
        for chunk in asked.stream(messages):
            whole = chunk if whole is None else whole + chunk
        texts.append(whole.content)
        messages += [whole, HumanMessage(following)]
    return texts


@case("langchain's own image block, text and picture as two messages")
def _(given: Given) -> list[str]:
    block = {"type": "image", "url": given.data_url, "source_type": "url"}
    messages = [HumanMessage(content=[block]), HumanMessage(given.first)]
    return [chat(given).invoke(messages).content]


@case("a system message and an empty answer in the history")
def _(given: Given) -> list[str]:
    messages = [
        SystemMessage("Be brief."), HumanMessage(content=given.content), AIMessage(""),
        HumanMessage(given.second),
    ]  # fmt: skip
    assert chat(given).invoke(messages).content
    return []


class Report(BaseModel):
    """What is seen."""

    kind: Literal["tile", "smear"]
    cells: int = Field(ge=0, le=12)
    note: str | None = Field(max_length=12)


@case("with_structured_output: a pydantic model, its schema; invoked and streamed")
def _(given: Given) -> list[str]:
    messages = [HumanMessage(content=given.content)]
    asked = chat(given).with_structured_output(Report)
    found: Any = asked.invoke(messages)
    assert isinstance(found, Report)
    assert [*asked.stream(messages)][-1] == found
    schema = chat(given).with_structured_output(Report.model_json_schema(), method="json_schema")
    assert schema.invoke(messages) == found.model_dump()
    return []


@case("with_structured_output(method='json_mode')", refused="response_format.type")
def _(given: Given) -> list[str]:
    asked = chat(given).with_structured_output(Report, method="json_mode")
    asked.invoke([HumanMessage(content=given.content)])
    return []


@case("bind_tools", refused="tools")
def _(given: Given) -> list[str]:
    def look(where: str) -> str:
        """Look somewhere."""
        return where

    chat(given).bind_tools([look]).invoke([HumanMessage(content=given.content)])
    return []
