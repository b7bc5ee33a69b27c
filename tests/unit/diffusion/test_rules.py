"""Rules that commit as many tokens as are confident: threshold, factor, factor_llada_v."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_ray.diffusion.sample import begin, blank, sample
from medv_ray.diffusion.sampler import Denoising
from medv_ray.diffusion.spec import SampleSpec
from medv_ray.errors import SettingsError

VOCABULARY, MASK = 12, 11
RULES = ("threshold", "factor", "factor_llada_v")


def spec_of(rule: Any, length: int = 8, block: int | None = None, **more: Any) -> SampleSpec:
    blocks = length // (block or length)
    return SampleSpec(length, block or length, blocks, MASK, rule=rule, **more)


def run(denoiser: Any, spec: SampleSpec, *seeds: int, rows: int = 1) -> Denoising:
    """The state machine at its end."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    denoising = blank(spec, rows, generators, [denoiser.prompt] * rows)
    for _ in sample(denoiser, spec, denoising):
        pass
    return denoising


def per_step(denoising: Denoising, b: int = 0) -> list[int]:
    """Tokens committed at each step of a row whose every position was."""
    return torch.bincount(denoising.token_step[b]).tolist()


def certain(token: int = 3) -> torch.Tensor:
    """A bias that leaves no doubt."""
    return torch.zeros(VOCABULARY).index_fill(0, torch.tensor([token]), 200.0)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_plain_sampler_at_every_state(
    denoiser: Any, plain: Any, rule: str, data: Any
) -> None:
    blocks, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    ids = st.integers(0, VOCABULARY - 1)
    sequences = st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple)
    spec = spec_of(
        rule,
        blocks * length,
        length,
        forbidden_ids=data.draw(st.sampled_from([(), (MASK,), (0, 1, 2, MASK)])),
        stop_ids=data.draw(sequences),
        threshold=data.draw(st.sampled_from([0.2, 0.4, 0.7, 0.95, 1.0])),
        factor=data.draw(st.sampled_from([0.0, 0.4, 1.0, 1.7, 4.0])),
    )
    # the mask token stands at 0: some biases make it the answer to much
    bias = torch.zeros(VOCABULARY).index_fill(0, torch.tensor([MASK]), data.draw(st.floats(0, 6)))
    model = denoiser(data.draw(st.integers(0, 50)), bias=bias)
    states = [state.x[0].tolist() for state in sample(model, spec)]
    assert states == plain(model, spec)
    assert len(states) <= blocks * length + 1


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_answers_with_the_mask_ends(denoiser: Any, rule: str) -> None:
    """Each commit is wasted; a block is given up after as many steps as it has tokens."""
    model = denoiser(bias=certain(MASK))
    denoising = run(model, spec_of(rule, 8, 4))
    assert denoising.masked.all()
    assert denoising.step == denoising.row(0).forward_passes == model.calls == 8
    assert denoising.finish(0) == "length"


def test_threshold_one_takes_the_certain_and_else_one_at_a_time(denoiser: Any) -> None:
    given: Any = {"threshold": 1.0, "forbidden_ids": (MASK,)}
    assert per_step(run(denoiser(3), spec_of("threshold", **given))) == [1] * 8
    assert per_step(run(denoiser(3, bias=certain()), spec_of("threshold", 8, 4, **given))) == [4, 4]


@pytest.mark.parametrize("rule", ["factor", "factor_llada_v"])
def test_factor_zero_is_one_token_a_step_and_the_last_two_together(
    denoiser: Any, rule: str
) -> None:
    """As the references: a first failure at the very last rank is accepted."""
    given: Any = {"factor": 0.0, "forbidden_ids": (MASK,)}
    one_by_one = SampleSpec(8, 8, 8, MASK, forbidden_ids=(MASK,))
    slow, fast = run(denoiser(3), one_by_one), run(denoiser(3), spec_of(rule, **given))
    assert per_step(fast) == [1] * 6 + [2]
    early = fast.token_step[0] < 6
    assert torch.equal(fast.token_step[0][early], slow.token_step[0][early])
    assert torch.equal(fast.x[0][early], slow.x[0][early])
    # LLaDA-V ranks the masks of all blocks: only the row's last two are two
    shared = per_step(run(denoiser(3), spec_of(rule, 8, 4, **given)))
    assert shared == ([1, 1, 2] * 2 if rule == "factor" else [1] * 6 + [2])


