"""Many rows on a device against the sampler's state machine, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_kernels import ops
from medv_ray.diffusion.blocks import Blocks, fits
from medv_ray.diffusion.sampler import Denoising, SampleSpec, sample

VOCABULARY, MASK = 12, 11


def alone(door: Any, spec: SampleSpec, seed: int = 0) -> Denoising:
    denoising = Denoising.blank(spec, generators=[torch.Generator().manual_seed(seed)])
    for _ in sample(door, spec, denoising):
        pass
    return denoising


def together(doors: list[Any], spec: SampleSpec) -> Blocks:
    """All rows in slots 1, 2, ...; slot 0 stays empty. A row enters at every step."""
    blocks = Blocks(spec, len(doors) + 1, torch.device("cpu"))
    waiting = list(enumerate(doors, 1))
    while waiting or blocks.running:
        if waiting:
            blocks.enter(waiting.pop(0)[0])
        slots = blocks.running
        windows = blocks.windows()
        hidden = [doors[b - 1].logits(blocks.state.x[b])[windows[b]] for b in slots]
        taking = torch.zeros(len(doors) + 1, dtype=torch.bool)
        taking[slots] = True
        blocks.step(torch.stack(hidden), doors[0].head, torch.tensor(slots), taking)
        blocks.settle(slots)
    return blocks


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_sampler_row_by_row(door: Any, data: Any) -> None:
    blocks, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    ids = st.integers(0, VOCABULARY - 2)
    rule = data.draw(st.sampled_from(["schedule", "threshold", "factor"]))
    spec = SampleSpec(
        blocks * length,
        length,
        blocks * data.draw(st.integers(1, length)),
        MASK,
        rule=rule,
        threshold=data.draw(st.sampled_from([0.1, 0.5, 0.95])),
        factor=data.draw(st.sampled_from([0.0, 1.0, 3.0])),
        forbidden_ids=data.draw(st.sampled_from([(MASK,), (0, MASK), ()])),
        stop_ids=data.draw(
            st.lists(st.lists(ids, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple)
        ),
    )
    doors = [door(data.draw(st.integers(0, 50))) for _ in range(3)]
    got = together(doors, spec)
    for slot, model in enumerate(doors, 1):
        want, row = alone(model, spec), got.rows[slot]
        assert row is not None
        if row.state == "unfit":  # a mask token was predicted and its block has ended
            assert spec.forbidden_ids == ()
            assert want.masked.any()
            continue
        assert torch.equal(got.state.x[slot], want.x[0])
        assert torch.equal(got.state.masked[slot], want.masked[0])
        assert torch.equal(got.state.token_step[slot], want.token_step[0])
        torch.testing.assert_close(got.state.token_confidence[slot], want.token_confidence[0])
        assert row.stop == want.stop_position(0)
        assert row.total == want.step
    assert (got.state.x[0] == MASK).all(), "an empty slot takes no step"


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels take no tensors of the CPU there")
@pytest.mark.parametrize(
    "more",
    [
        {"stop_ids": ((2,), (5, 1)), "forbidden_ids": (0, MASK)},
        {"rule": "threshold", "threshold": 0.3, "confidence_eos_eot_inf": True},
        {"rule": "factor", "logit_size": VOCABULARY - 1, "forbidden_ids": (0,)},
        {"remasking": "random"},
        {"temperature": 1.0, "noise": "keyed", "cfg_scale": 0.5},
        {"temperature": 1.0, "rule": "factor_llada_v"},
    ],
)
def test_kernels_give_the_same_tokens(
    door: Any, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both state machines as on a GPU, in Triton's interpreter."""
    given = {"forbidden_ids": (MASK,), "eos_id": 3, "eot_id": 4} | more
    spec = SampleSpec(6, 3, 4, MASK, **given)
    doors = [door(7), door(8)]
    want = [alone(one, spec, 5) for one in doors]
    with monkeypatch.context() as gpu:
        gpu.setattr(ops, "takes_kernels", lambda tensor: True)
        gpu.setattr("medv_ray.diffusion.sampler.pack", lambda head: head)
        for one, before in zip(doors, want, strict=True):
            got = alone(one, spec, 5)
            assert torch.equal(got.x, before.x)
            assert torch.equal(got.token_step, before.token_step)
        if fits(spec):
            blocks = together(doors, spec)
            assert torch.equal(blocks.state.x[1:], torch.cat([row.x for row in want]))


def test_a_row_that_is_not_finite_fails_alone(door: Any) -> None:
    spec = SampleSpec(4, 4, 4, MASK, forbidden_ids=(MASK,))
    doors = [door(1), door(2, poison=float("nan")), door(3)]
    got = together(doors, spec)
    assert [row and row.state for row in got.rows] == [None, "done", "failed", "done"]
    assert got.state.masked[2].all()
    for slot in (1, 3):
        assert torch.equal(got.state.x[slot], alone(doors[slot - 1], spec).x[0])


def test_a_slot_is_blank_for_the_next_row(door: Any) -> None:
    spec = SampleSpec(6, 3, 6, MASK, forbidden_ids=(MASK,), stop_ids=((2,), (5, 1)))
    got = together([door(7)], spec)
    got.leave(1)
    assert got.running == []
    got.enter(1)
    assert got.running == [1]
    assert (got.state.x[1] == MASK).all()
    assert got.state.masked[1].all()
    assert int(got.state.stop[1]) == 6
    assert int(got.state.block_start[1]) == int(got.state.step[1]) == int(got.state.total[1]) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.5},
        {"cfg_scale": 1.0},
        {"remasking": "random"},
        {"rule": "factor_llada_v"},
        {"run_all_steps": True},
        {"noise": "reference"},
        {"steps": 8},
    ],
)
def test_what_it_cannot_do_it_refuses(more: dict[str, Any]) -> None:
    spec = SampleSpec(**({"gen_length": 4, "block_length": 4, "steps": 4, "mask_id": MASK} | more))
    assert not fits(spec)
    with pytest.raises(ValueError, match="need Denoising"):
        Blocks(spec, 1, torch.device("cpu"))
