"""The sampler against a plain one, and what must hold whatever the model says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medv_kernels import noise, reference, reference_odds
from medv_ray.diffusion.sample import answer, begin, blank, sample
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError

VOCABULARY, MASK = 12, 11


def spec_of(length: int = 8, block: int | None = None, steps: int = 8, **more: Any) -> SampleSpec:
    return SampleSpec(length, block or length, steps, MASK, **more)


def run(denoiser: Any, spec: SampleSpec, *seeds: int, rows: int = 1) -> Denoising:
    """The state machine at its end."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    denoising = blank(spec, rows, generators, [denoiser.prompt] * rows)
    for _ in sample(denoiser, spec, denoising):
        pass
    return denoising


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_the_plain_sampler_at_every_state(denoiser: Any, plain: Any, data: Any) -> None:
    blocks, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    steps = blocks * data.draw(st.integers(1, 7))  # fewer and more steps than tokens
    ids = st.integers(0, VOCABULARY - 1)
    sequences = st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple)
    forbidden = data.draw(st.sampled_from([(), (MASK,), (0, 1, 2, MASK)]))
    spec = spec_of(
        blocks * length,
        length,
        steps,
        forbidden_ids=forbidden,
        stop_ids=data.draw(sequences),
    )
    model = denoiser(data.draw(st.integers(0, 50)))
    states = [state.x[0].tolist() for state in sample(model, spec)]
    assert states == plain(model, spec)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_idle_steps_change_no_answer(denoiser: Any, data: Any) -> None:
    steps = 2 * data.draw(st.integers(1, 9))
    model = denoiser(data.draw(st.integers(0, 50)))
    short, full = (
        run(model, spec_of(8, 4, steps, forbidden_ids=(MASK,), run_all_steps=all_steps))
        for all_steps in (False, True)
    )
    assert torch.equal(short.x, full.x)
    assert full.step == steps
    assert short.row(0).forward_passes == full.row(0).forward_passes == min(steps, 8)


def test_steps_that_commit_nothing_do_not_call_the_model(denoiser: Any) -> None:
    model = denoiser()
    denoising = run(model, spec_of(4, 4, 9, forbidden_ids=(MASK,), run_all_steps=True))
    assert denoising.step == 9
    assert denoising.row(0).forward_passes == 4
    assert model.rows == 4 + 3 + 2 + 1


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "independent"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_does_not_depend_on_its_company(
    denoiser: Any, remasking: Any, temperature: float
) -> None:
    """Each of three rows with its own generator equals that row alone, to the last bit."""
    spec = spec_of(8, 4, 6, remasking=remasking, temperature=temperature, stop_ids=((3,),))
    model = denoiser(5, bias=torch.linspace(-1, 1, VOCABULARY))
    together = run(model, spec, 1, 2, 3, rows=3)
    for b, seed in enumerate((1, 2, 3)):
        alone = run(model, spec, seed)
        assert torch.equal(answer(alone, 0), answer(together, b))
        assert torch.equal(alone.x[0], together.x[b])
        assert torch.equal(alone.token_confidence[0], together.token_confidence[b])
        assert torch.equal(alone.token_step[0], together.token_step[b])
        assert alone.finish(0) == together.finish(b)


def test_confidence_and_step_of_each_token(denoiser: Any) -> None:
    model, spec = denoiser(3), spec_of(6, 3, 4, forbidden_ids=(MASK,))
    denoising, before = blank(spec), []
    for state in sample(model, spec, denoising):
        before.append(state)
    for i in range(6):
        step = int(denoising.token_step[0, i])
        assert before[step].masked[0, i]
        assert not before[step + 1].masked[0, i]
        logits = model.logits(before[step].x[0])[i].double()
        logits[MASK] = -math.inf
        want = logits.softmax(0)[denoising.x[0, i]]
        assert float(denoising.token_confidence[0, i]) == pytest.approx(float(want), rel=1e-5)
    assert sorted(denoising.token_step[0].tolist()) == [0, 0, 1, 2, 2, 3]


def test_a_committed_mask_token_leaves_its_position_masked(denoiser: Any) -> None:
    """The reference's behaviour: the transfer is wasted and the answer keeps masks."""
    bias = torch.zeros(VOCABULARY)
    bias[MASK] = 100.0
    denoising = run(denoiser(bias=bias), spec_of(4, 4, 4))
    assert denoising.masked.all()
    assert denoising.step == 4
    assert answer(denoising, 0).tolist() == [MASK] * 4


@pytest.mark.parametrize("seed", range(5))
def test_algorithm_one_ends_without_masks(denoiser: Any, seed: int) -> None:
    bias = torch.zeros(VOCABULARY)
    bias[MASK] = 100.0
    for steps in (2, 6, 20):
        denoising = run(denoiser(bias=bias), spec_of(8, 4, steps, remasking="independent"), seed)
        assert not denoising.masked.any()
        assert not (denoising.x == MASK).any()