def test_a_lower_threshold_takes_more_at_a_time(denoiser: Any) -> None:
    model, steps = denoiser(3), []
    for threshold in (0.99, 0.8, 0.5, 0.2, 0.01):
        given: Any = {"threshold": threshold, "forbidden_ids": (MASK,)}
        denoising = run(model, spec_of("threshold", 16, **given))
        steps.append(denoising.step)
        for step, size in enumerate(per_step(denoising)):
            sure = denoising.token_confidence[0][denoising.token_step[0] == step]
            assert size == 1 or float(sure.min()) >= threshold
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 1 < steps[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rule", RULES)
def test_a_row_does_not_depend_on_its_company(denoiser: Any, rule: str, temperature: float) -> None:
    """Rows end at different steps and in different blocks, and each equals that row alone."""
    spec = spec_of(rule, 12, 4, temperature=temperature, stop_ids=((3,),), threshold=0.4)
    model = denoiser(5, bias=torch.linspace(-1, 1, VOCABULARY))
    given = torch.full((3, 12), MASK).index_put_(
        (torch.tensor([1]), torch.arange(3)), torch.ones(3).long()
    )
    given[2, 9] = 4
    seeds, steps = (1, 2, 3), set()

    def end(rows: list[int]) -> Denoising:
        generators = [torch.Generator().manual_seed(seeds[b]) for b in rows]
        denoising = begin(spec, given[rows], given[rows] == MASK, 0, generators)
        for _ in sample(model, spec, denoising):
            pass
        return denoising

    together = end([0, 1, 2])
    for b in range(3):
        alone = end([b])
        steps.add(alone.step)
        assert torch.equal(alone.x[0], together.x[b])
        assert torch.equal(alone.token_confidence[0], together.token_confidence[b])
        assert torch.equal(alone.token_step[0], together.token_step[b])
        assert alone.finish(0) == together.finish(b)
    assert len(steps) > 1


@pytest.mark.parametrize("rule", RULES)
def test_idle_steps_and_the_references_order_change_nothing(denoiser: Any, rule: str) -> None:
    given: Any = {"forbidden_ids": (MASK,), "threshold": 0.4}
    plain, full, as_topk = (
        run(denoiser(7), spec_of(rule, 8, 4, **given, **more))
        for more in ({}, {"run_all_steps": True}, {"noise": "reference"})
    )
    assert torch.equal(plain.x, full.x)
    assert torch.equal(plain.x, as_topk.x)
    assert torch.equal(plain.token_step, as_topk.token_step)
    assert (full.step, full.row(0).forward_passes) == (8, plain.row(0).forward_passes)
    assert plain.row(0).forward_passes < 8


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("remasking", ["random", "independent"])
def test_rules_go_by_confidence_alone(rule: str, remasking: Any) -> None:
    with pytest.raises(SettingsError, match=f"E1001.*rule={rule} .*low_confidence.*{remasking}"):
        spec_of(rule, remasking=remasking)
    assert SampleSpec(8, 8, 8, MASK, remasking=remasking).rule == "schedule"


@pytest.mark.parametrize("rule", RULES)
def test_a_poisoned_model_raises_and_changes_nothing(denoiser: Any, rule: str) -> None:
    denoising = blank(spec_of(rule))
    model = denoiser(poison=float("nan"))
    with pytest.raises(FloatingPointError):
        denoising.advance(model(denoising.x, denoising.need()), model.head)
    assert denoising.step == 0
    assert denoising.masked.all()


@pytest.mark.parametrize("rule", RULES)
def test_masks_in_front_of_the_answer_are_filled_too(denoiser: Any, rule: str) -> None:
    """A rule goes on until the block is full, and they compete with it."""
    x = torch.tensor([[4, MASK, 5, MASK, *[MASK] * 6]])
    spec = spec_of(rule, 6, 3, forbidden_ids=(MASK,), threshold=0.3)
    denoising = begin(spec, x, x == MASK, 4)
    for _ in sample(denoiser(8), spec, denoising):
        pass
    assert denoising.done
    assert not denoising.masked[0, 4:].any()
    assert denoising.x[0, [0, 2]].tolist() == [4, 5]
