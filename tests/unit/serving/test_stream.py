"""Denoising as a stream tells it, and streams whose clients leave."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from medv_ray.engine import Answer, Predictor, Request
from medv_ray.serving.completions import Completion
from medv_ray.serving.exchange import Exchange
from medv_ray.serving.guard import App
from medv_ray.serving.protocol import ChatRequest, parse
from medv_ray.serving.service import Service
from medv_ray.settings import SamplerSettings
from tests.unit.serving.client import (
    Connection,
    ask,
    ask_all,
    body_of,
    encoded,
    said,
    tiles,
)
from tests.unit.serving.conftest import until

pytestmark = pytest.mark.integration

DENOISE = {"stream": True, "stream_options": {"include_denoise": True, "include_usage": True}}
CAPTION = {"gen_length": 24, "block_length": 24, "steps": 24}
SAMPLERS: list[dict[str, Any]] = [
    {},
    CAPTION,
    {"gen_length": 24, "block_length": 8, "steps": 12, "temperature": 0.8},
    {**CAPTION, "preset": "fast"},
    {**CAPTION, "preset": "turbo"},
    {**CAPTION, "stop": [",", "<|eot_id|>"]},
    {**CAPTION, "stop": []},
    {"gen_length": 16, "block_length": 8, "steps": 16, "remasking": "random", "suffix": " end"},
]
WARM = {**CAPTION, "temperature": 0.8}
LONG = {"gen_length": 256, "block_length": 256, "steps": 256, "stop": []}
IDENTITY = {"x-request-id": "r-1", "x-medv-created": "1700000000"}


def direct(predictor: Predictor, number: int, seed: int, changes: dict[str, Any]) -> Answer:
    row = tiles()[number]
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8).changed(changes)
    (answer,) = predictor.answer([Request(row.question, (row.image,), seed=seed, sampler=sampler)])
    assert isinstance(answer, Answer), answer
    return answer


@pytest.mark.parametrize("changes", SAMPLERS)
@pytest.mark.parametrize("number", [0, 1])
def test_every_commit_is_told_once_and_makes_up_the_answer(
    app: App, predictor: Predictor, changes: dict[str, Any], number: int
) -> None:
    want = direct(predictor, number, 4, changes)
    reply = ask(app, body_of(tiles()[number], seed=4, diffusion=changes, **DENOISE))
    assert reply.status == 200
    assert said(reply) == want.text
    shown: dict[int, tuple[int, int, float]] = {}
    steps = []
    for event in [one["denoise"] for one in reply.events if "denoise" in one]:
        assert (event["index"], event["length"]) == (0, changes.get("gen_length", 8))
        steps.append(event["step"])
        for one in event["committed"]:
            assert one["position"] not in shown, "once"
            shown[one["position"]] = (one["token_id"], event["step"], one["confidence"])
            assert one["token"]
    assert steps == sorted(set(steps))
    masked = [place for place, step in enumerate(want.token_step) if step >= 0]
    assert shown.keys() >= set(masked)
    for place in masked:
        token, step, confidence = shown[place]
        assert (token, step) == (want.token_ids[place], want.token_step[place])
        assert confidence == pytest.approx(want.token_confidence[place], abs=1e-6)
    assert all(0 <= place < changes.get("gen_length", 8) for place in shown)


def test_a_delta_never_comes_before_the_step_that_allows_it(app: App) -> None:
    """What is said is the text of positions that have been told, from the left."""
    reply = ask(app, body_of(tiles()[1], diffusion=CAPTION, **DENOISE))
    known: dict[int, str] = {}
    text = ""
    for event in reply.events:
        for one in event.get("denoise", {}).get("committed", []):
            known[one["position"]] = one["token"]
        for choice in event["choices"]:
            text += choice["delta"].get("content", "")
        left = ""
        for place in range(24):
            if place not in known:
                break
            left += known[place]
        assert left.lstrip().startswith(text)


MORE: list[dict[str, Any]] = [{}, {"n": 3}, {"logprobs": True, "stop": [","]}]


@pytest.mark.parametrize(("number", "changes"), list(enumerate(SAMPLERS)))
def test_the_same_request_gives_the_same_bytes(
    app: App, number: int, changes: dict[str, Any]
) -> None:
    more = MORE[number % 3]
    body = body_of(tiles()[1], seed=11, diffusion=changes, **DENOISE, **more)
    first = ask(app, body, headers=IDENTITY)
    assert first.events[0]["id"] == "chatcmpl-r-1"
    assert {event["created"] for event in first.events} == {1700000000}
    others = [body_of(tiles()[i % 8], seed=i) for i in range(5)]
    again, *_ = ask_all(app, [body, *others], headers=IDENTITY)
    assert again.body == first.body


def test_ids_are_new_and_odd_ones_are_not_taken(app: App) -> None:
    seen = set()
    for given in (
        {},
        {},
        {"x-request-id": "a b"},
        {"x-request-id": "x" * 65},
        {"x-request-id": ""},
    ):
        reply = ask(app, body_of(), headers=given)
        found = reply.json()["id"].removeprefix("chatcmpl-")
        assert len(found) == 32
        seen.add(found)
    assert len(seen) == 5
    for created in ("-1", "abc", "9" * 12, "٣"):
        shown = ask(app, body_of(), headers={"x-medv-created": created.encode().decode("latin-1")})
        assert 1.6e9 < shown.json()["created"] < 1e11


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", ["at once", "soon"])
def test_who_leaves_frees_the_engine(app: App, service: Service, stream: bool, when: str) -> None:
    before = service.scheduler.counters()["forward_passes"]

    async def leave() -> None:
        body = encoded(body_of(stream=stream, n=4, diffusion=LONG))
        connection = Connection(body)
        task = asyncio.ensure_future(connection.run(app))
        while connection.taken < len(body):
            await asyncio.sleep(0.001)
        while when == "soon" and service.scheduler.counters()["forward_passes"] < before + 3:
            await asyncio.sleep(0.001)
        connection.left.set()
        await asyncio.wait_for(task, 5)
        assert b"DONE" not in connection.reply.body

    asyncio.run(leave())
    until(lambda: service.scheduler.ongoing == 0, 3)
    spent = service.scheduler.counters()["forward_passes"] - before
    assert spent < 200, "of 1024"
    assert ask(app, body_of()).status == 200


@pytest.mark.parametrize("later", range(4))
def test_who_leaves_as_an_event_comes_has_left(service: Service, later: int) -> None:
    async def run() -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(anext(service._events(queue, 1, time.monotonic() + 60)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        queue.put_nowait((0, "an event"))
        for _ in range(later):
            await asyncio.sleep(0)
        if task.cancel():  # else it had come before
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_no_proxy_gathers_a_stream(app: App) -> None:
    """nginx reads this header."""
    assert ask(app, body_of(stream=True)).headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in ask(app, body_of()).headers


def test_many_leave_and_no_place_is_lost(service: Service, limited: Any) -> None:
    app = limited(ongoing=4)

    async def leave(seconds: float) -> None:
        connection = Connection(encoded(body_of(stream=True, diffusion=LONG)))
        task = asyncio.ensure_future(connection.run(app))
        await asyncio.sleep(seconds)
        connection.left.set()
        await asyncio.wait_for(task, 5)

    async def everybody() -> None:
        for round_ in range(10):
            await asyncio.gather(*(leave(0.003 * (round_ + i)) for i in range(4)))

    asyncio.run(everybody())
    until(lambda: service.scheduler.ongoing == 0, 3)
    replies = ask_all(app, [body_of() for _ in range(4)])
    assert [reply.status for reply in replies] == [200] * 4


def test_a_stream_that_nobody_reads_is_not_held_in_the_way(app: App, service: Service) -> None:
    """The engine does not wait for a client's network."""

    async def run() -> None:
        slow = Connection(encoded(body_of(tiles()[1], stream=True, diffusion=CAPTION)))
        goes_on = asyncio.Event()
        send = slow.send

        async def stalled(message: Any) -> None:
            if message["type"] == "http.response.body":
                await goes_on.wait()
            await send(message)

        slow.send = stalled  # type: ignore[method-assign]
        task = asyncio.ensure_future(slow.run(app))
        other = await Connection(encoded(body_of())).run(app)
        assert other.status == 200
        while service.scheduler.ongoing:
            await asyncio.sleep(0.005)
        goes_on.set()
        reply = await task
        assert json.loads(encoded(reply.events[-1]))["choices"][0]["finish_reason"]

    asyncio.run(run())


