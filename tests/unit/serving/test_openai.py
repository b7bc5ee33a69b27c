"""The `openai` client, as people use it, against a server that runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from medv_ray.data.prompts import Turn
from medv_ray.engine import Answer, Predictor, Request
from medv_ray.serving.service import Service
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import KEY, MODEL, message, tiles, url_of
from tests.unit.serving.conftest import KEYS, serving, settings_of

pytestmark = pytest.mark.integration

SHORT = SamplerSettings(gen_length=8, block_length=8, steps=8)
CAPTION = SamplerSettings(gen_length=24, block_length=24, steps=24)
WARM = SamplerSettings(gen_length=24, block_length=8, steps=24, temperature=4.0)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=30) as made:
        yield made


def direct(predictor: Predictor, request: Request) -> Answer:
    (answer,) = predictor.answer([request])
    assert isinstance(answer, Answer), answer
    return answer


def lengths(sampler: SamplerSettings) -> dict[str, Any]:
    given = {name: getattr(sampler, name) for name in ("gen_length", "block_length", "steps")}
    return {"diffusion": given | {"temperature": sampler.temperature}}


@pytest.mark.parametrize("number", range(8))
def test_answers_are_the_predictors(client: OpenAI, predictor: Predictor, number: int) -> None:
    row = tiles()[number]
    chosen = CAPTION if row.question_type == "caption" else SHORT
    want = direct(predictor, Request(row.question, (row.image,), sampler=chosen))
    messages: Any = [message(row.question, row.image)]
    got = client.chat.completions.create(
        model=MODEL, messages=messages, logprobs=True, extra_body=lengths(chosen)
    )
    (choice,) = got.choices
    assert choice.message.content == want.text != ""
    assert (choice.finish_reason, choice.message.role) == (want.finish, "assistant")
    assert got.usage is not None
    assert got.usage.prompt_tokens == want.prompt_tokens
    assert got.usage.completion_tokens == len(want.token_ids)
    assert got.usage.total_tokens == want.prompt_tokens + len(want.token_ids)
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    said = [math.exp(one.logprob) for one in choice.logprobs.content]
    assert said == pytest.approx(want.token_confidence, rel=1e-12)
    assert "".join(one.token for one in choice.logprobs.content).strip() == want.text
    assert all(bytes(one.bytes or []).decode() == one.token for one in choice.logprobs.content)
    (ours,) = got.model_extra["medv"]  # type: ignore[index]
    assert ours["confidence"] == pytest.approx(want.confidence, abs=1e-6)
    assert ours["forward_passes"] == want.forward_passes
    assert (ours["seed"], tuple(ours["warnings"])) == (0, want.warnings)


def test_models_by_their_names(client: OpenAI) -> None:
    (listed,) = client.models.list().data
    assert client.models.retrieve(MODEL).to_dict() == listed.to_dict()
    with pytest.raises(openai.NotFoundError, match="there are: medv-tiny") as refused:
        client.models.retrieve("another/one")
    assert refused.value.code == "E1706"


@pytest.mark.parametrize("sampler", [SHORT, CAPTION, WARM])
def test_a_stream_tells_the_same_text(
    client: OpenAI, predictor: Predictor, sampler: SamplerSettings
) -> None:
    for row in tiles()[:4]:  # two questions, two captions
        want = direct(predictor, Request(row.question, (row.image,), seed=3, sampler=sampler))
        messages: Any = [message(row.question, row.image)]
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                seed=3,
                extra_body=lengths(sampler),
            )
        )
        *said, usage = chunks
        assert said[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in said) == want.text
        assert [c.choices[0].finish_reason for c in said][-1] == want.finish
        assert all(c.choices[0].finish_reason is None for c in said[:-1])
        assert len({c.id for c in chunks}) == 1
        assert usage.choices == []
        assert usage.usage is not None
        assert usage.usage.completion_tokens == len(want.token_ids)


def test_clients_at_once_hear_what_each_would_alone(address: str, predictor: Predictor) -> None:
    asked = [(tiles()[i % 8], i, WARM if i % 5 == 0 else SHORT) for i in range(20)]
    want = [
        direct(predictor, Request(row.question, (row.image,), seed=seed, sampler=sampler)).text
        for row, seed, sampler in asked
    ]

    async def one(client: AsyncOpenAI, place: int) -> str:
        row, seed, sampler = asked[place]
        messages: Any = [message(row.question, row.image)]
        given: Any = {"model": MODEL, "messages": messages, "seed": seed}
        given["extra_body"] = lengths(sampler)
        if place % 3:
            whole = await client.chat.completions.create(**given)
            return str(whole.choices[0].message.content)
        stream = await client.chat.completions.create(**given, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def everybody() -> list[str]:
        async with AsyncOpenAI(
            base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60
        ) as client:
            return await asyncio.gather(*(one(client, place) for place in range(20)))

    assert asyncio.run(everybody()) == want


def test_several_choices_have_seeds_of_their_own(client: OpenAI, predictor: Predictor) -> None:
    row = tiles()[1]
    want = [
        direct(predictor, Request(row.question, (row.image,), seed=seed, sampler=WARM)).text
        for seed in (7, 8, 9)
    ]
    assert len(set(want)) > 1
    messages: Any = [message(row.question, row.image)]
    given: Any = {"model": MODEL, "messages": messages, "seed": 7, "n": 3}
    given["extra_body"] = lengths(WARM)
    got = client.chat.completions.create(**given)
    assert [choice.message.content for choice in got.choices] == want
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    assert [ours["seed"] for ours in got.model_extra["medv"]] == [7, 8, 9]  # type: ignore[index]
    said = ["", "", ""]
    for chunk in client.chat.completions.create(**given, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == want


def test_stop_texts_end_an_answer(client: OpenAI, predictor: Predictor) -> None:
    row = next(row for row in tiles() if row.question_type == "caption")
    want = direct(predictor, Request(row.question, (row.image,), sampler=CAPTION)).text
    first, _, rest = want.partition(",")
    assert rest
    messages: Any = [message(row.question, row.image)]
    given: Any = {"model": MODEL, "messages": messages, "extra_body": lengths(CAPTION)}
    for stop, kept in ((",", first), (["zzz", ", "], first), (want[:1], ""), ("zzz", want)):
        got = client.chat.completions.create(**given, stop=stop, logprobs=True).choices[0]
        assert got.message.content == kept
        assert got.finish_reason == "stop"
        assert got.logprobs is not None
        tokens = [one.token for one in got.logprobs.content or []]
        assert len(kept) <= len("".join(tokens).strip()) <= len(kept) + 8
        chunks = list(client.chat.completions.create(**given, stop=stop, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == kept
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_max_tokens_is_the_length_that_is_denoised(client: OpenAI, predictor: Predictor) -> None:
    row = next(row for row in tiles() if row.question_type == "caption")
    messages: Any = [message(row.question, row.image)]
    for name in ("max_tokens", "max_completion_tokens"):
        for number in (1, 5, 24):
            sampler = SamplerSettings(gen_length=number, block_length=number, steps=number)
            want = direct(predictor, Request(row.question, (row.image,), sampler=sampler))
            got: Any = client.chat.completions.create(
                model=MODEL, messages=messages, extra_body={name: number}
            )
            assert got.choices[0].message.content == want.text
            assert got.choices[0].finish_reason == want.finish
            assert got.usage.completion_tokens <= number


def test_a_dialogue_with_a_system_message(client: OpenAI, predictor: Predictor) -> None:
    one, two = tiles()[0], tiles()[2]
    history = (Turn("user", "What is shown?"), Turn("assistant", "a tile"))
    request = Request(one.question, (one.image, two.image), history, system="Be brief.")
    want = direct(predictor, request)
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        message("What is shown?", one.image, two.image),
        {"role": "assistant", "content": "a tile"},
        {"role": "user", "content": one.question},
    ]
    got = client.chat.completions.create(model=MODEL, messages=messages)
    assert got.choices[0].message.content == want.text
    assert got.usage is not None
    assert got.usage.prompt_tokens == want.prompt_tokens


def test_presets_are_the_samplers(client: OpenAI, predictor: Predictor) -> None:
    row = next(row for row in tiles() if row.question_type == "caption")
    messages: Any = [message(row.question, row.image)]
    passes = []
    for preset in ("exact", "fast", "turbo"):
        settings = {"gen_length": 24, "block_length": 24, "steps": 24, "preset": preset}
        sampler = SamplerSettings(**settings)  # type: ignore[arg-type]
        want = direct(predictor, Request(row.question, (row.image,), sampler=sampler))
        got = client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"diffusion": settings}
        )
        assert got.choices[0].message.content == want.text
        (ours,) = got.model_extra["medv"]  # type: ignore[index]
        assert ours["forward_passes"] == want.forward_passes
        passes.append(want.forward_passes)
    assert passes[2] < passes[0]


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == MODEL
    ours = model.model_extra["medv"]  # type: ignore[index]
    assert ours["sampler"]["gen_length"] == 8
    assert ours["limits"]["max_images"] == 4
    assert ours["presets"] == ["exact", "fast", "turbo"]


def test_errors_arrive_as_the_clients_own(client: OpenAI, address: str) -> None:
    messages: Any = [{"role": "user", "content": "hello?"}]
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, messages=messages, n=1000)
    assert (bad.value.code, bad.value.param) == ("E1701", "n")
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as bad:
        create(
            model=MODEL,
            messages=messages,
            stream=True,
            extra_body={"diffusion": {"block_length": 3}},
        )
    assert (bad.value.code, bad.value.param) == ("E1002", "diffusion")
    tool: Any = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, messages=messages, tools=[tool])
    assert (bad.value.code, bad.value.param) == ("E1701", "tools")
    with pytest.raises(openai.NotFoundError) as lost:
        create(model="gpt-4", messages=messages)
    assert lost.value.code == "E1706"
    assert MODEL in lost.value.message
    picture: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    picture[0]["content"] += [{"type": "image_url", "image_url": {"url": url_of(b"x" * 99)}}]
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, messages=picture)
    assert bad.value.code == "E1202"
    for key in ("key-of-nobody-0123456789", "x"):
        with pytest.raises(openai.AuthenticationError) as who:
            client.with_options(api_key=key).models.list()
        assert who.value.code == "E1702"


def test_too_many_at_once_is_a_rate_limit(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medv_ray.serving.app import make_app

    monkeypatch.setattr(service, "settings", settings_of(per_key=1))
    row = tiles()[0]
    messages: Any = [message(row.question, row.image)]
    given: Any = {"model": MODEL, "messages": messages}
    long: Any = {"diffusion": {"gen_length": 256, "block_length": 256, "steps": 256}}
    with serving(make_app(service, KEYS)) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=30)
        with client.chat.completions.create(**given, stream=True, extra_body=long) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as full:
                client.chat.completions.create(**given)
            assert full.value.code == "E1707"
            assert full.value.response.headers["retry-after"] == "1"
        patient = client.with_options(max_retries=8)
        assert patient.chat.completions.create(**given).choices[0].message.content
        client.close()
