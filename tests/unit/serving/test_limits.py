"""How long and how many: 503 and 429 with Retry-After, and the engine free afterwards."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from medv_ray.engine import Engine
from medv_ray.serving.guard import App
from medv_ray.serving.service import Service
from tests.unit.serving.client import KEY, Connection, Reply, ask, ask_all, body_of, encoded, tiles
from tests.unit.serving.conftest import KEYS, until

pytestmark = pytest.mark.integration

LONG = {"gen_length": 256, "block_length": 256, "steps": 256, "stop": []}
ALICE, BOB = f"Bearer {KEY}", "Bearer key-of-bob-0123456789"
Limited = Callable[..., App]


def test_no_answer_in_time(service: Service, limited: Limited) -> None:
    app = limited(request_seconds=0.15, retry_after_s=7)
    started_s = time.monotonic()
    reply = ask(app, body_of(diffusion=LONG))
    assert (reply.status, reply.error["code"]) == (503, "E1708")
    assert reply.headers["retry-after"] == "7"
    assert "0.15 s" in reply.error["message"]
    assert time.monotonic() - started_s < 2
    until(lambda: service.scheduler.ongoing == 0, 2)
    passes = service.scheduler.counters()["forward_passes"]
    assert ask(limited(), body_of()).status == 200
    assert service.scheduler.counters()["forward_passes"] - passes <= 9


def test_a_stream_that_takes_too_long_ends_with_an_error_event(
    service: Service, limited: Limited
) -> None:
    app = limited(request_seconds=0.3)
    reply = ask(app, body_of(stream=True, diffusion=LONG))
    assert reply.status == 200
    assert reply.ended
    *_, last = reply.body.decode().strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "E1708"
    assert b"[DONE]" not in reply.body
    until(lambda: service.scheduler.ongoing == 0, 2)


def test_one_that_waits_too_long_for_a_slot(service: Service, limited: Limited) -> None:
    """Before the first event of a stream there is still a status to tell it with."""
    app = limited(request_seconds=0.3)
    replies = ask_all(app, [body_of(stream=True, diffusion=LONG) for _ in range(3)])
    assert [reply.status for reply in replies] == [200, 503, 503]
    assert [reply.error["code"] for reply in replies[1:]] == ["E1708"] * 2
    until(lambda: service.scheduler.ongoing == 0, 2)


def held(app: App, key: str = "", number: int = 1, **asked: Any) -> tuple[list[Reply], list[Reply]]:
    """Replies to `asked`, sent while long requests of a key are being answered, and after them."""
    headers = {"authorization": key} if key else {}

    async def run() -> tuple[list[Reply], list[Reply]]:
        long = [
            Connection(encoded(body_of(stream=i % 2 == 0, diffusion=LONG)), headers=headers)
            for i in range(number)
        ]
        tasks = [asyncio.ensure_future(one.run(app)) for one in long]
        while not long[0].reply.pieces:
            await asyncio.sleep(0.005)
        given = [
            Connection(encoded(body_of()), headers={"authorization": other} if other else {})
            for other in asked["keys"]
        ]
        during = await asyncio.gather(*(one.run(app) for one in given if one is given[0]))
        for one in long:
            one.left.set()
        await asyncio.gather(*tasks)
        after = await asyncio.gather(*(one.run(app) for one in given[1:]))
        return list(during), list(after)

    return asyncio.run(run())


def test_a_key_may_hold_so_many_requests(limited: Limited) -> None:
    app = limited(KEYS, per_key=2, retry_after_s=4)
    during, after = held(app, ALICE, 2, keys=[ALICE, ALICE])
    assert [reply.status for reply in (*during, *after)] == [429, 200]
    assert during[0].error["code"] == "E1707"
    assert during[0].headers["retry-after"] == "4"
    assert "alice" not in during[0].body.decode()


def test_another_key_is_not_held_up_by_it(limited: Limited) -> None:
    app = limited(KEYS, per_key=1, ongoing=2)

    async def run() -> list[int]:
        long = Connection(
            encoded(body_of(stream=True, diffusion=LONG)), headers={"authorization": ALICE}
        )
        task = asyncio.ensure_future(long.run(app))
        while not long.reply.pieces:
            await asyncio.sleep(0.005)
        bob = Connection(encoded(body_of()), headers={"authorization": BOB})
        asked = asyncio.ensure_future(bob.run(app))
        await asyncio.sleep(0.02)
        again = await Connection(encoded(body_of()), headers={"authorization": ALICE}).run(app)
        long.left.set()
        await task
        return [(await asked).status, again.status]

    assert asyncio.run(run()) == [200, 429]


def test_a_replica_holds_so_many_requests(limited: Limited) -> None:
    app = limited(ongoing=3)
    during, after = held(app, "", 3, keys=["", "", "", ""])
    assert [reply.status for reply in (*during, *after)] == [429, 200, 200, 200]
    assert during[0].error["code"] == "E1707"


def test_permits_are_counted_by_answers(limited: Limited) -> None:
    app = limited(KEYS, per_key=3, ongoing=4, max_n=8)

    async def run() -> list[int]:
        def ask(key: str, n: int, **more: Any) -> Connection:
            return Connection(encoded(body_of(n=n, **more)), headers={"authorization": key})

        long = ask(ALICE, 2, stream=True, diffusion=LONG)
        task = asyncio.ensure_future(long.run(app))
        while not long.reply.pieces:
            await asyncio.sleep(0.005)
        found = [await one.run(app) for one in (ask(ALICE, 2), ask(BOB, 3))]
        long.left.set()
        await task
        after = await asyncio.gather(*(one.run(app) for one in (ask(ALICE, 2), ask(BOB, 2))))
        return [reply.status for reply in (*found, *after)]

    assert asyncio.run(run()) == [429, 429, 200, 200]


def test_more_answers_than_there_will_ever_be_are_refused_for_good(limited: Limited) -> None:
    """429 would let the client come back for ever."""
    bearer = {"authorization": ALICE}
    for app, headers in ((limited(ongoing=3), {}), (limited(KEYS, per_key=3), bearer)):
        error = ask(app, body_of(n=4), headers=headers).error
        assert (error["code"], error["param"], error["message"]) == (
            "E1701", "n", "n: the limit is 3.",
        )  # fmt: skip
        assert ask(app, body_of(n=3), headers=headers).status == 200


def test_of_a_crowd_some_are_answered_and_the_others_told_to_come_back(
    service: Service, limited: Limited
) -> None:
    app = limited(ongoing=5)
    replies = ask_all(app, [body_of(tiles()[i % 8], stream=i % 2 == 0) for i in range(40)])
    found = [reply.status for reply in replies]
    assert set(found) == {200, 429}
    assert found.count(200) >= 5
    assert all(reply.error["code"] == "E1707" for reply in replies if reply.status == 429)
    assert [r.status for r in ask_all(app, [body_of() for _ in range(5)])] == [200] * 5


def test_who_leaves_while_a_picture_is_decoded_keeps_its_permit_until_it_is(
    service: Service, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those who come and leave would pile up pictures that nobody counts."""
    app, begun, goes_on = limited(ongoing=1), threading.Event(), threading.Event()
    decode = service.decode

    def slow(model: str, data: bytes, several: bool) -> Any:
        begun.set()
        goes_on.wait(10)
        return decode(model, data, several)

    monkeypatch.setattr(service, "decode", slow)

    async def run() -> list[int]:
        leaving = Connection(encoded(body_of()))
        task = asyncio.ensure_future(leaving.run(app))
        while not begun.is_set():
            await asyncio.sleep(0.005)
        leaving.left.set()
        await asyncio.sleep(0.02)
        during = await Connection(encoded(body_of())).run(app)
        goes_on.set()
        gone = await task
        after = await Connection(encoded(body_of())).run(app)
        return [during.status, gone.status, after.status]

    assert asyncio.run(run()) == [429, 499, 200]
    assert service.scheduler.ongoing == 0


