"""Requests side by side, as on a GPU, against each alone: the same answers."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medv_kernels.reference import Selection
from medv_ray.data.prompts import load_tokenizer
from medv_ray.diffusion.canvas import Canvas
from medv_ray.diffusion.sampler import Denoising
from medv_ray.engine import Answer, Engine, Predictor, Request, denoisers, running
from medv_ray.engine.denoisers import RowByRow, SideBySide
from medv_ray.engine.running import RequestState, RunningBatches
from medv_ray.errors import DataError, SettingsError
from medv_ray.model import weights
from medv_ray.model.batched import Batched
from medv_ray.model.medv import Medv
from medv_ray.settings import AnswerSettings, EngineSettings, SamplerSettings
from tests.unit.engine.conftest import png
from tests.unit.no_reads import no_reads

SIZES = {"gen_length": 8, "block_length": 4, "steps": 8}
SAMPLERS = {
    "exact": {},
    "two a step": {"steps": 4},
    "threshold": {"rule": "threshold", "threshold": 0.3},
    "factor": {"rule": "factor", "factor": 1.0},
    "turbo": {"preset": "turbo", "threshold": 0.3},
    "refresh": {"cache": "dual", "refresh_interval": 3},
    "more steps than tokens": {"steps": 16, "cache": "dual"},
    "temperature": {"temperature": 1.0, "cache": "dual"},
    "keyed": {"temperature": 1.0, "noise": "keyed"},
    "guided": {"cfg_scale": 1.5, "cache": "dual", "refresh_interval": 3},
    "random": {"remasking": "random"},
    "independent": {"remasking": "independent", "cfg_scale": 0.5},
    "reference noise": {"temperature": 0.7, "noise": "reference", "remasking": "random"},
    "llada_v": {"rule": "factor_llada_v", "factor": 2.0},
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
    def said(answer: Answer | DataError) -> object:
        if isinstance(answer, DataError):
            return answer.code
        return (answer.token_ids, answer.token_step, answer.finish, answer.forward_passes)

    return [said(answer) for answer in got] == [said(answer) for answer in want]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_answers_are_those_of_requests_alone(
    folder: Path, model: Medv, sampler: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(**sampler)
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
        positions = one.counters.positions
    with predictor(folder, model, together=True) as many:
        monkeypatch.setattr(RowByRow, "propose", lambda *_: pytest.fail("a row is alone"))
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
    of another refresh interval have a batch of their own."""
    kinds = [requests(cache="dual", refresh_interval=interval)[1:] for interval in (3, 2)]
    asked = [*kinds[0], *kinds[1]]
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    assert not same(want[:4], want[4:])
    monkeypatch.setattr(RowByRow, "propose", lambda *_: pytest.fail("a row is alone"))
    with predictor(folder, model, together=True, slots=10) as many:
        got: dict[int, Answer | DataError] = {}
        for request in asked:
            many.engine.admit(request)
            got |= dict(many.engine.step())
        while not many.engine.idle:
            got |= dict(many.engine.step())
    assert same([answer for _, answer in sorted(got.items())], want)