def test_algorithm_one_unmasks_at_the_rate_of_its_schedule(denoiser: Any) -> None:
    """A token is committed at each of Z steps with the same probability, on its own."""
    spec = spec_of(48, 48, 6, remasking="independent")
    steps = [run(denoiser(), spec, seed).token_step for seed in range(40)]
    share = torch.bincount(torch.cat(steps).flatten(), minlength=6) / (40 * 48)
    torch.testing.assert_close(share, torch.full((6,), 1 / 6), atol=0.03, rtol=0)
    sizes = torch.stack([(step == 0).sum() for step in steps])  # binomial, not a fixed number
    assert len(sizes.unique()) > 3


def test_random_remasking_commits_the_scheduled_number_anywhere(denoiser: Any) -> None:
    spec = spec_of(8, 8, 4, remasking="random", forbidden_ids=(MASK,))
    runs = [run(denoiser(), spec, seed) for seed in range(200)]
    for denoising in runs[:20]:
        assert torch.bincount(denoising.token_step[0]).tolist() == [2, 2, 2, 2]
    first = torch.stack([denoising.token_step[0] == 0 for denoising in runs]).float().mean(0)
    torch.testing.assert_close(first, torch.full((8,), 0.25), atol=0.1, rtol=0)


@pytest.mark.parametrize("noise", ["needed", "reference"])
@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_a_seed_decides_and_another_seed_differs(denoiser: Any, noise: Any, remasking: Any) -> None:
    spec = spec_of(8, 4, 8, temperature=1.0, remasking=remasking, noise=noise)
    first, again, other = (run(denoiser(prompt=5), spec, seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_reference_noise_is_one_draw_of_the_whole_sequence(denoiser: Any) -> None:
    """Prompt rows first, suffix rows last, whatever is needed of them: drawn here in one piece."""
    spec = spec_of(4, 4, 2, temperature=0.9, noise="reference", suffix_ids=(1, 2, 3))
    model = denoiser(7, prompt=70)
    denoising = blank(spec, 1, [torch.Generator().manual_seed(3)], [70])
    states = list(sample(model, spec, denoising))
    whole = torch.Generator().manual_seed(3)
    for before, after in zip(states, states[1:], strict=False):
        u = torch.rand(1, 70 + 4 + 3, VOCABULARY, dtype=torch.float64, generator=whole)[0, 70:74]
        logits = model.logits(before.x[0]).double()
        token = (logits.exp() / (-u.log()) ** 0.9).argmax(1)
        filled = before.masked[0] & (after.x[0] != before.x[0])
        assert filled.any()
        assert torch.equal(after.x[0][filled], token[filled])


def test_shared_generator_draws_row_after_row(denoiser: Any) -> None:
    spec = spec_of(3, 3, 1, temperature=1.0, noise="reference", run_all_steps=True)
    model = denoiser(7, prompt=2)
    together = run(model, spec, 5, rows=2)
    u = torch.rand(2, 5, VOCABULARY, dtype=torch.float64, generator=torch.manual_seed(5))
    logits = model.logits(torch.full((3,), MASK)).double()
    assert torch.equal(together.x, (logits.exp() / -u[:, 2:].log()).argmax(-1))


def test_guidance_uses_both_denoisers(denoiser: Any) -> None:
    spec = spec_of(5, 5, 5, cfg_scale=2.0)
    model = denoiser(1)
    states = list(sample(model, spec))
    free = model.unconditional(MASK)
    for before, after in zip(states, states[1:], strict=False):
        x = before.x[0]
        cond, un = model.logits(x), free.logits(x)
        token = (un + 3 * (cond - un)).argmax(1)
        changed = before.x[0] != after.x[0]
        assert torch.equal(after.x[0][changed], token[changed])


def test_options_of_llada_about_end_tokens(denoiser: Any) -> None:
    bias = torch.zeros(VOCABULARY)
    bias[[1, 2]] = 50.0
    ids = {"eos_id": 1, "eot_id": 2}
    for options, banned in (({"logits_eos_inf": True}, {1}), ({}, set())):
        x = run(denoiser(4, bias=bias), spec_of(**ids, **options)).x[0].tolist()
        assert banned.isdisjoint(x)
        assert set(x) <= {1, 2}
    late = spec_of(confidence_eos_eot_inf=True, **ids)
    assert late.unranked == (1, 2)
    denoising = run(denoiser(4, bias=bias), late)
    assert denoising.token_step[0].tolist() == list(range(8))  # all tie at 0: lowest first
    assert not denoising.token_confidence.any()
    assert spec_of(confidence_eos_eot_inf=True, temperature=0.5, **ids).unranked == (2,)


def test_stop_cuts_the_answer_and_skips_what_is_behind(denoiser: Any) -> None:
    """One token a step, left to right, so that the stop is found as soon as it is written."""
    model = denoiser(2)
    full = run(model, spec_of(8, 1, 8, forbidden_ids=(MASK,))).x[0].tolist()
    token = full[3]
    first = full.index(token)
    spec = spec_of(8, 1, 8, forbidden_ids=(MASK,), stop_ids=((token,),), suffix_ids=(7, 7))
    denoising = run(model, spec)
    assert answer(denoising, 0).tolist() == [*full[:first], 7, 7]
    assert denoising.row(0).stop == first
    assert denoising.finish(0) == "stop"
    assert denoising.step == first + 1
    assert denoising.masked[0, first + 1 :].all()


def test_without_a_stop_the_whole_length_comes_out(denoiser: Any) -> None:
    denoising = run(denoiser(), spec_of(forbidden_ids=(MASK, 3), stop_ids=((3,),)))
    assert denoising.finish(0) == "length"
    assert denoising.row(0).stop is None
    assert len(answer(denoising, 0)) == 8


def test_masks_in_front_of_the_answer_compete_for_its_tokens(denoiser: Any) -> None:
    """As in LLaDA: k counts the block's masks alone, so as many stay masked at the end."""
    x = torch.tensor([[4, MASK, 5, MASK, *[MASK] * 6]])
    spec = spec_of(6, 3, 6, forbidden_ids=(MASK,), run_all_steps=True)
    denoising = begin(spec, x, x == MASK, 4)
    states = list(sample(denoiser(8), spec, denoising))
    assert int(denoising.masked.sum()) == 2
    assert denoising.x[0, 0] == 4
    assert denoising.x[0, 2] == 5
    assert x[0, 1] == MASK  # the caller's x is not changed
    assert states[0].masked[0].tolist() == (x[0] == MASK).tolist()


def test_given_tokens_are_found_by_position_not_by_id(denoiser: Any) -> None:
    """A mask token that is given stays what it is."""
    x = torch.tensor([[MASK, 3, MASK, MASK]])
    maskable = torch.tensor([[False, False, True, True]])
    spec = spec_of(4, 4, 4, forbidden_ids=(MASK,))
    denoising = begin(spec, x, maskable)
    for state in sample(denoiser(1), spec, denoising):
        assert state.x[0, :2].tolist() == [MASK, 3]
    assert denoising.done
    assert not denoising.masked.any()


@pytest.mark.parametrize("steps", [8, 3])
def test_rows_that_cannot_be_committed_need_no_odds(
    denoiser: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sums of few rows alone, the same tokens at the same steps as with all of them."""
    spec = spec_of(steps=steps, forbidden_ids=(MASK,))
    all_rows = run(denoiser(5), spec, rows=2)
    monkeypatch.setattr(reference_odds, "SLICE_BYTES", 1)  # so that no row is cheap
    few = run(denoiser(5), spec, rows=2)
    assert torch.equal(few.x, all_rows.x)
    assert torch.equal(few.token_step, all_rows.token_step)
    torch.testing.assert_close(few.token_confidence, all_rows.token_confidence)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"steps": 4}, {2}),
        ({"temperature": 0.5}, {None}),
        ({"remasking": "random"}, {None}),
        ({"remasking": "independent"}, {None}),
        ({"noise": "reference"}, {None}),
    ],
)
def test_odds_that_something_else_looks_at_are_all_made(
    denoiser: Any, options: dict[str, Any], wanted: set[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int | None] = set()
    real = reference.choose

    def watched(*given: Any) -> Any:
        seen.add(given[4])
        return real(*given)

    monkeypatch.setattr(reference, "choose", watched)
    run(denoiser(2), spec_of(**options), 1)
    assert seen == wanted


def test_a_head_that_is_given_is_the_one_that_is_read(denoiser: Any) -> None:
    model, spec = denoiser(6), spec_of()
    *_, last = sample(model, spec)
    *_, same = sample(model, spec, head=model.head.clone())
    *_, other = sample(model, spec, head=model.head.flip(0))
    assert torch.equal(same.x, last.x)
    assert not torch.equal(other.x, last.x)


def test_leaving_between_steps_keeps_what_is_done(denoiser: Any) -> None:
    model, spec = denoiser(6), spec_of(forbidden_ids=(MASK,))
    whole = list(sample(model, spec))
    denoising, seen = blank(spec), []
    for state in sample(model, spec, denoising):
        seen.append(state)
        if len(seen) == 4:
            break
    assert len(seen) == 4
    assert not seen[-1].done
    assert torch.equal(seen[-1].x, whole[3].x)
    rest = list(sample(model, spec, denoising))  # and can go on
    assert torch.equal(rest[0].x, whole[3].x)
    assert torch.equal(rest[-1].x, whole[-1].x)
    assert rest[-1].done


def test_closing_the_iterator_calls_the_model_no_more(denoiser: Any) -> None:
    model = denoiser()
    states = sample(model, spec_of())
    next(states)
    assert model.calls == 0
    next(states)
    states.close()
    assert model.calls == 1


def test_states_are_copies(denoiser: Any) -> None:
    states = list(sample(denoiser(), spec_of()))
    assert states[0].masked.all()
    assert [state.step for state in states] == list(range(9))
    assert [state.done for state in states] == [False] * 8 + [True]


def test_a_poisoned_model_raises_and_changes_nothing(denoiser: Any) -> None:
    spec = spec_of()
    denoising = blank(spec)
    model = denoiser(poison=math.nan)
    with pytest.raises(FloatingPointError):
        denoising.advance(model(denoising.x, denoising.need()), model.head)
    assert denoising.step == 0
    assert denoising.masked.all()


def test_every_token_forbidden_is_an_error_not_a_token(denoiser: Any) -> None:
    with pytest.raises(FloatingPointError):
        run(denoiser(), spec_of(forbidden_ids=tuple(range(VOCABULARY))))


def test_wrong_use_is_refused(denoiser: Any) -> None:
    model, spec = denoiser(), spec_of()
    denoising = blank(spec)
    with pytest.raises(ValueError, match="3 hidden rows for 8"):
        denoising.advance(torch.zeros(3, VOCABULARY), model.head)
    with pytest.raises(ValueError, match="generators"):
        blank(spec_of(temperature=0.5))
    with pytest.raises(ValueError, match="prompt_lengths"):
        blank(spec_of(noise="reference"))
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        blank(spec_of(temperature=1.0), 3, [torch.Generator()] * 2)
    with pytest.raises(ValueError, match="positions"):
        begin(spec, torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool))
    guided = blank(spec_of(cfg_scale=1.0))
    with pytest.raises(ValueError, match="unconditional"):
        guided.advance(torch.zeros(8, VOCABULARY), model.head)


@pytest.mark.parametrize(("length", "block", "steps"), [(8, 3, 8), (8, 4, 7), (8, 16, 8)])
def test_settings_that_do_not_divide_are_refused(length: int, block: int, steps: int) -> None:
    with pytest.raises(SettingsError, match="E1002"):
        spec_of(length, block, steps)


def test_end_token_options_need_their_ids() -> None:
    with pytest.raises(SettingsError, match="E1001"):
        spec_of(logits_eos_inf=True)
    with pytest.raises(SettingsError, match="E1001"):
        spec_of(confidence_eos_eot_inf=True, eos_id=1)


def test_logit_size_hides_the_head_behind_it(denoiser: Any) -> None:
    bias = torch.zeros(VOCABULARY)
    bias[9] = 100.0
    denoising = run(denoiser(bias=bias), spec_of(logit_size=9))
    assert int(denoising.x.max()) < 9


def test_hidden_rows_may_come_from_a_trained_head(denoiser: Any) -> None:
    """No graph is built, and tensors made in inference mode are accepted."""
    model = denoiser()
    model.head = torch.nn.Parameter(torch.eye(VOCABULARY))
    original = model.logits

    def frozen(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return original(x)

    model.logits = frozen
    denoising = run(model, spec_of(forbidden_ids=(MASK,)))
    assert denoising.done
    assert not denoising.token_confidence.requires_grad


def test_keyed_noise_comes_from_seed_step_and_position_alone(denoiser: Any) -> None:
    """Each committed token is the argmax under the numbers of its key, drawn anew."""
    model, spec = (
        denoiser(3),
        spec_of(6, 3, 4, temperature=0.9, noise="keyed", forbidden_ids=(MASK,)),
    )
    denoising, before = blank(spec, 1, [torch.Generator().manual_seed(41)]), []
    for state in sample(model, spec, denoising):
        before.append(state)
    for i in range(6):
        step = int(denoising.token_step[0, i])
        logits = model.logits(before[step].x[0])[i].double()
        logits[MASK] = -math.inf
        draws = noise.uniform(noise.row_keys(41, step, torch.tensor([i])), VOCABULARY)[0]
        want = (logits - 0.9 * draws.log().neg().log()).argmax()
        assert int(denoising.x[0, i]) == int(want)
    seeds = [run(model, spec, seed).x[0].tolist() for seed in (1, 2, 3)]
    assert len({tuple(ids) for ids in seeds}) > 1
    together = run(model, spec, 1, 2, 3, rows=3)
    assert together.x.tolist() == seeds
    with pytest.raises(ValueError, match="one generator per row"):
        run(model, spec, 1, rows=2)