def test_who_leaves_is_not_inspected_for(
    service: Service, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, done, goes_on = limited(ongoing=1), [], threading.Event()

    def noting(*given: Any, **named: Any) -> Any:
        done.append(named["position"])
        return inspect(*given, **named)

    inspect = Engine.inspect
    monkeypatch.setattr(Engine, "inspect", noting)
    state = {"tokens": [None] * 8, "position": 3}

    async def run() -> list[int]:
        service.scheduler.call("medv-tiny", lambda _: goes_on.wait(10))
        leaving = Connection(encoded(body_of(**state)), path="/v1/inspect")
        task = asyncio.ensure_future(leaving.run(app))
        await asyncio.sleep(0.2)
        leaving.left.set()
        gone = await task
        goes_on.set()
        after = await Connection(encoded(body_of(**state)), path="/v1/inspect").run(app)
        return [gone.status, after.status]

    assert asyncio.run(run()) == [499, 200]
    assert done == [3]


@pytest.mark.parametrize(
    "wrong", [{"n": 9}, {"model": "x"}, {"diffusion": {"steps": 0}}, {"messages": []}]
)
def test_what_is_refused_takes_no_permit(limited: Limited, wrong: dict[str, Any]) -> None:
    app = limited(ongoing=1)
    for _ in range(3):
        assert ask(app, body_of(**wrong)).status in (400, 404)
    bad = {"messages": [{"role": "user", "content": " "}]}
    for _ in range(3):
        assert ask(app, body_of(**bad)).error["code"] == "E1301"
    assert ask(app, body_of()).status == 200
