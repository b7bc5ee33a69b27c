"""Thresholds, factors and k against a sort in Python; kernels against the reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medv_kernels import commit as kernel
from medv_kernels import reference, triton_commit
from medv_kernels.reference import BlockState

REST = st.sampled_from([0.0, 1e-30, 0.1, 0.25, 0.25, 1.0, 1.0, 3.0, 1e300, math.inf, math.nan])
MASK = 9


def accepted(keys: list[float], able: list[bool], masks: int | None, rule: dict[str, Any]) -> list:
    """Positions that take their token, by sorting; one number at a time."""
    order = sorted((key, i) for i, key in enumerate(keys) if able[i] and not math.isnan(key))
    confidence = [1 / (1 + key) for key, _ in order]
    if "k" in rule:
        count = rule["k"]
    elif "threshold" in rule:
        count = max(1, sum(c >= rule["threshold"] for c in confidence))
    else:
        masks = len(order) if masks is None else masks
        confidence += [-math.inf] * (masks - len(order))
        for rank, c in enumerate(confidence, start=1):
            passes = c >= 1 - rule["factor"] / (rank + 1) or (rank == 1 and c >= 0)
            if not passes:
                count = masks if rank == masks else rank - 1
                break
        else:
            count = masks
    return [i for _, i in order[:count]]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    length = draw(st.integers(1, 9))
    row = st.tuples(
        st.lists(REST, min_size=length, max_size=length),
        st.lists(st.booleans(), min_size=length, max_size=length),
        st.integers(0, 3),
    )
    rows = draw(st.lists(row, min_size=1, max_size=3))
    name = draw(st.sampled_from(["k", "threshold", "factor"]))
    numbers = {"threshold": [0.0, 0.5, 0.8, 0.9, 1.0, 2.0], "factor": [0.0, 0.4, 1.0, 2.0, 9.0]}
    if name == "k":
        value = draw(st.lists(st.integers(0, length + 2), min_size=len(rows), max_size=len(rows)))
    else:
        value = draw(st.sampled_from(numbers[name]))
    more = draw(st.booleans()) and name == "factor"
    return {"rows": rows, "rule": {name: value}, "masks": more}


def check_batch(batch: dict[str, Any], commit: Callable, device: torch.device) -> None:
    rest = torch.tensor([r[0] for r in batch["rows"]], dtype=torch.float64, device=device)
    eligible = torch.tensor([r[1] for r in batch["rows"]], device=device)
    x = torch.arange(rest.numel(), device=device).view(rest.shape)
    rule, masks = batch["rule"], None
    if batch["masks"]:
        spare = torch.tensor([r[2] for r in batch["rows"]], device=device)
        masks = (eligible & ~rest.isnan()).sum(1) + spare
    new, chosen = commit(x, eligible, x + 1000, rest, **rule, num_masks=masks)
    for b, (keys, able, _) in enumerate(batch["rows"]):
        mine = {name: value[b] if name == "k" else value for name, value in rule.items()}
        want = accepted(keys, able, None if masks is None else int(masks[b]), mine)
        assert sorted(want) == chosen[b].nonzero().flatten().tolist()
    assert torch.equal(new, torch.where(chosen, x + 1000, x))
    assert chosen.dtype == torch.bool


@settings(max_examples=300, deadline=None)
@given(batches())
def test_reference_equals_sorting(batch: dict[str, Any]) -> None:
    check_batch(batch, reference.commit, torch.device("cpu"))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batch=batches())
@pytest.mark.usefixtures("poison")
def test_kernel_equals_sorting(device: torch.device, batch: dict[str, Any]) -> None:
    check_batch(batch, kernel.commit, device)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_kernel_equals_the_reference(
    device: torch.device, length: int, dtype: torch.dtype, watch: Callable
) -> None:
    counted = watch(triton_commit, "ranks")
    generator = torch.manual_seed(length)
    rest = torch.randint(0, 40, (3, length), generator=generator).to(dtype) / 13  # many ties
    rest[0, ::5] = torch.inf
    rest[2, 1::7] = torch.nan
    eligible = torch.rand(3, length, generator=generator) < 0.8
    eligible[1] = False
    x = torch.randint(100, (3, length), generator=generator)
    rules = [{"k": [length // 2, 3, length + 1]}, {"threshold": 0.4}, {"factor": 0.9}]
    for rule in rules:
        want = reference.commit(x, eligible, x + 500, rest, **rule)
        there = [part.to(device) for part in (x, eligible, x + 500, rest)]
        got = kernel.commit(*there, **rule)
        assert torch.equal(got[0].cpu(), want[0])
        assert torch.equal(got[1].cpu(), want[1])
        assert torch.equal(there[0].cpu(), x)  # not changed
    assert counted.grids == [(3, -(-length // 64))] * 3


def test_a_row_of_the_longest_length(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu":
        monkeypatch.setattr(kernel, "TILE", 512)  # the interpreter pays for every tile
    rest = torch.zeros(1, kernel.MOST, device=device)
    rest[0, 4000:] = -1.0
    x = torch.zeros(1, kernel.MOST, dtype=torch.int64, device=device)
    chosen = kernel.commit(x, x == 0, x + 1, rest, torch.tensor([100], device=device))[1]
    assert chosen.nonzero()[:, 1].tolist() == [*range(4), *range(4000, 4096)]
    with pytest.raises(ValueError, match="at most 4096"):
        kernel.commit(*(torch.zeros(1, 4097, device=device).long() for _ in range(4)), [1])


def test_counts_alone() -> None:
    rest = torch.tensor([[0.0, 0.1, 1.0, 9.0], [9.0, 9.0, 9.0, 0.0]])
    eligible = torch.tensor([[True] * 4, [True] * 3 + [False]])
    assert reference.accepted_by_threshold(rest, eligible, 0.5).tolist() == [3, 1]
    assert reference.accepted_by_threshold(rest, eligible & False, 0.5).tolist() == [0, 0]
    # rank 2 needs 1 - 0.6 / 3 = 0.8 and has 0.91, rank 3 needs 0.85 and has 0.5
    assert reference.accepted_by_factor(rest, eligible, 0.6).tolist() == [2, 1]
    # with two masks left both go
    two = torch.tensor([[True, False, False, True], [False] * 4])
    assert reference.accepted_by_factor(rest, two, 0.0).tolist() == [2, 0]
    num_masks = torch.tensor([3, 1])
    assert reference.accepted_by_factor(rest, two, 0.0, num_masks).tolist() == [1, 0]


@pytest.mark.parametrize("commit", [reference.commit, kernel.commit])
def test_exactly_one_rule(commit: Callable) -> None:
    x, rest = torch.zeros(1, 2).long(), torch.zeros(1, 2)
    for rules in ({}, {"k": [1], "threshold": 0.5}, {"threshold": 0.5, "factor": 1.0}):
        with pytest.raises(ValueError, match="one of k, threshold and factor"):
            commit(x, x == 0, x, rest, **rules)


STOPS = [[], [[3]], [[2, 3], [1]], [[], [4]], [[1, 1, 1], [5], [2, 2]]]


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    length = draw(st.integers(2, 9))
    rows = draw(st.integers(1, 3))
    starts = draw(st.lists(st.integers(0, length - 1), min_size=rows, max_size=rows))
    rule = draw(
        st.sampled_from(["k", {"threshold": 0.6}, {"threshold": 0.6, "steps": 2}, {"factor": 0.7}])
    )
    return {
        "shape": (rows, length),
        "starts": starts,
        "rule": rule,
        "seed": draw(st.integers(0, 10**6)),
        "stops": draw(st.sampled_from(STOPS)),
        "nan": draw(st.booleans()),
        "masks": draw(st.booleans()),
    }


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=steps())
@pytest.mark.usefixtures("poison")
def test_step_kernel_equals_the_reference(device: torch.device, case: dict[str, Any]) -> None:
    (rows, length), generator = case["shape"], torch.manual_seed(case["seed"])
    start = torch.tensor(case["starts"])
    x = torch.randint(6, (rows, length), generator=generator)
    masked = torch.rand(rows, length, generator=generator) < 0.9
    x[masked] = MASK
    want = BlockState.begin(x, masked, start, torch.minimum(start + 4, torch.tensor(length)))
    got = BlockState(**{name: part.clone().to(device) for name, part in vars(want).items()})
    homes = {name: part.data_ptr() for name, part in vars(got).items()}
    rule = case["rule"]
    if rule == "k":
        rule = {"k": torch.randint(0, 3, (rows, 5), generator=generator)}
    if case["masks"] and "factor" in rule:
        rule = {**rule, "num_masks": masked.sum(1)}
    for step in range(6):
        token = torch.randint(6, (rows, length), generator=generator)
        token[torch.rand(rows, length, generator=generator) < 0.15] = MASK
        rest = torch.rand(rows, length, generator=generator, dtype=torch.float64) * 2
        if case["nan"] and step == 1:
            rest[0, case["starts"][0]] = torch.nan
        options = {"mask_id": MASK, "stop_ids": case["stops"]}
        reference.commit_step(want, token, rest, **rule, **options)
        there = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in rule.items()}
        kernel.commit_step(got, token.to(device), rest.to(device), **there, **options)
        for name, part in vars(want).items():
            assert torch.equal(part, getattr(got, name).cpu()), name
            assert getattr(got, name).data_ptr() == homes[name]


def begin(rows: int, length: int, device: torch.device) -> BlockState:
    x = torch.full((rows, length), MASK, device=device)
    start = torch.zeros(rows, dtype=torch.int64, device=device)
    return BlockState.begin(x, x == MASK, start, start + length)


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_a_row_whose_odds_are_nan_changes_no_more(step: Callable, device: torch.device) -> None:
    state = begin(2, 4, device)
    k = torch.ones(2, 4, dtype=torch.int64, device=device)
    token = torch.arange(8, device=device).view(2, 4)
    rest = torch.rand(2, 4, device=device)
    rest[0, 2] = torch.nan
    step(state, token, rest, k, mask_id=MASK)
    assert state.failed.tolist() == [True, False]
    assert state.left.tolist() == [0, 3]
    assert state.step.tolist() == state.total.tolist() == [0, 1]
    before = copy.deepcopy(state)
    step(state, token, rest.nan_to_num(1.0), k, mask_id=MASK)
    for name, part in vars(state).items():
        assert torch.equal(part[0], getattr(before, name)[0]), name
    assert state.step.tolist() == [0, 2]


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_a_row_with_nothing_left_rests(step: Callable, device: torch.device) -> None:
    """So a caller makes it wait: nothing of it changes, though it has masks and steps."""
    state = begin(2, 4, device)
    state.left[0] = 0
    before = copy.deepcopy(state)
    k = torch.ones(2, 4, dtype=torch.int64, device=device)
    token, rest = torch.zeros(2, 4, dtype=torch.int64, device=device), torch.rand(2, 4).to(device)
    step(state, token, rest, k, mask_id=MASK)
    for name, part in vars(state).items():
        assert torch.equal(part[0], getattr(before, name)[0]), name
    assert state.left.tolist() == [0, 3]


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_nan_where_nothing_is_committed_is_no_failure(step: Callable, device: torch.device) -> None:
    """A step of k = 0 needs no odds; nor do positions behind the limit or without a mask."""
    state = begin(1, 4, device)
    state.masked[0, 0] = False
    state.block_end[0] = 3
    k = torch.tensor([[0, 1]], device=device)
    token = torch.zeros(1, 4, dtype=torch.int64, device=device)
    rest = torch.full((1, 4), torch.nan, device=device)
    step(state, token, rest, k, mask_id=MASK)
    rest[0, 1:3] = 0.5
    step(state, token, rest, k, mask_id=MASK)
    assert state.failed.tolist() == [False]
    assert state.x.tolist() == [[MASK, 0, MASK, MASK]]
    assert state.token_step.tolist() == [[-1, 1, -1, -1]]
    assert state.token_confidence[0].tolist() == pytest.approx([0, 1 / 1.5, 0, 0], rel=1e-6)
    assert state.left.tolist() == [0]  # the block has had its two steps


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_order_of_stop_sequences(step: Callable, device: torch.device) -> None:
    """The table of medv_ray's find_stop: found where before, and now. L, here 4, is nowhere."""
    for answer, sequences, before, want in [
        ([1, 2, 3], [[2, 3], [1]], 4, 1),  # the first that occurs, not the leftmost
        ([1, 2, 3], [[8], [3]], 4, 2),
        ([1, 2, 3], [[3], [1]], 2, 2),  # once cut, only the first is looked for
        ([1, 2, 3], [[7], [1]], 2, 2),
        ([1, 2, 1], [[1], [2]], 2, 0),  # to the left
        ([3, 3, 1], [[1]], 1, 1),  # never to the right
        ([1, 2, 3], [[], [1]], 4, 0),
        ([1, 2, 3], [[], [1]], 2, 2),
        ([1, 2, 3], [[3, MASK, 1], [1, 2, 3, MASK, 5]], 4, 4),  # would run past the end
        ([1, 2, 3], [], 4, 4),
    ]:
        state = begin(1, 4, device)
        state.x[0, :3] = torch.tensor(answer, device=device)
        state.stop[0] = before
        token = torch.zeros(1, 4, dtype=torch.int64, device=device)
        nothing = torch.zeros(1, 9, dtype=torch.int64, device=device)
        step(state, token, token.float(), nothing, mask_id=MASK, stop_ids=sequences)
        assert int(state.stop) == want, (answer, sequences, before)


def test_state_must_be_contiguous(device: torch.device) -> None:
    state = begin(3, 3, device)
    state.x = state.x.T
    state.masked = state.masked.T
    with pytest.raises(ValueError, match="x.*masked.*must be contiguous"):
        kernel.commit_step(state, state.x, state.token_confidence, threshold=0.5, mask_id=MASK)
