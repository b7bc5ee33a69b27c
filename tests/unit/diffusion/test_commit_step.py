"""`commit_step` beside Denoising: whole random denoisings, equal at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medv_kernels import commit, launch, reference
from medv_kernels.reference import BlockState
from medv_ray.diffusion.sampler import Denoising, SampleSpec
from medv_ray.diffusion.schedule import transfer_schedule

VOCABULARY, MASK = 6, 5


class OnDevice:
    """A batch denoised by `commit_step`; the host only moves rows on to their next block."""

    def __init__(self, step: Callable, spec: SampleSpec, maskable: Tensor, x: Tensor) -> None:
        self.step, self.spec = step, spec
        start = torch.zeros(len(x), dtype=torch.int64)
        begun = torch.where(maskable, MASK, x)
        self.state = BlockState.begin(begun, maskable.clone(), start, start + spec.block_length)
        self.k = torch.zeros(len(x), spec.steps_per_block, dtype=torch.int64)
        self.done = [False] * len(x)
        for b in range(len(x)):
            self.schedule(b)
        self.settle()

    def schedule(self, b: int) -> None:
        state = self.state
        block = state.masked[b, state.block_start[b] : state.block_end[b]]
        self.k[b] = transfer_schedule(block.sum()[None], self.spec.steps_per_block)[0]

    def settle(self) -> None:
        """Rows whose block is over enter the next one, or end behind their stop."""
        state, length = self.state, self.spec.block_length
        for b in range(len(self.done)):
            while not self.done[b] and state.left[b] == 0:
                which = torch.arange(len(self.done)) == b
                state.enter_block(which, state.block_start + length, state.block_end + length)
                self.done[b] = bool(state.block_start[b] >= state.stop[b])  # L without a stop
                if self.done[b]:
                    state.left[b] = 0
                else:
                    self.schedule(b)

    def advance(self, token: Tensor, rest: Tensor) -> None:
        self.step(
            self.state, token, rest, self.k, mask_id=MASK, stop_ids=[*map(list, self.spec.stop_ids)]
        )
        self.settle()


STEPS = [
    reference.commit_step,
    pytest.param(
        commit.commit_step,
        marks=pytest.mark.skipif(
            not launch.kernels_run_on(torch.device("cpu")), reason="kernels run on the GPU here"
        ),
    ),
]


@pytest.mark.parametrize("step", STEPS)
def test_whole_denoisings_equal_the_sampler(
    step: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*args: Any, k: int | None, **more: Any) -> reference.Selection:
        return reference.select(*args, **more)

    # with k, close odds are summed again: permuted logits tie for one side and not for the other
    monkeypatch.setattr("medv_ray.diffusion.sampler.select", whole)
    stopped, wasted = [], []

    @settings(max_examples=60 if step is reference.commit_step else 12, deadline=None)
    @given(st.data())
    def run(data: Any) -> None:
        blocks, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
        rows, total = data.draw(st.integers(1, 3)), blocks * length
        ids = st.lists(st.integers(0, 2), min_size=1, max_size=2).map(tuple)
        stops = data.draw(st.lists(ids, max_size=2).map(tuple))
        steps = blocks * data.draw(st.integers(1, 6))
        spec = SampleSpec(total, length, steps, MASK, stop_ids=stops)
        generator = torch.manual_seed(data.draw(st.integers(0, 10**6)))
        maskable = torch.rand(rows, total, generator=generator) < 0.85
        x = torch.randint(3, (rows, total), generator=generator)
        one, other = Denoising(spec, x, maskable), OnDevice(step, spec, maskable, x)
        while not one.done:
            # logits whose odds tie now and then; the mask token is predicted too
            logits = torch.randint(0, 4, (rows, total, VOCABULARY), generator=generator).float()
            one.advance(logits[one.need()], None)
            found = reference.select(logits.view(-1, VOCABULARY))
            other.advance(found.token.view(rows, total), found.rest.view(rows, total))
            same(one, other)
        assert all(other.done)
        stopped.extend(one.stop_position(b) is not None for b in range(rows))
        wasted.append(bool(((one.token_step >= 0) & one.masked).any()))

    run()
    assert any(stopped)
    assert not all(stopped)
    assert any(wasted)  # a committed mask token left its position masked


def same(one: Denoising, other: OnDevice) -> None:
    state, length = other.state, one.x.shape[1]
    assert torch.equal(one.x, state.x)
    assert torch.equal(one.masked, state.masked)
    assert torch.equal(one.token_step, state.token_step)
    torch.testing.assert_close(one.token_confidence, state.token_confidence, rtol=0, atol=0)
    for b, done in enumerate(other.done):
        stop = one.stop_position(b)
        assert int(state.stop[b]) == (length if stop is None else stop)
        assert done == one._progress[b].done
        assert int(state.total[b]) == one._progress[b].total
        if not done:
            assert int(state.step[b]) == one._progress[b].step
