"""`pydantic-ai`: an Agent with text output."""

import asyncio
from contextlib import suppress
from typing import Any

from cases import Given, case
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, NativeOutput, UnexpectedModelBehavior
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(given: Given, **more: Any) -> Agent[None, Any]:
    provider = OpenAIProvider(base_url=given.url, api_key=given.key)
    return Agent(OpenAIChatModel(given.model, provider=provider), retries=0, **more)


def question(given: Given) -> list[Any]:
    return [given.first, BinaryContent(given.data, media_type="image/jpeg")]


@case("multi-turn, message_history")
def _(given: Given) -> list[str]:
    asked = agent(given)
    first = asked.run_sync(question(given))
    second = asked.run_sync(given.second, message_history=first.all_messages())
    return [first.output, second.output]


@case("multi-turn, streamed")
def _(given: Given) -> list[str]:
    async def run() -> list[str]:
        asked, history, texts = agent(given), None, []
        for prompt in (question(given), given.second):
            async with asked.run_stream(prompt, message_history=history) as stream:
                texts.append(await stream.get_output())
                history = stream.all_messages()
        return texts

    return asyncio.run(run())


@case("system prompt and instructions")
def _(given: Given) -> list[str]:
    asked = agent(given, system_prompt=("Be brief.", "Be kind."), instructions="Look closely.")
    first = asked.run_sync(question(given))
    with suppress(UnexpectedModelBehavior):  # what it calls an empty answer, the toy's here
        asked.run_sync(given.second, message_history=first.all_messages())
    return []


@case("structured output, NativeOutput")
def _(given: Given) -> list[str]:
    class Reply(BaseModel):
        bright: bool
        cells: int = Field(ge=0, le=12)

    found = agent(given, output_type=NativeOutput(Reply)).run_sync(question(given)).output
    assert isinstance(found, Reply)
    return []


@case("structured output (by tools)", refused="tool_choice")
def _(given: Given) -> list[str]:
    class Reply(BaseModel):
        answer: str

    agent(given, output_type=Reply).run_sync(question(given))
    return []
