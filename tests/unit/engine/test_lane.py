"""Requests side by side, as on a GPU, against each with a door of its own: the same answers."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from medv_ray.data.prompts import load_tokenizer
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.engine import Answer, Engine, Predictor, Request
from medv_ray.engine import lane as lanes
from medv_ray.errors import DataError
from medv_ray.model import weights
from medv_ray.model.medv import Medv
from medv_ray.model.slots import Slots
from medv_ray.settings import AnswerSettings, EngineSettings, SamplerSettings
from tests.unit.engine.conftest import png

SIZES = {"gen_length": 8, "block_length": 4, "steps": 8}
SAMPLERS = {
    "exact": {},
    "two a step": {"steps": 4},
    "threshold": {"rule": "threshold", "threshold": 0.3},
    "factor": {"rule": "factor", "factor": 1.0},
    "turbo": {"preset": "turbo", "threshold": 0.3},
    "refresh": {"cache": "dual", "refresh_interval": 3},
}


@pytest.fixture(scope="module")
def model(folder: Path) -> Medv:
    """With layers that speak up: as it was made, it says one token whatever is asked."""
    made = weights.load(folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("model.layers") or name == "model.norm.weight":
                parameter.fill_(2.0) if parameter.ndim == 1 else parameter.mul_(2)
    return made


def predictor(
    folder: Path, model: Medv, together: bool, slots: int = 3, **engine: int
) -> Predictor:
    sampler = SamplerSettings(**SIZES, stop=())
    answer, limits = AnswerSettings(sampler=sampler), EngineSettings(slots=slots, **engine)
    return Predictor(Engine(model, load_tokenizer(folder), answer, limits, together=together))


def requests(**sampler: object) -> list[Request]:
    """Prompts of many lengths, with and without pictures."""
    words = ["why?", "is there a lesion in the picture?", "x" * 60, "left or right", "a" * 200]
    settings = SamplerSettings(**{**SIZES, "stop": ("i", ">"), **sampler})  # type: ignore[arg-type]
    return [
        Request(word, (png(n),) if n % 2 else (), sampler=settings) for n, word in enumerate(words)
    ]


def same(got: Sequence[Answer | DataError], want: Sequence[Answer | DataError]) -> bool:
    def told(answer: Answer | DataError) -> object:
        if isinstance(answer, DataError):
            return answer.code
        return (answer.token_ids, answer.token_step, answer.finish, answer.forward_passes)

    return [told(answer) for answer in got] == [told(answer) for answer in want]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_answers_are_those_of_requests_alone(
    folder: Path, model: Medv, sampler: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(**sampler)
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
        positions = one.counters.positions
    with predictor(folder, model, together=True) as many:
        monkeypatch.setattr(
            "medv_ray.engine.slot.forward_rows", lambda *_: pytest.fail("not in a lane")
        )
        got = many.answer(asked)
        assert many.counters.positions == positions
    assert same(got, want)
    for a, b in zip(got, want, strict=True):
        assert isinstance(a, Answer)
        assert isinstance(b, Answer)
        assert a.token_confidence == pytest.approx(b.token_confidence, rel=1e-4)


def test_rows_that_stand_at_different_steps(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row enters at every step, so that some are computed whole and others in windows; and those
    of another refresh interval have a lane of their own."""
    kinds = [requests(cache="dual", refresh_interval=interval)[1:] for interval in (3, 2)]
    asked = [*kinds[0], *kinds[1]]
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    assert not same(want[:4], want[4:])
    monkeypatch.setattr(
        "medv_ray.engine.slot.forward_rows", lambda *_: pytest.fail("not in a lane")
    )
    with predictor(folder, model, together=True, slots=10) as many:
        got: dict[int, Answer | DataError] = {}
        for request in asked:
            many.engine.admit(request)
            got |= dict(many.engine.step())
        while not many.engine.idle:
            got |= dict(many.engine.step())
    assert same([answer for _, answer in sorted(got.items())], want)


