"""Many rows in one state machine: each as alone, whatever it draws, pins or may take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medv_kernels import ops
from medv_ray.diffusion.canvas import Canvas, Span
from medv_ray.diffusion.sample import answer, sample
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError
from tests.unit.no_reads import no_reads

VOCABULARY, MASK = 12, 11


def alone(
    denoiser: Any, spec: SampleSpec, seed: int = 0, canvas: Canvas | None = None
) -> Denoising:
    denoising = Denoising(spec, 1)
    generator = torch.Generator().manual_seed(seed)
    denoising.enter(0, spec, generator, denoiser.prompt, canvas)
    for _ in sample(denoiser, spec, denoising):
        pass
    return denoising


def together(
    denoisers: list[Any],
    specs: list[SampleSpec],
    seeds: list[int],
    canvases: list[Canvas | None] | None = None,
    side_by_side: bool = False,
) -> Denoising:
    """All rows in one batch, from row 1 on; row 0 stays free. A row enters at every step."""
    canvases = canvases or [None] * len(denoisers)
    batch = Denoising(specs[0].kind, len(denoisers) + 1, together=side_by_side)
    waiting = list(enumerate(zip(denoisers, specs, seeds, canvases, strict=True), 1))
    guides = [denoiser.unconditional(MASK) for denoiser in denoisers]
    while waiting or batch.running:
        if waiting:
            b, (denoiser, spec, seed, canvas) = waiting.pop(0)
            batch.enter(b, spec, torch.Generator().manual_seed(seed), denoiser.prompt, canvas)
        needs = batch.needs()
        hidden, free = (
            torch.cat(
                [torch.empty(0, VOCABULARY)]
                + [made[b - 1].logits(batch.x[b])[need] for b, need in needs.items()]
            )
            for made in (denoisers, guides)
        )
        sizes = {b: len(need) for b, need in needs.items()}
        guide = free if specs[0].cfg_scale else None
        batch.propose(hidden, denoisers[0].head, batch.indices(needs), sizes, guide)
        batch.commit()
        batch.read()
    return batch


def assert_same(got: Denoising, b: int, want: Denoising) -> None:
    assert torch.equal(got.x[b], want.x[0])
    assert torch.equal(got.masked[b], want.masked[0])
    assert torch.equal(got.token_step[b], want.token_step[0])
    assert torch.equal(got.token_confidence[b], want.token_confidence[0])
    assert got.row(b).stop == want.row(0).stop
    assert got.row(b).total == want.step
    assert got.row(b).forward_passes == want.row(0).forward_passes


@st.composite
def kinds(draw: st.DrawFn) -> dict[str, Any]:
    """What rows of a batch have in common."""
    blocks, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    ids = st.integers(0, VOCABULARY - 2)
    remasking = draw(st.sampled_from(["low_confidence", "low_confidence", "random", "independent"]))
    rules = ["schedule", "threshold", "factor", "factor_llada_v"]
    stops = st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple)
    return {
        "gen_length": blocks * length,
        "block_length": length,
        "mask_id": MASK,
        "remasking": remasking,
        "rule": draw(st.sampled_from(rules)) if remasking == "low_confidence" else "schedule",
        "temperature": draw(st.sampled_from([0.0, 0.0, 0.7])),
        "cfg_scale": draw(st.sampled_from([0.0, 0.0, 1.5])),
        "noise": draw(st.sampled_from(["needed", "keyed", "reference"])),
        "forbidden_ids": draw(st.sampled_from([(MASK,), (0, MASK), ()])),
        "stop_ids": draw(stops),
        "run_all_steps": draw(st.booleans()),
    }


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_each_row_is_as_alone(denoiser: Any, data: Any) -> None:
    kind = data.draw(kinds())
    blocks = kind["gen_length"] // kind["block_length"]
    specs, denoisers, seeds, canvases = [], [], [], []
    for _ in range(3):
        own = {
            "steps": blocks * data.draw(st.integers(1, kind["block_length"] + 1)),
            "threshold": data.draw(st.sampled_from([0.1, 0.5, 0.95])),
            "factor": data.draw(st.sampled_from([0.0, 1.0, 3.0])),
        }
        specs.append(SampleSpec(**kind, **own))
        denoisers.append(
            denoiser(data.draw(st.integers(0, 50)), prompt=data.draw(st.integers(0, 3)))
        )
        seeds.append(data.draw(st.integers(0, 99)))
        canvases.append(data.draw(st.none() | canvas_of(kind["gen_length"])))
    for side_by_side in (False, True):
        got = together(denoisers, specs, seeds, canvases, side_by_side)
        assert (got.x[0] == MASK).all(), "a free row takes no step"
        for b in range(3):
            want = alone(denoisers[b], specs[b], seeds[b], canvases[b])
            assert_same(got, b + 1, want)


@st.composite
def canvas_of(draw: st.DrawFn, length: int) -> Canvas:
    positions = st.integers(0, length - 1)
    tokens = st.integers(0, VOCABULARY - 2)
    some = st.sets(tokens.filter(lambda token: token > 0), min_size=1, max_size=4)
    pinned = draw(st.dictionaries(positions, tokens, max_size=length))
    allowed = draw(st.dictionaries(positions, some, max_size=length))
    if length < 3 or draw(st.booleans()):
        return Canvas(pinned, allowed)
    start = draw(st.integers(0, length - 2))
    places = tuple(range(start, draw(st.integers(start + 2, length))))
    pieces = st.lists(tokens, min_size=len(places), max_size=len(places)).map(tuple)
    options = draw(st.lists(pieces, min_size=2, max_size=4, unique=True))
    void = [i for i in range(places[-1] + 1, length) if i not in pinned]
    span = Span(places, Whole(options).pieces, {options[0]: void})
    free = {i: t for i, t in pinned.items() if i not in places}
    whole = draw(st.none() | st.integers(places[-1] + 1, length))
    tail = range(*sorted(draw(st.tuples(positions, positions))))
    # no two blanks of a form share a position
    tails = [] if {*tail} & {*span.positions} else [tail]
    return Canvas(free, allowed, [span], whole, tails, end=1)


class Whole:
    """The pieces of a choice."""

    def __init__(self, options: list[tuple[int, ...]]) -> None:
        self.options = options

    def pieces(self, tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self.options


def canvases(rows: int, generator: torch.Generator) -> list[Canvas]:
    """Random ones for six positions."""
    made = []
    for _ in range(rows):
        count = int(torch.randint(0, 6, (), generator=generator))
        where = torch.randperm(6, generator=generator).tolist()
        ids = torch.randint(0, MASK, (6,), generator=generator).tolist()
        made.append(Canvas({i: ids[i] for i in where[:count]}, {where[-1]: {1 + ids[0] % 5, 6}}))
    return made


def test_pinned_tokens_never_change(denoiser: Any) -> None:
    """In 10,000 answers."""
    spec = SampleSpec(6, 3, 2, MASK, forbidden_ids=(0, MASK), stop_ids=((9,),))
    generator, rows, seen, filled = torch.Generator().manual_seed(5), 2500, 0, 0
    for turn in range(4):
        batch = Denoising(spec.kind, rows, together=True)
        wanted = [canvas.pinned for canvas in canvases(rows, generator)]
        for b, pinned in enumerate(wanted):
            batch.enter(b, spec, canvas=Canvas(pinned))
        while not batch.done:
            batch.advance(logits_of(denoiser(turn), batch.x)[batch.need()], None)
        x, steps = batch.x.tolist(), batch.token_step.tolist()
        for b, pinned in enumerate(wanted):
            for i, token in pinned.items():
                assert x[b][i] == token
                assert steps[b][i] == -1
            seen, filled = seen + 1, filled + sum(step >= 0 for step in steps[b])
    assert seen == 10_000
    assert filled > 10_000


def test_a_position_takes_what_it_may(denoiser: Any) -> None:
    spec = SampleSpec(6, 3, 4, MASK, temperature=0.8, forbidden_ids=(0, MASK), stop_ids=((9,),))
    generator = torch.Generator().manual_seed(5)
    for seed, canvas in enumerate(canvases(60, generator)):
        got = alone(denoiser(seed), spec, seed, canvas)
        for i, tokens in canvas.allowed.items():
            assert got.masked[0, i] or i in canvas.pinned or int(got.x[0, i]) in tokens


def test_a_canvas_of_nothing_is_none(denoiser: Any) -> None:
    spec = SampleSpec(6, 3, 4, MASK, temperature=0.8, forbidden_ids=(0, MASK))
    for seed in range(5):
        assert_same(alone(denoiser(seed), spec, 3, Canvas()), 0, alone(denoiser(seed), spec, 3))


def logits_of(model: Any, x: Tensor) -> Tensor:
    """As TableDenoiser.logits, of all rows at once: float32[B, L, V]."""
    tokens = model.embed[x]
    mixed = torch.tanh(tokens + tokens.mean(1, keepdim=True) + model.place[: x.shape[1]])
    return mixed @ model.out + model.bias


def test_confidence_is_a_share_of_what_is_allowed(denoiser: Any) -> None:
    model, spec = denoiser(4), SampleSpec(3, 3, 3, MASK)
    logits = model.logits(torch.full((3,), MASK)).double()
    got = alone(model, spec, canvas=Canvas({}, {1: {2, 7}}))
    first = got.token_step[0].tolist().index(0)
    if first != 1:  # as position 1 was decided on later, look at it directly
        got = alone(model, SampleSpec(3, 3, 1, MASK), canvas=Canvas({}, {1: {2, 7}}))
    share = logits[1, [2, 7]].softmax(0)
    assert int(got.x[0, 1]) == (2, 7)[int(share.argmax())]
    assert float(got.token_confidence[0, 1]) == pytest.approx(float(share.max()), rel=1e-5)


def test_one_allowed_token_is_certain(denoiser: Any) -> None:
    got = alone(denoiser(3), SampleSpec(4, 4, 4, MASK), canvas=Canvas({}, {2: {5}}))
    assert int(got.x[0, 2]) == 5
    assert float(got.token_confidence[0, 2]) == 1.0
    assert int(got.token_step[0, 2]) == 0, "what is certain comes first"


def test_a_pinned_stop_ends_the_answer_before_it(denoiser: Any) -> None:
    spec = SampleSpec(8, 4, 8, MASK, forbidden_ids=(MASK, 9), stop_ids=((9, 8),))
    got = alone(denoiser(3), spec, canvas=Canvas({5: 9, 6: 8}))
    assert got.row(0).stop == 5
    assert not got.masked[0, :5].any()
    assert got.masked[0, 7]
    assert got.token_step[0, :4].max() == 3, "the second block waits for the first"
    none = alone(denoiser(3), spec, canvas=Canvas({0: 9, 1: 8}))
    assert none.step == none.row(0).forward_passes == 0
    assert len(answer(none, 0)) == 0


def test_a_response_that_is_all_pinned_takes_no_step(denoiser: Any) -> None:
    model = denoiser(1)
    got = alone(model, SampleSpec(4, 2, 4, MASK), canvas=Canvas({0: 1, 1: 2, 2: 3, 3: 4}))
    assert got.x.tolist() == [[1, 2, 3, 4]]
    assert model.calls == 0


@pytest.mark.parametrize(
    ("canvas", "said"),
    [
        (Canvas({6: 1}), "pinned: position 6 lies outside .*gen_length=6"),
        (Canvas({-1: 1}), "pinned: position -1"),
        (Canvas({0: VOCABULARY}), "pinned: 12 at position 0"),
        (Canvas({0: MASK}), "pinned: position 0 is left no token"),
        (Canvas({}, {9: {1}}), "allowed: position 9"),
        (Canvas({}, {1: {1, 99}}), "allowed: 99 at position 1"),
        (Canvas({}, {1: set()}), "allowed: position 1 is left no token"),
        (Canvas({}, {1: {0, MASK}}), "allowed: position 1 is left no token"),
    ],
)
def test_a_canvas_that_does_not_fit_is_refused(canvas: Canvas, said: str) -> None:
    with pytest.raises(SettingsError, match=f"E1001: .*{said}"):
        canvas.check(SampleSpec(6, 3, 6, MASK, forbidden_ids=(0,)), VOCABULARY)


@pytest.mark.parametrize(
    "more",
    [
        {"stop_ids": ((2,), (5, 1))},
        {"rule": "threshold", "threshold": 0.3, "confidence_eos_eot_inf": True},
        {"rule": "factor"},
        {"cfg_scale": 1.0, "logits_eos_inf": True},
    ],
)
def test_choosing_without_draws_reads_nothing(denoiser: Any, more: dict[str, Any]) -> None:
    spec = SampleSpec(6, 3, 4, MASK, forbidden_ids=(MASK,), eos_id=3, eot_id=4, **more)
    batch, model = Denoising(spec.kind, 3, together=True), denoiser(3)
    for b in (0, 2):
        batch.enter(b, spec)
    places = torch.arange(18).view(3, 6)[:, :3].flatten()
    for _ in range(2):
        hidden = logits_of(model, batch.x)[:, :3].flatten(0, 1)
        before = batch.x.clone()
        with no_reads(constants=True):
            batch.propose(hidden, model.head, places, None, hidden if spec.cfg_scale else None)
        with pytest.raises(AssertionError, match="reads from the device"), no_reads():
            batch.x.sum().item()
        batch.commit()
        batch.read()
        assert not torch.equal(batch.x, before)
        assert torch.equal(batch.x[1], before[1])


def test_a_step_is_read_once(denoiser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SampleSpec(6, 3, 6, MASK, stop_ids=((2,),), rule="threshold", threshold=0.4)
    reads = []
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (reads.append(1), real(self))[1])
    batch, model = Denoising(spec.kind, 4, together=True), denoiser(3)
    for b in range(4):
        batch.enter(b, spec)
    reads.clear()
    steps = 0
    while not batch.done:
        needs = batch.needs()
        hidden = logits_of(model, batch.x)
        rows = torch.cat([hidden[b, need] for b, need in needs.items()])
        batch.propose(rows, model.head, batch.indices(needs), {b: len(n) for b, n in needs.items()})
        batch.commit()
        batch.read()
        steps += 1
        assert len(reads) == steps


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels take no tensors of the CPU there")
@pytest.mark.parametrize(
    "more",
    [
        {"stop_ids": ((2,), (5, 1)), "forbidden_ids": (0, MASK)},
        {"rule": "threshold", "threshold": 0.3, "confidence_eos_eot_inf": True},
        {"rule": "factor", "logit_size": VOCABULARY - 1, "forbidden_ids": (0,)},
        {"remasking": "random"},
        {"remasking": "independent"},
        {"temperature": 1.0, "noise": "keyed", "cfg_scale": 0.5},
        {"temperature": 1.0, "rule": "factor_llada_v"},
        {"noise": "reference", "rule": "factor"},
    ],
)
def test_kernels_give_the_same_tokens(
    denoiser: Any, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, in Triton's interpreter."""
    given = {"forbidden_ids": (MASK,), "eos_id": 3, "eot_id": 4} | more
    spec = SampleSpec(6, 3, 4, MASK, **given)
    denoisers, seeds = [denoiser(7), denoiser(8)], [5, 6]
    given_ = [None, Canvas({1: 4}, {3: {1, 2, 5}})]
    want = [alone(*one) for one in zip(denoisers, [spec] * 2, seeds, given_, strict=True)]
    with monkeypatch.context() as gpu:
        gpu.setattr(ops, "takes_kernels", lambda tensor: True)
        got = together(denoisers, [spec] * 2, seeds, given_, side_by_side=True)
    for b in (0, 1):
        assert torch.equal(got.x[b + 1], want[b].x[0])
        assert torch.equal(got.token_step[b + 1], want[b].token_step[0])


