"""The thread that steps: who is told what when requests come, leave, fail, or all is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medv_ray.engine import Answer, Request
from medv_ray.engine.request import Counters, View
from medv_ray.errors import DataError, MedvError, RunError, SettingsError
from medv_ray.serving.app import make_app
from medv_ray.serving.guard import App
from medv_ray.serving.scheduler import Event, Scheduler
from medv_ray.serving.service import Service
from tests.unit.serving.client import Connection, Reply, ask, ask_all, encoded, get
from tests.unit.serving.conftest import NO_KEYS, settings_of, until

SECRET = "Erika-Mustermann-4711"


class FakeEngine:
    """Answers a question with itself after three steps; some words in it do more.

    `raise`: the step fails. `memory`: for want of memory. `gpu`: the GPU is lost. `bad`: a bad row.
    `admit`, `defect`: refused when it comes, by the rules or by a defect. `slow`: a step waits for
    `goes_on`.
    """

    def __init__(self, slots: int = 1) -> None:
        self.counters = Counters()
        self.goes_on = threading.Event()
        self.waiting: list[tuple[int, Request]] = []
        self.running: dict[int, tuple[Request, int]] = {}
        self.cancelled: list[int] = []
        self.threads: set[int] = set()
        self.closed = False
        self.slots, self._tickets = slots, 0

    def admit(self, request: Request) -> int:
        self.threads.add(threading.get_ident())
        if request.question == "admit":
            raise SettingsError("E1001", "not so.")
        if request.question == "defect":
            raise KeyError(SECRET)
        self._tickets += 1
        self.waiting.append((self._tickets, request))
        return self._tickets

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)
        self.waiting = [entry for entry in self.waiting if entry[0] != ticket]
        self.running.pop(ticket, None)

    def give_up(self) -> int | None:
        if len(self.running) != 1:
            return None
        (ticket,) = self.running
        self.running.clear()
        return ticket

    def step(self) -> list[tuple[int, Answer | DataError]]:
        self.threads.add(threading.get_ident())
        self.counters.forward_passes += 1
        while self.waiting and len(self.running) < self.slots:
            ticket, request = self.waiting.pop(0)
            self.running[ticket] = (request, 0)
        ended: list[tuple[int, Answer | DataError]] = []
        for ticket, (request, step) in list(self.running.items()):
            if request.question == "raise" and step:
                raise ValueError(SECRET)
            if request.question == "memory":
                raise torch.OutOfMemoryError(SECRET)
            if request.question == "gpu":
                raise torch.AcceleratorError(SECRET)
            if request.question == "slow":
                self.goes_on.wait(10)
            self.running[ticket] = (request, step + 1)
            if request.question == "bad":
                ended.append((ticket, DataError("E1301", "the question is empty.")))
            elif step == 2:
                text = request.question
                ended.append((ticket, Answer(text, (1,), (0.5,), (0,), 3, 0.1, "stop")))
        for ticket, _ in ended:
            del self.running[ticket]
        return ended

    def view(self, ticket: int) -> View | None:
        found = self.running.get(ticket)
        return None if found is None else View(found[1], ("a",), (0.5,), (1,), (0,))

    def spec(self, settings: Any) -> Any:
        return SimpleNamespace(stop_ids=())

    def text(self, ids: Any) -> str:
        return ""

    def placed(self, template: Any, sampler: Any) -> None:
        return None

    def token_text(self, token: int) -> str:
        return "a"

    def close(self) -> None:
        self.closed = True


class Told(list[Event]):
    """What a request has been told."""

    @property
    def end(self) -> Event | None:
        return next((event for event in self if not isinstance(event, View)), None)


Asking = Callable[..., Told]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def scheduler(engine: FakeEngine) -> Iterator[Scheduler]:
    made = Scheduler({"m": engine})  # type: ignore[dict-item]
    yield made
    engine.goes_on.set()
    made.close()


@pytest.fixture
def asking(scheduler: Scheduler) -> Asking:
    def ask_(question: str, watched: bool = False) -> Told:
        caught = Told()
        caught.job = scheduler.submit("m", Request(question), caught.append, watched)  # type: ignore[attr-defined]
        return caught

    return ask_


def text_of(caught: Told) -> str:
    until(lambda: caught.end is not None)
    assert isinstance(caught.end, Answer)
    return caught.end.text


def code_of(caught: Told) -> str:
    until(lambda: caught.end is not None)
    assert isinstance(caught.end, MedvError)
    assert SECRET not in str(caught.end)
    return caught.end.code


def test_each_gets_its_own_answer(asking: Asking, engine: FakeEngine, scheduler: Scheduler) -> None:
    caught = [asking(str(i)) for i in range(50)]
    assert [text_of(one) for one in caught] == [str(i) for i in range(50)]
    assert [len(one) for one in caught] == [1] * 50
    assert scheduler.ongoing == 0
    assert engine.threads == {scheduler._thread.ident}
    assert scheduler.counters()["forward_passes"] == 150


def test_who_watches_gets_every_step_once(asking: Asking) -> None:
    caught = asking("a", watched=True)
    text_of(caught)
    assert [event.step for event in caught if isinstance(event, View)] == [1, 2]
    assert isinstance(caught[-1], Answer)


def test_many_threads_at_once(scheduler: Scheduler) -> None:
    answers: dict[int, str] = {}

    def client(number: int) -> None:
        for i in range(20):
            caught = Told()
            job = scheduler.submit("m", Request(f"{number}-{i}"), caught.append, i % 2 == 0)
            if i % 5 == 4:
                scheduler.cancel(job)
                continue
            assert text_of(caught) == f"{number}-{i}"
        answers[number] = "done"

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 12
    until(lambda: scheduler.ongoing == 0)


def test_cancelling_frees_the_engine_at_the_next_step(
    asking: Asking, engine: FakeEngine, scheduler: Scheduler
) -> None:
    slow, waiting, third = asking("slow"), asking("b"), asking("c")
    until(lambda: engine.counters.forward_passes == 1)
    for one in (slow, waiting):
        scheduler.cancel(one.job)  # type: ignore[attr-defined]
        scheduler.cancel(one.job)  # type: ignore[attr-defined]
    engine.goes_on.set()
    assert text_of(third) == "c"
    assert engine.counters.forward_passes == 4
    assert engine.cancelled == [1, 2], "once each"
    assert slow == waiting == [], "nothing is told any more"
    scheduler.cancel(third.job)  # type: ignore[attr-defined]
    assert text_of(asking("d")) == "d"
    assert engine.cancelled == [1, 2]


def test_a_request_that_fails_alone_costs_only_itself(
    asking: Asking, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        caught = [asking(q) for q in ("a", "raise", "b", "memory", "c", "bad", "admit", "d")]
        assert code_of(caught[1]) == "E1509"
        assert code_of(caught[3]) == "E1306"
        assert code_of(caught[5]) == "E1301"
        assert code_of(caught[6]) == "E1001"
        assert [text_of(caught[i]) for i in (0, 2, 4, 7)] == ["a", "b", "c", "d"]
    assert [sum(not isinstance(e, View) for e in one) for one in caught] == [1] * 8
    assert scheduler.failed is None
    assert scheduler.ongoing == 0
    assert SECRET not in caplog.text


def test_a_defect_while_a_request_comes_costs_only_that_one(
    asking: Asking, scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caught = [asking("a"), asking("defect"), asking("b")]
    assert code_of(caught[1]) == "E1509"
    assert [text_of(caught[0]), text_of(caught[2])] == ["a", "b"]
    assert scheduler.failed is None
    assert SECRET not in caplog.text


@pytest.mark.parametrize("fatal", ["gpu", "two"])
def test_when_all_is_lost_everybody_is_told(fatal: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(slots=2)
    service = Service(settings_of(), {"m": engine})  # type: ignore[dict-item]
    scheduler = service.scheduler
    assert service.health() is None
    caught = []
    for question in ("slow", "gpu" if fatal == "gpu" else "raise", "c", "d"):
        caught.append(Told())
        scheduler.submit("m", Request(question), caught[-1].append, False)
    until(lambda: engine.counters.forward_passes == 1 or scheduler.failed is not None)
    engine.goes_on.set()
    assert [code_of(one) for one in caught] == ["E1708"] * 4
    until(lambda: not scheduler._thread.is_alive())
    assert scheduler.failed in ("AcceleratorError", "ValueError")
    assert scheduler.failed in str(service.health())
    assert SECRET not in caplog.text + str(service.health())
    late = Told()
    scheduler.submit("m", Request("late"), late.append, False)
    assert code_of(late) == "E1708"
    future = scheduler.call("m", lambda engine: 1)
    assert future.cancelled()
    reply = get(make_app(service, NO_KEYS), "/health")
    assert (reply.status, reply.error["code"]) == (503, "E1708")
    service.close()


def test_a_step_that_is_stuck_is_seen(engine: FakeEngine) -> None:
    service = Service(settings_of(stuck_seconds=0.1), {"m": engine})  # type: ignore[dict-item]
    caught = Told()
    service.scheduler.submit("m", Request("slow"), caught.append, False)
    assert service.health() is None
    until(lambda: service.health() is not None)
    assert "denoising step" in str(service.health())
    engine.goes_on.set()
    text_of(caught)
    until(lambda: service.health() is None)
    time.sleep(0.15)
    assert service.health() is None, "waiting for work is no step"
    service.close()


def test_work_between_two_steps(scheduler: Scheduler, asking: Asking, engine: FakeEngine) -> None:
    slow = asking("slow")
    future = scheduler.call("m", lambda given: (given is engine, threading.get_ident()))
    assert not future.done()
    engine.goes_on.set()
    assert future.result(5) == (True, scheduler._thread.ident)

    def fails(given: Any) -> None:
        raise RunError("E1708", "no.")

    with pytest.raises(RunError):
        scheduler.call("m", fails).result(5)
    left = scheduler.call("m", lambda given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        left.result(5)
    assert text_of(slow) == "slow"


def test_calls_that_never_end_hold_up_no_answer(
    scheduler: Scheduler, asking: Asking, engine: FakeEngine
) -> None:
    """Several clients who move over an answer's tokens: there is always another call."""
    ended = threading.Event()

    def again(given: Any) -> None:
        if not ended.wait(0.001):
            scheduler.call("m", again)

    for _ in range(3):
        scheduler.call("m", again)
    assert text_of(asking("a")) == "a"
    assert scheduler.stuck_s() < 1
    ended.set()