def test_rows_of_other_steps_and_thresholds_share_a_batch(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [requests(cache="dual", steps=steps)[0] for steps in (4, 8, 2)]
    asked += [requests(rule="threshold", threshold=sure)[0] for sure in (0.3, 0.9)]
    made = []
    real = SideBySide.__init__
    monkeypatch.setattr(
        SideBySide, "__init__", lambda self, *args: (made.append(1), real(self, *args))[1]
    )
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    with predictor(folder, model, together=True, slots=8) as many:
        assert same(many.answer(asked), want)
    assert len(made) == 2, "a cache and a rule"


def test_a_prompt_that_just_does_not_fit_gets_a_batch_with_more_room(
    folder: Path, model: Medv
) -> None:
    with predictor(folder, model, together=True) as many:
        long = Request("x" * 240, (), sampler=requests()[0].sampler)
        many.engine.admit(requests()[0])
        many.engine.admit(long)
        many.engine.step()
        rooms = [
            batch.denoiser._batches[0].prompt_room  # type: ignore[union-attr]
            for batch in many.engine._batches.all()
        ]
        assert len(many.engine._running[1].embeds) > 256
    assert rooms == [256, 512]


@pytest.mark.parametrize("sampler", [{}, {"cache": "dual"}, {"temperature": 1.0}])
def test_pinned_and_allowed_tokens(folder: Path, model: Medv, sampler: dict[str, object]) -> None:
    """With other requests beside them, the same as alone; a pinned token counts as certain."""
    canvases = [None, Canvas({0: 65, 5: 66}), Canvas({}, {2: {70, 71}}), Canvas({7: 3}, {1: {9}})]
    asked = [
        replace(request, canvas=canvas, seed=n)
        for n, (request, canvas) in enumerate(zip(requests(**sampler), canvases, strict=False))
    ]
    with predictor(folder, model, together=False) as one, predictor(folder, model, True) as many:
        want, got = one.answer(asked), many.answer(asked)
    assert same(got, want)
    for answer, request in zip(got, asked, strict=True):
        assert isinstance(answer, Answer)
        assert answer.last is not None
        canvas = request.canvas or Canvas()
        for i, token in canvas.pinned.items():
            assert answer.last.ids[i] == token
            assert (answer.last.confidence[i], answer.last.token_step[i]) == (1.0, -1)
        for i, tokens in canvas.allowed.items():
            assert answer.last.ids[i] in (None, *tokens)


def test_a_canvas_that_does_not_fit_is_refused_when_it_comes(folder: Path, model: Medv) -> None:
    with predictor(folder, model, together=True) as many:
        with pytest.raises(SettingsError, match="E1001: pinned: position 8 "):
            many.engine.admit(Request("why?", canvas=Canvas({8: 5})))
        assert many.engine.idle


def test_kinds_that_are_computed_alone_go_beside_them(folder: Path, model: Medv) -> None:
    asked = requests()[:2] + requests(cache="prefix")[:3] + requests(cache="dual")[:2]
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    with predictor(folder, model, True, slots=8) as many:
        assert same(many.answer(asked), want)
        kinds = [type(batch.denoiser) for batch in many.engine._batches.all()]
    assert set(kinds) == {RowByRow, SideBySide}


@pytest.mark.parametrize("sampler", [{}, {"cache": "dual"}, {"cache": "dual", "steps": 16}])
def test_a_row_that_predicts_the_mask_token_goes_on(
    folder: Path, model: Medv, sampler: dict[str, object]
) -> None:
    """Its block ends with masks left, which compete with the next one's."""
    asked = requests(**sampler)
    with predictor(folder, model, together=True) as many, predictor(folder, model, False) as one:
        mask = many.engine.spec(SamplerSettings(**SIZES)).mask_id
        raised = model.lm_head.weight[mask].clone()
        try:
            with torch.no_grad():
                model.lm_head.weight[mask] *= 8  # large for about half of the positions
            for predictor_ in (many, one):
                predictor_.engine._head = model.head
            got, want = many.answer(asked), one.answer(asked)
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


def test_memory_bounds_the_rows_of_a_batch(folder: Path, model: Medv) -> None:
    """Prompts of another length wait until a batch is empty; one request alone always fits."""
    asked = requests(cache="dual")
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    one_row = Batched.kept_bytes(model, 2 * running.LEAST_ROOM + 8)
    waits = []
    for limit in (0, 2 * one_row, 2**30):
        with predictor(folder, model, True, slots=4, kv_cache_bytes=limit) as many:
            assert same(many.answer(asked), want)
            assert 0 < many.engine._batches.nbytes <= max(limit, 2 * one_row)
            waits.append(many.counters.memory_waits)
    assert waits[0] > waits[1] > waits[2] == 0


def test_all_batches_share_one_budget(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(cache="dual")[:2] + requests(cache="prefix")[:2]
    asked += requests(cache="dual")[2:4]
    with predictor(folder, model, together=False) as one:
        want = one.answer(asked)
    limit = Batched.kept_bytes(model, 2 * running.LEAST_ROOM + 8)  # of one row
    most = 0
    with predictor(folder, model, True, slots=4, kv_cache_bytes=limit) as many:
        engine = many.engine
        enter = RunningBatches.enter

        def counted(self: RunningBatches, state: RequestState, num_rows: int) -> bool:
            nonlocal most
            entered = enter(self, state, num_rows)
            most = max(most, self.nbytes)
            return entered

        monkeypatch.setattr(RunningBatches, "enter", counted)
        assert same(many.answer(asked), want)
        assert engine.counters.memory_waits > 0
    assert 0 < most <= limit


SHORT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    torch.AcceleratorError("CUDA error: out of memory", 2),
    MemoryError(),
]


@pytest.mark.parametrize("short", SHORT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_every_lack_of_memory_halves_what_runs_and_answers_all(
    folder: Path, model: Medv, short: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, left = requests(cache="dual")[:4], [1]
    with predictor(folder, model, together=True, slots=4) as many:
        want = many.answer(asked)
        window = Batched.window

        def once(self: Batched, *args: object) -> torch.Tensor:
            if left:
                left.pop()
                raise short
            return window(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Batched, "window", once)
        assert same(many.answer(asked), want)
        assert many.counters.memory_shortages == 1
        assert many.engine._most == 2


def test_a_lost_gpu_is_nobodys_fault(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context is gone: no request can be found to blame, and trying again is no use."""
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)
    with predictor(folder, model, together=True) as many:
        for _ in range(2):
            many.engine.admit(requests()[0])
        many.engine.step()

        def fails(*_: object) -> None:
            raise lost

        monkeypatch.setattr(Batched, "full", fails)
        with pytest.raises(torch.AcceleratorError):
            many.engine.step()
        assert many.engine.give_up() is None


def test_out_of_memory_halves_the_slots(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = requests()
    full = Batched.full

    def narrow(self: Batched, rows: Sequence[int], x: torch.Tensor) -> torch.Tensor:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return full(self, rows, x)

    with predictor(folder, model, together=True, slots=5) as many:
        want = many.answer(asked)
        monkeypatch.setattr(Batched, "full", narrow)
        with caplog.at_level(logging.WARNING):
            assert same(many.answer(asked), want)
        assert many.counters.memory_shortages == 1
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: 2 requests together from now on"
    ]


def test_a_batch_that_does_not_fit_waits_for_the_others(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*requests(cache="prefix")[:1], *requests()[:1]]
    with predictor(folder, model, together=True) as many:
        want = many.answer(asked)
        real = SideBySide.__init__

        def narrow(self: SideBySide, *args: object) -> None:
            if many.engine._running:
                raise torch.OutOfMemoryError("CUDA out of memory")
            real(self, *args)  # type: ignore[arg-type]

        many.engine._batches.clear()
        monkeypatch.setattr(SideBySide, "__init__", narrow)
        assert same(many.answer(asked), want)
        assert many.counters.memory_shortages == 1


def test_a_request_is_not_lost_when_its_batch_does_not_fit(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: SideBySide, *args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with predictor(folder, model, together=True) as many:
        ticket = many.engine.admit(requests()[0])
        with monkeypatch.context() as short:
            short.setattr(SideBySide, "__init__", none)
            with pytest.raises(torch.OutOfMemoryError):
                many.engine.step()
        assert not many.engine.idle
        ended: dict[int, object] = {}
        while not many.engine.idle:
            ended |= dict(many.engine.step())
        assert isinstance(ended[ticket], Answer)


def test_a_client_that_leaves_takes_no_further_step(folder: Path, model: Medv) -> None:
    """And those beside it go on."""
    asked = requests(cache="dual")[:3]
    with predictor(folder, model, together=True) as many:
        want = many.answer(asked)
        tickets = [many.engine.admit(request) for request in asked]
        many.engine.step()
        before = many.engine.view(tickets[1])
        passes = many.counters.forward_passes
        many.engine.cancel(tickets[1])
        ended = dict(many.engine.step())
        assert many.counters.forward_passes == passes + 2
        got = ended.pop(tickets[1])
        assert isinstance(got, Answer)
        assert got.finish == "cancelled"
        assert before is not None
        assert got.last == before
        while not many.engine.idle:
            ended |= dict(many.engine.step())
        assert same([ended[tickets[0]], ended[tickets[2]]], [want[0], want[2]])


def test_cancelling_frees_the_row(folder: Path, model: Medv) -> None:
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
    graph = denoisers.Captured()
    for _ in range(4):
        graph.run(lambda: ran.append("record" if recording[0] else "run"))
    assert ran == ["run", "record", "replay", "replay", "replay"]


def test_a_capture_that_fails_leaves_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a step would be replayed."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graph, calls = denoisers.Captured(), 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    graph.run(step)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            graph.run(step)


@pytest.mark.parametrize("sampler", [{}, {"cache": "dual"}])
def test_a_dropped_batch_frees_its_memory_at_once(
    folder: Path, model: Medv, sampler: dict[str, object]
) -> None:
    """The collector may come minutes later, and a new batch needs the room now."""
    gc.disable()
    try:
        with predictor(folder, model, together=True) as many:
            many.engine.admit(requests(**sampler)[0])
            many.engine.step()
            (batch,) = many.engine._batches.all()
            assert isinstance(batch.denoiser, SideBySide)
            if sampler:  # the second call would record
                batch.denoiser._graph = denoisers.Captured()
                many.engine.step()
                assert batch.denoiser._graph._warm
                batch.denoiser._graph = None
            kept = weakref.ref(batch.denoiser._batches[0])
            while not many.engine.idle:
                many.engine.step()
            del batch
            many.engine._batches.clear()
            assert kept() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("guided", [0.0, 1.5])
def test_what_is_recorded_reads_nothing(
    folder: Path, model: Medv, guided: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the step that a CUDA graph holds, but for the choice of tokens: that is a kernel's."""
    asked = requests(cache="dual", cfg_scale=guided, stop=("i",))[:3]
    with predictor(folder, model, together=True) as many:
        want = many.answer(asked)
        head = model.head.detach()

        def choose(rows: torch.Tensor, *_: object, **more: object) -> Selection:
            logits = rows @ head.T
            return Selection(logits.argmax(1), logits.amax(1).double())

        class Recorded:
            steps = 0

            def run(self, step: Callable[[], None]) -> None:
                with monkeypatch.context() as patch, no_reads():
                    patch.setattr("medv_ray.diffusion.sampler.select", choose)
                    step()
                Recorded.steps += 1
                step()  # what is used

        (denoiser,) = [b.denoiser for b in many.engine._batches.all() if b.empty][-1:]
        assert isinstance(denoiser, SideBySide)
        monkeypatch.setattr(denoiser, "_graph", Recorded())
        for batch in many.engine._batches.all():
            batch.denoiser._graph = denoiser._graph  # type: ignore[union-attr]
        got = many.answer(asked)
    assert Recorded.steps > 3
    if not guided:
        assert same(got, want)


def test_rows_out_of_the_graph_share_a_pass(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has tokens of its own to take; and where nothing is left, nothing is chosen."""
    asked = [replace(requests(cache="dual")[0], seed=n) for n in range(4)]
    chosen: list[int] = []
    real, windows = Denoising.propose, []

    def propose(self: Denoising, hidden: torch.Tensor, *more: object) -> None:
        chosen.append(len(hidden))
        real(self, hidden, *more)  # type: ignore[arg-type]

    window = Batched.window
    monkeypatch.setattr(Denoising, "propose", propose)
    monkeypatch.setattr(
        Batched,
        "window",
        lambda self, x, *more: (windows.append(len(x)), window(self, x, *more))[1],
    )
    with predictor(folder, model, together=True, slots=4) as many:
        many.answer(asked)
        assert 0 not in chosen
        assert set(windows) == {4}
        windows.clear()
        asked[2] = replace(asked[2], canvas=Canvas({}, {1: {70, 71}}))
        many.answer(asked)
        assert set(windows) == {4}


@pytest.mark.parametrize("empty", range(7))
def test_few_empty_batches_are_kept(model: Medv, empty: int) -> None:
    batches = RunningBatches(model, EngineSettings(), together=True)
    for number in range(empty):
        batches._batches[number] = SimpleNamespace(empty=True)  # type: ignore[assignment]
    batches._drop_empty(running.MOST_EMPTY)
    most = running.MOST_EMPTY
    assert list(batches._batches) == list(range(max(0, empty - most), empty))


def test_empty_batches_give_way_before_rows_do(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    with predictor(folder, model, together=True, slots=4) as many:
        many.answer(requests(cache="dual")[:1])
        made = SideBySide.__init__

        def narrow(self: SideBySide, *args: object) -> None:
            if many.engine._batches.all():
                raise torch.OutOfMemoryError("CUDA out of memory")
            made(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(SideBySide, "__init__", narrow)
        many.answer(requests(temperature=0.5)[:1])
        (batch,) = many.engine._batches.all()
        assert len(batch.denoising.rows) == 4
        assert many.counters.memory_shortages == 0


def test_who_is_alone_gets_what_nobody_uses(
    folder: Path, model: Medv, monkeypatch: pytest.MonkeyPatch
) -> None:
    with predictor(folder, model, together=True) as many:
        many.answer(requests(cache="dual")[:1])
        full = Batched.full

        def short(self: Batched, *args: object) -> torch.Tensor:
            if len(many.engine._batches.all()) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return full(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Batched, "full", short)
        (answer,) = many.answer(requests(cfg_scale=0.5)[:1])
        assert isinstance(answer, Answer)

        def always(self: Batched, *args: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        many.answer(requests(cache="dual")[:1])
        monkeypatch.setattr(Batched, "full", always)
        with pytest.raises(torch.OutOfMemoryError):
            many.answer(requests(cfg_scale=0.5)[:1])


def test_memory_that_is_short_in_a_capture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving the capture raises an error of its own over it."""

    @contextlib.contextmanager
    def record(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise torch.AcceleratorError("operation failed due to a previous error", 901)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    graph, calls = denoisers.Captured(), []

    def step() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    graph.run(step)
    with pytest.raises(torch.OutOfMemoryError):
        graph.run(step)


def test_a_step_that_no_graph_takes_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and computed at every call."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    recording, ran = [False], []

    @contextlib.contextmanager
    def record(*_: object, **__: object) -> Iterator[None]:
        recording[0] = True
        try:
            yield
        finally:
            recording[0] = False
            raise torch.AcceleratorError("operation failed due to a previous error", 901)

    def step() -> None:
        if recording[0]:
            raise torch.AcceleratorError("operation not permitted when stream is capturing", 900)
        ran.append(1)

    monkeypatch.setattr(torch.cuda, "graph", record)
    graph = denoisers.Captured()
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            graph.run(step)
    assert len(ran) == 4
    assert not graph.ready
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph of a step with cache=dual (AcceleratorError): slower"
    ]