def test_a_row_that_is_not_finite_fails_alone(denoiser: Any) -> None:
    spec = SampleSpec(4, 4, 4, MASK, forbidden_ids=(MASK,))
    denoisers = [denoiser(1), denoiser(2, poison=float("nan")), denoiser(3)]
    for side_by_side in (False, True):
        got = together(denoisers, [spec] * 3, [0] * 3, None, side_by_side)
        assert [row and row.failed for row in got.rows] == [None, False, True, False]
        assert got.row(2).total == 0
        assert got.masked[2].all()
        for b in (1, 3):
            assert_same(got, b, alone(denoisers[b - 1], spec))


def test_a_row_is_blank_for_the_next_request(denoiser: Any) -> None:
    spec = SampleSpec(6, 3, 6, MASK, forbidden_ids=(MASK,), stop_ids=((2,), (5, 1)))
    got = together([denoiser(7)], [spec], [0], [Canvas({0: 2}, {1: {3}})])
    got.leave(1)
    assert got.running == []
    got.enter(1, spec)
    assert got.running == [1]
    assert (got.x[1] == MASK).all()
    assert got.masked[1].all()
    assert got.row(1).stop is None
    assert (got.token_step[1] == -1).all()
    assert not got.token_confidence[1].any()
    for _ in sample(denoiser(7), spec, got):  # only row 1 is left
        pass
    assert_same(got, 1, alone(denoiser(7), spec))


def test_what_does_not_fit_a_batch_is_refused() -> None:
    batch = Denoising(SampleSpec(4, 2, 4, MASK).kind, 1)
    batch.enter(0, SampleSpec(4, 2, 2, MASK))
    with pytest.raises(ValueError, match="one kind"):
        batch.enter(0, SampleSpec(4, 2, 4, MASK, stop_ids=((1,),)))
    for position in (-1, 4):
        with pytest.raises(ValueError, match="outside"):
            batch.enter(0, SampleSpec(4, 2, 4, MASK), canvas=Canvas({position: 1}))


@pytest.mark.parametrize("seed", [5, 2**63 + 5, -5])
def test_any_seed_of_a_generator_keys_its_draws(denoiser: Any, seed: int) -> None:
    spec = SampleSpec(4, 4, 4, MASK, temperature=1.0, noise="keyed", forbidden_ids=(MASK,))
    denoisers = [denoiser(7), denoiser(8)]
    got = together(denoisers, [spec] * 2, [seed] * 2, side_by_side=True)
    for b in (0, 1):
        assert_same(got, b + 1, alone(denoisers[b], spec, seed))