def test_a_call_without_memory(scheduler: Scheduler, asking: Asking) -> None:
    def fails(given: Any) -> None:
        raise torch.OutOfMemoryError(SECRET)

    with pytest.raises(RunError, match="E1306") as caught:
        scheduler.call("m", fails).result(5)
    assert SECRET not in str(caught.value)
    assert text_of(asking("a")) == "a"


def test_calls_end_with_the_thread(
    scheduler: Scheduler, asking: Asking, engine: FakeEngine
) -> None:
    def lost(given: Any) -> None:
        raise torch.AcceleratorError(SECRET)

    slow = asking("slow")
    calls = [scheduler.call("m", work) for work in (lost, print)]
    engine.goes_on.set()
    with pytest.raises(torch.AcceleratorError):
        calls[0].result(5)
    until(lambda: calls[1].cancelled())
    assert scheduler.call("m", print).cancelled()
    assert code_of(slow) == "E1708"
    assert scheduler.failed == "AcceleratorError"


def test_several_engines_take_turns() -> None:
    engines = {name: FakeEngine() for name in "ab"}
    scheduler = Scheduler(engines)  # type: ignore[arg-type]
    caught = {name: Told() for name in "ab"}
    for name in "ab":
        for i in range(3):
            scheduler.submit(name, Request(f"{name}{i}"), caught[name].append, False)
    until(lambda: all(len(one) == 3 for one in caught.values()))
    for name in "ab":
        assert [e.text for e in caught[name] if isinstance(e, Answer)] == [
            f"{name}{i}" for i in range(3)
        ]
    scheduler.close()
    assert all(engine.closed for engine in engines.values())


