"""Spans of a canvas: what stands there is always one of the things that may, whatever the model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from medv_ray.diffusion.canvas import Canvas, Span
from medv_ray.diffusion.sample import sample
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError

MASK = 11
OPTIONS = [(1, 2, 3), (1, 4, 5), (6, 2, 5)]


def options(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    return OPTIONS


def digits(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Three tokens that never fall."""
    return [(token,) for token in range(max(tokens, default=1), 9)]


def denoised(denoiser: Any, spec: SampleSpec, canvas: Canvas, seed: int = 0) -> Denoising:
    denoising = Denoising(spec, 1)
    denoising.enter(0, spec, torch.Generator().manual_seed(seed), denoiser.prompt, canvas)
    for _ in sample(denoiser, spec, denoising):
        pass
    return denoising


SPECS = [
    SampleSpec(8, 8, 8, MASK, forbidden_ids=(0, 1, 6, 8)),
    SampleSpec(8, 4, 2, MASK, stop_ids=((2,), (3,))),
    SampleSpec(8, 2, 4, MASK, temperature=0.9),
    SampleSpec(8, 8, 2, MASK, remasking="random"),
    SampleSpec(8, 8, 2, MASK, remasking="independent"),
    SampleSpec(8, 2, 8, MASK, rule="threshold", threshold=0.5, run_all_steps=True),
    SampleSpec(8, 4, 8, MASK, cfg_scale=1.5),
    SampleSpec(8, 4, 8, MASK, noise="reference", temperature=0.5),
    SampleSpec(8, 4, 8, MASK, noise="keyed", temperature=0.5, confidence_eos_eot_inf=True,
               eos_id=3, eot_id=4),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_a_choice_is_always_one_of_its_choices(denoiser: Any, spec: SampleSpec) -> None:
    """Its positions lie in different blocks, stop sequences and forbidden tokens among them."""
    canvas = Canvas({0: 9}, {}, [Span((2, 3, 4), options)], length=7, end=10)
    seen = set()
    for seed in range(15):
        got = denoised(denoiser(seed), spec, canvas, seed)
        x = got.x[0].tolist()
        seen.add(found := tuple(x[2:5]))
        assert found in OPTIONS
        assert x[0] == 9
        assert MASK not in x[:7], "all of it is filled, whatever the steps"
        assert x[7] == MASK, "what lies behind its length is never filled"
        assert got.token_step[0, 2:5].unique().numel() == 1, "in one step"
        assert got.finish(0) == "stop"
    assert seen == {*OPTIONS}


@pytest.mark.parametrize("spec", SPECS)
def test_a_number_goes_digit_by_digit(denoiser: Any, spec: SampleSpec) -> None:
    canvas = Canvas({0: 9}, {}, [Span((1, 2, 3, 4), digits)], length=8, end=10)
    for seed in range(8):
        got = denoised(denoiser(seed), spec, canvas, seed)
        found = got.x[0, 1:5].tolist()
        assert found == sorted(found)
        steps = got.token_step[0, 1:5].tolist()
        assert all(a <= b for a, b in itertools.pairwise(steps))
        assert MASK not in got.x[0].tolist()


def test_the_likeliest_piece_by_its_summed_logits(denoiser: Any) -> None:
    for seed in range(8):
        model, spec = denoiser(seed), SampleSpec(4, 4, 4, MASK)
        got = denoised(model, spec, Canvas({}, {}, [Span((0, 1, 2), options)], length=3))
        logits = model.logits(torch.full((4,), MASK)).double()
        scores = [sum(float(logits[i, t]) for i, t in enumerate(one)) for one in OPTIONS]
        shares = torch.tensor(scores, dtype=torch.float64).softmax(0)
        best = int(shares.argmax())
        assert tuple(got.x[0, :3].tolist()) == OPTIONS[best]
        assert got.row(0).spans[0].found.tolist() == pytest.approx(shares.tolist())
        assert got.token_confidence[0, :3].tolist() == pytest.approx([float(shares[best])] * 3)
        assert got.row(0).forward_passes == 1


def test_of_two_equally_likely_the_first(denoiser: Any) -> None:
    flat = denoiser(0)
    flat.out.zero_()
    got = denoised(flat, SampleSpec(3, 3, 3, MASK), Canvas({}, {}, [Span((0, 1, 2), options)], 3))
    assert tuple(got.x[0].tolist()) == OPTIONS[0]


def test_what_a_choice_leaves_out_takes_the_end_token(denoiser: Any) -> None:
    """Free positions, and a span that has begun or not."""
    inner = Span((4, 5, 6), options)
    outer = Span((0, 1, 2), options, {OPTIONS[0]: [3, 4, 5, 6]})
    canvas = Canvas({7: 9}, {}, [outer, inner], length=8, end=10)
    left_out = 0
    for seed in range(60):
        got = denoised(denoiser(seed), SampleSpec(8, 8, 8, MASK), canvas, seed)
        x, steps = got.x[0].tolist(), got.token_step[0].tolist()
        assert MASK not in x
        assert x[7] == 9
        assert got.row(0).total == max(steps) + 1, "no step for what is of no use"
        if tuple(x[:3]) == OPTIONS[0]:
            late = [i for i in (3, 4, 5, 6) if steps[i] >= steps[0] and x[i] == 10]
            early = [i for i in (3, 4, 5, 6) if steps[i] < steps[0]]
            assert sorted(late + early) == [3, 4, 5, 6]
            left_out += len(late) == 4
        else:
            assert tuple(x[4:7]) in OPTIONS
    assert left_out


def test_what_stands_behind_an_end_token_is_not_looked_at(denoiser: Any) -> None:
    """It takes the end token in the step of that one; what stood there before stays."""
    canvas, spec, saved = Canvas({}, {}, [], 8, [range(1, 7)], end=10), SampleSpec(8, 8, 8, MASK), 0
    for seed in range(30):
        got = denoised(denoiser(seed), spec, canvas)
        x, steps = got.x[0].tolist(), got.token_step[0].tolist()
        assert MASK not in x
        ends = [i for i in range(1, 7) if x[i] == 10]
        first = min(ends, key=lambda i: (steps[i], i), default=7)
        behind = [i for i in range(first + 1, 7) if steps[i] >= steps[first]]
        assert all(x[i] == 10 and steps[i] == steps[first] for i in behind)
        assert got.row(0).forward_passes == len({*steps})
        saved += 8 - got.row(0).forward_passes
    assert saved > 0


def test_logits_that_are_no_numbers_end_the_row(denoiser: Any) -> None:
    canvas = Canvas({}, {}, [Span((0, 1, 2), options)], length=3)
    with pytest.raises(FloatingPointError):
        denoised(denoiser(0, poison=float("nan")), SampleSpec(3, 3, 3, MASK), canvas)


def test_a_canvas_longer_than_the_response_is_refused() -> None:
    with pytest.raises(SettingsError, match="has 5 positions"):
        Canvas(length=5).check(SampleSpec(4, 4, 4, MASK), 12)


def test_the_mask_never_fills_a_whole_answer(denoiser: Any) -> None:
    """It would have to be filled again for ever."""
    biased = denoiser(1, bias=torch.tensor([0.0] * MASK + [50.0]))
    got = denoised(biased, SampleSpec(4, 4, 4, MASK), Canvas(length=4))
    assert MASK not in got.x[0].tolist()