def test_a_prompt_that_just_does_not_fit_gets_a_larger_lane(model: Medv) -> None:
    spec = SampleSpec(8, 4, 8, mask_id=1)
    made = lanes.Lanes(model, 2**30)
    for length, places in ((256, 256), (257, 512)):
        prompt = torch.zeros(length, model.head.shape[1])
        row = made.enter(spec, SamplerSettings(**SIZES), prompt, 1)
        assert row is not None
        assert row._lane.slots.prompt_places == places
        row.leave()


def test_kinds_that_lanes_cannot_do_go_beside_them(folder: Path, model: Medv) -> None:
    asked = requests()
    asked += requests(temperature=1.0) + requests(cache="prefix") + requests(cfg_scale=1.0)
    with predictor(folder, model, together=False) as one, predictor(folder, model, True) as many:
        assert same(many.answer(asked), one.answer(asked))


def test_a_row_that_predicts_the_mask_token_is_handed_back(folder: Path, model: Medv) -> None:
    """Its block ends with masks left, which a lane does not go on with."""
    with predictor(folder, model, together=True) as many, predictor(folder, model, False) as one:
        mask = many.engine.spec(SamplerSettings(**SIZES)).mask_id
        raised = model.lm_head.weight[mask].clone()
        try:
            with torch.no_grad():
                model.lm_head.weight[mask] *= 8  # large for about half of the positions
            for predictor_ in (many, one):
                predictor_.engine._head = model.head
            got, want = many.answer(requests()), one.answer(requests())
        finally:
            with torch.no_grad():
                model.lm_head.weight[mask] = raised
    assert any(isinstance(a, Answer) and len(a.token_ids) < 8 for a in want), "masks are left"
    assert same(got, want)


def test_a_row_that_is_not_finite_ends_alone(folder: Path, model: Medv) -> None:
    with predictor(folder, model, together=True) as many:
        asked = requests()
        want = many.answer(asked)
        broken = Request("why?", (png(1),), sampler=asked[0].sampler)
        features = many.engine._images.get(png(1), False)
        with torch.inference_mode():
            features.tokens.fill_(torch.nan)
        got = many.answer([*asked[:1], broken, *asked[2:3]])
    assert isinstance(got[1], DataError)
    assert got[1].code == "E1305"
    assert "at step 0" in str(got[1])
    assert same([got[0], got[2]], [want[0], want[2]])


def test_memory_bounds_the_slots_of_a_lane(folder: Path, model: Medv) -> None:
    """Longer prompts make a new lane once the old one is empty; one request alone always fits."""
    asked = requests(cache="dual")
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    one_slot = Slots.kept_bytes(model, 2 * lanes.LEAST_PLACES + 8)
    waits = []
    for limit in (0, 2 * one_slot, 2**30):
        with predictor(folder, model, True, slots=4, kv_cache_bytes=limit) as many:
            assert same(many.answer(asked), want)
            taken = many.engine._lanes._lanes.values()  # type: ignore[union-attr]
            assert 0 < sum(lane.slots.nbytes for lane in taken) <= max(limit, 2 * one_slot)
            waits.append(many.counters.memory_waits)
    assert waits[0] > waits[1] > waits[2] == 1, "one alone; two; all but for a longer prompt"