def test_whoever_is_left_at_the_end_is_told(engine: FakeEngine) -> None:
    scheduler = Scheduler({"m": engine})  # type: ignore[dict-item]
    caught = [Told(), Told(), Told()]
    for one, question in zip(caught, ("slow", "b", "c"), strict=True):
        scheduler.submit("m", Request(question), one.append, False)
    until(lambda: engine.counters.forward_passes == 1)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    engine.goes_on.set()
    closing.join(5)
    assert [code_of(one) for one in caught] == ["E1708"] * 3
    assert engine.closed
    late = Told()
    scheduler.submit("m", Request("late"), late.append, False)
    assert code_of(late) == "E1708"


def test_events_for_a_loop_that_is_closed_are_dropped(service: Service, app: App) -> None:
    """A client's event loop ended while its request was in the engine."""
    from medv_ray.serving.scheduler import sink_to

    loop = asyncio.new_event_loop()
    service.scheduler.submit("medv-tiny", Request("hello?"), sink_to(loop, print), True)
    loop.close()
    until(lambda: service.scheduler.ongoing == 0)
    assert service.health() is None
    body = {"model": "medv-tiny", "messages": [{"role": "user", "content": "hello?"}]}
    assert ask(app, body).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_failures_over_http(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    service = Service(settings_of(), {"m": engine})  # type: ignore[dict-item]
    app = make_app(service, NO_KEYS)

    def body(question: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": "m", "messages": messages, "stream": stream}

    with caplog.at_level(logging.DEBUG):
        replies = ask_all(
            app, [body(q) for q in ("a", "memory", "b", "bad", "admit", "defect", "c")]
        )
        codes = [200 if reply.status == 200 else reply.error["code"] for reply in replies]
        assert codes == [200, "E1306", 200, "E1301", "E1001", "E1509", 200]
        assert [r.status for r in replies] == [200, 503, 200, 400, 400, 500, 200]
        failed = ask(app, body("raise"))
        if stream:  # after its first event
            last = failed.body.decode().strip().rpartition("data: ")[2]
            assert '"code": "E1509"' in last or '"code":"E1509"' in last
            assert b"[DONE]" not in failed.body
            assert failed.ended
        else:
            assert (failed.status, failed.error["code"]) == (500, "E1509")
        assert ask(app, body("d")).status == 200
    assert SECRET not in caplog.text + str(replies) + str(failed)
    service.close()


def test_an_inspection_is_told_that_the_replica_ends() -> None:
    engine = FakeEngine()
    service = Service(settings_of(), {"m": engine})  # type: ignore[dict-item]
    app = make_app(service, NO_KEYS)
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    begun = threading.Event()

    def stuck(_: Any) -> None:
        begun.set()
        engine.goes_on.wait(10)

    async def run() -> Reply:
        service.scheduler.call("m", stuck)
        asking = Connection(encoded({**body, "tokens": [None], "position": 0}), path="/v1/inspect")
        task = asyncio.ensure_future(asking.run(app))
        await asyncio.to_thread(begun.wait, 10)
        await asyncio.sleep(0.1)
        closing = asyncio.ensure_future(asyncio.to_thread(service.close))
        await asyncio.sleep(0.05)
        engine.goes_on.set()
        await closing
        return await asyncio.wait_for(task, 10)

    reply = asyncio.run(run())
    assert (reply.status, reply.error["code"]) == (503, "E1708")
    assert "is ending" in reply.error["message"]