def test_choices_come_one_after_the_other_however_they_were_stepped(
    service: Service, predictor: Predictor
) -> None:
    """Side by side on one replica, one by one on the next: a stream goes on with the same bytes."""
    sampler = SamplerSettings(gen_length=8, block_length=8, steps=8).changed(WARM)
    row = tiles()[1]
    requests = [Request(row.question, (row.image,), seed=i, sampler=sampler) for i in range(3)]
    asked = parse(ChatRequest, encoded(body_of(row, n=3, **DENOISE)))

    async def seen() -> list[list[Any]]:
        found: list[list[Any]] = [[], [], []]
        async with service.asked("medv-tiny", requests, True, time.monotonic()) as events:
            async for number, one in events:
                found[number].append(one)
        return found

    by_choice = asyncio.run(seen())
    assert all(len(one) > 5 for one in by_choice)

    def streamed(order: list[int]) -> bytes:
        left = [iter(one) for one in by_choice]

        @asynccontextmanager
        async def replayed(*_: Any) -> AsyncIterator[AsyncIterator[Any]]:
            async def events() -> AsyncIterator[Any]:
                for number in order:
                    yield number, next(left[number])

            yield events()

        async def run() -> bytes:
            fake: Any = SimpleNamespace(asked=replayed, settings=service.settings)
            said = Completion(asked, service.model("medv-tiny"), [0, 1, 2], sampler, "r", 1)
            response: Any = await Exchange(fake, said, requests, 0.0).streamed(AsyncExitStack())
            return b"".join([part async for part in response.body_iterator])

        return asyncio.run(run())

    one_by_one = [number for number in range(3) for _ in by_choice[number]]
    want = streamed(one_by_one)
    assert want.endswith(b"[DONE]\n\n")
    assert want.rindex(b'"index":0') < want.index(b'"index":1')
    for seed in range(5):
        shuffled = random.Random(seed).sample(one_by_one, len(one_by_one))
        assert streamed(shuffled) == want