def test_lanes_and_doors_share_one_budget(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(cache="dual")[:2] + requests(cache="prefix")[:2]
    asked += requests(cache="dual")[2:4]
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    limit = Slots.kept_bytes(model, 2 * lanes.LEAST_PLACES + 8)  # of one slot
    most = 0
    with predictor(folder, model, True, slots=4, kv_cache_bytes=limit) as many:
        engine = many.engine
        enter = Engine._enter

        def counted(self: Engine, slot: object) -> bool:
            nonlocal most
            entered = enter(self, slot)  # type: ignore[arg-type]
            doors = sum(s.kv_bytes for s in [*self._slots, slot] if entered or s is not slot)  # type: ignore[union-attr]
            most = max(most, doors + self._lanes.nbytes())  # type: ignore[union-attr]
            return entered

        monkeypatch.setattr(Engine, "_enter", counted)
        assert same(many.answer(asked), want)
        assert engine.counters.memory_waits > 0
    assert 0 < most <= limit


def test_out_of_memory_halves_the_slots(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = requests()
    full = Slots.full

    def narrow(self: Slots, slots: Sequence[int], x: torch.Tensor) -> torch.Tensor:
        if len(slots) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return full(self, slots, x)

    with predictor(folder, model, together=True, slots=5) as many:
        want = many.answer(asked)
        monkeypatch.setattr(Slots, "full", narrow)
        with caplog.at_level(logging.WARNING):
            assert same(many.answer(asked), want)
        assert many.counters.memory_shortages == 1
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: 2 requests together from now on"
    ]


def test_a_lane_that_does_not_fit_waits_for_the_others(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*requests(temperature=1.0)[:1], *requests()[:1]]
    with predictor(folder, model, together=True) as many:
        want = many.answer(asked)
        full = lanes.Lane.__init__

        def narrow(self: lanes.Lane, *args: object) -> None:
            if many.engine._slots:
                raise torch.OutOfMemoryError("CUDA out of memory")
            full(self, *args)  # type: ignore[arg-type]

        many.engine._lanes.clear()  # type: ignore[union-attr]
        monkeypatch.setattr(lanes.Lane, "__init__", narrow)
        assert same(many.answer(asked), want)
        assert many.counters.memory_shortages == 1


def test_a_request_is_not_lost_when_its_lane_does_not_fit(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: lanes.Lane, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with predictor(folder, model, together=True) as many:
        ticket = many.engine.admit(requests()[0])
        with monkeypatch.context() as short:
            short.setattr(lanes.Lane, "__init__", none)
            with pytest.raises(torch.OutOfMemoryError):
                many.engine.step()
        assert not many.engine.idle
        ended: dict[int, object] = {}
        while not many.engine.idle:
            ended |= dict(many.engine.step())
        assert isinstance(ended[ticket], Answer)


def test_cancelling_frees_the_slot(folder: Path, model: Medv) -> None:
    with predictor(folder, model, together=True, slots=1) as many:
        first, second = (many.engine.admit(request) for request in requests()[:2])
        assert many.engine.step() == []
        assert many.engine.view(first) is not None
        many.engine.cancel(first)
        ended = dict(many.engine.step())
        assert ended[first].finish == "cancelled"  # type: ignore[union-attr]
        while not many.engine.idle:
            ended |= dict(many.engine.step())
        assert ended[second].finish in ("stop", "length")  # type: ignore[union-attr]
        watched = list(many.watch(requests()[1]))
        assert len(watched[0].tokens) == 8
        assert watched[-1].answer is not None
        assert same([watched[-1].answer], [ended[second]])


def test_a_captured_step_runs_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call as it is; the second is recorded, which computes nothing, and replayed."""
    ran: list[str] = []
    recording = [False]

    class Graph:
        def replay(self) -> None:
            ran.append("replay")

    @contextlib.contextmanager
    def record(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        recording[0] = True
        yield
        recording[0] = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graph = lanes.Captured()
    for _ in range(4):
        graph.run(lambda: ran.append("record" if recording[0] else "run"))
    assert ran == ["run", "record", "replay", "replay", "replay"]


def test_a_capture_that_fails_leaves_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a step would be replayed."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graph, calls = lanes.Captured(), 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    graph.run(step)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            graph.run(step)


@pytest.mark.parametrize("dual", [False, True])
def test_a_dropped_lane_frees_its_memory_at_once(model: Medv, dual: bool) -> None:
    """The collector may come minutes later, and a new lane needs the room now."""
    spec = SampleSpec(8, 4, 8, mask_id=1)
    gc.disable()
    try:
        lane = lanes.Lane(model, spec, 2, 16, None, dual)
        lane._graph = lanes.Captured() if dual else None
        lane.enter(model.embed(torch.tensor([5, 6])).detach())
        lane.step()
        kept = weakref.ref(lane.slots)
        del lane
        assert kept() is None
    finally:
        gc.enable()
