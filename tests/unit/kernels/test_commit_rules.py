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
from medv_kernels import ops, reference, triton_commit
from medv_kernels.reference import ResponseState

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


@settings(max_examples=100, deadline=None)
@given(batches())
def test_reference_equals_sorting(batch: dict[str, Any]) -> None:
    check_batch(batch, reference.commit, torch.device("cpu"))


@settings(
    max_examples=30,
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


def test_a_longer_row_takes_plain_torch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "takes_kernels", lambda tensor: True)
    x = torch.zeros(1, kernel.MOST + 1, dtype=torch.int64, device=device)
    rest, one = torch.ones(x.shape, device=device), torch.ones(1, device=device).long()
    rest[0, -1] = 0.5
    chosen = ops.commit(x, x == 0, x + 1, rest, one)[1]
    assert chosen.nonzero().tolist() == [[0, kernel.MOST]]
    state = reference.ResponseState.begin(x, x == 0)
    ops.commit_step(state, x + 1, rest, one * x.shape[1], one, one, mask_id=0)
    assert state.masked.logical_not().nonzero().tolist() == [[0, kernel.MOST]]


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
    length, rows = draw(st.integers(2, 9)), draw(st.integers(1, 2))
    return {
        "shape": (rows, length),
        "rule": draw(st.sampled_from(["k", "threshold", "factor"])),
        "seed": draw(st.integers(0, 10**6)),
        "stops": draw(st.sampled_from(STOPS)),
        "start": draw(st.integers(0, 2)),
        "nan": draw(st.booleans()),
        "masks": draw(st.booleans()),
        "key": draw(st.booleans()),
    }


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=steps())
@pytest.mark.usefixtures("poison")
def test_step_kernel_equals_the_reference(device: torch.device, case: dict[str, Any]) -> None:
    (rows, length), generator = case["shape"], torch.manual_seed(case["seed"])
    x = torch.randint(6, (rows, length), generator=generator)
    masked = torch.rand(rows, length, generator=generator) < 0.9
    x[masked] = MASK
    want = ResponseState.begin(x, masked)
    got = ResponseState(**{name: part.clone().to(device) for name, part in vars(want).items()})
    homes = {name: part.data_ptr() for name, part in vars(got).items()}
    for step in range(4):
        token = torch.randint(6, (rows, length), generator=generator)
        token[torch.rand(rows, length, generator=generator) < 0.15] = MASK
        rest = torch.rand(rows, length, generator=generator, dtype=torch.float64) * 2
        if case["nan"] and step == 1:
            rest[0, 0] = torch.nan
        limit = torch.randint(0, length + 1, (rows,), generator=generator)
        rule: dict[str, Any] = {"k": torch.randint(0, 3, (rows,), generator=generator)}
        if case["rule"] != "k":
            rule = {case["rule"]: torch.rand(rows, generator=generator, dtype=torch.float64)}
        if case["masks"] and "factor" in rule:
            rule["num_masks"] = want.masked.sum(1)
        if case["key"] and "k" in rule:
            rule["key"] = torch.randint(0, 3, (rows, length), generator=generator).double()
        number = torch.full((rows,), step)
        options = {"mask_id": MASK, "stop_ids": case["stops"], "start": case["start"]}
        there = {n: v.to(device) for n, v in rule.items()}
        given = [part.to(device) for part in (token, rest, limit, number)]
        reference.commit_step(want, token, rest, limit, number, **rule, **options)
        kernel.commit_step(got, *given, **there, **options)
        for name, part in vars(want).items():
            assert torch.equal(part, getattr(got, name).cpu()), name
            assert getattr(got, name).data_ptr() == homes[name]


def begin(rows: int, length: int, device: torch.device) -> ResponseState:
    x = torch.full((rows, length), MASK, device=device)
    return ResponseState.begin(x, x == MASK)


def step_of(take: Callable, state: ResponseState, token: Tensor, rest: Tensor, **more: Any) -> None:
    """One step of all rows, committing one token each, unless `more` says otherwise."""
    rows, length = state.x.shape
    whole = torch.full((rows,), length, device=token.device)
    given = {"limit": whole, "step": torch.zeros_like(whole), "k": torch.ones_like(whole)} | more
    take(state, token, rest, given.pop("limit"), given.pop("step"), mask_id=MASK, **given)


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_a_row_whose_odds_are_nan_does_not_change(step: Callable, device: torch.device) -> None:
    state = begin(2, 4, device)
    before = copy.deepcopy(state)
    token = torch.arange(8, device=device).view(2, 4)
    rest = torch.rand(2, 4, device=device)
    rest[0, 2] = torch.nan
    step_of(step, state, token, rest)
    assert state.failed.tolist() == [True, False]
    assert state.masked.sum(1).tolist() == [4, 3]
    before.failed[0] = True
    for name, part in vars(state).items():
        assert torch.equal(part[0], getattr(before, name)[0]), name


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_a_row_without_limit_rests(step: Callable, device: torch.device) -> None:
    """So a caller makes it wait: nothing of it changes, whatever its odds are."""
    state = begin(2, 4, device)
    before = copy.deepcopy(state)
    token, rest = torch.zeros(2, 4, dtype=torch.int64, device=device), torch.rand(2, 4).to(device)
    rest[0] = torch.nan
    step_of(step, state, token, rest, limit=torch.tensor([0, 4], device=device))
    for name, part in vars(state).items():
        assert torch.equal(part[0], getattr(before, name)[0]), name
    assert state.masked.sum(1).tolist() == [4, 3]


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_nan_where_nothing_may_be_committed_is_no_failure(
    step: Callable, device: torch.device
) -> None:
    """Behind the limit, or without a mask."""
    state = begin(1, 4, device)
    state.masked[0, 0] = False
    token = torch.zeros(1, 4, dtype=torch.int64, device=device)
    rest = torch.full((1, 4), torch.nan, device=device)
    rest[0, 1:3] = 0.5
    limit, number = torch.tensor([3], device=device), torch.tensor([7], device=device)
    step_of(step, state, token, rest, limit=limit, step=number)
    assert state.failed.tolist() == [False]
    assert state.x.tolist() == [[MASK, 0, MASK, MASK]]
    assert state.token_step.tolist() == [[-1, 7, -1, -1]]
    assert state.token_confidence[0].tolist() == pytest.approx([0, 1 / 1.5, 0, 0], rel=1e-6)


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_each_row_has_a_threshold_of_its_own(step: Callable, device: torch.device) -> None:
    state = begin(3, 4, device)
    token = torch.zeros(3, 4, dtype=torch.int64, device=device)
    rest = torch.tensor([0.0, 0.5, 1.0, 3.0], device=device).expand(3, 4)
    threshold = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64, device=device)
    step_of(step, state, token, rest, k=None, threshold=threshold)
    assert (~state.masked).sum(1).tolist() == [1, 3, 4]


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_a_key_goes_with_k(step: Callable, device: torch.device) -> None:
    state = begin(1, 3, device)
    token, odds = torch.zeros(1, 3, device=device).long(), torch.zeros(1, 3, device=device)
    with pytest.raises(ValueError, match="a key goes with k"):
        step_of(step, state, token, odds, k=None, threshold=odds[:, 0].double(), key=odds)


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_another_key_may_decide_who_is_first(step: Callable, device: torch.device) -> None:
    """The odds still say how sure a token is."""
    state = begin(1, 3, device)
    token = torch.zeros(1, 3, dtype=torch.int64, device=device)
    rest = torch.tensor([[0.0, 1.0, torch.inf]], device=device)
    key = torch.tensor([[3.0, 2.0, -1.0]], device=device, dtype=torch.float64)
    step_of(step, state, token, rest, key=key, k=torch.tensor([2], device=device))
    assert state.masked.tolist() == [[True, False, False]]
    assert state.token_confidence.tolist() == [[0.0, 0.5, 0.0]]


@pytest.mark.parametrize("step", [reference.commit_step, kernel.commit_step])
def test_order_of_stop_sequences(step: Callable, device: torch.device) -> None:
    """Found where before, and now. L, here 4, is nowhere."""
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
        nothing = torch.zeros(1, dtype=torch.int64, device=device)
        step_of(step, state, token, token.float(), k=nothing, stop_ids=sequences)
        assert int(state.stop) == want, (answer, sequences, before)


def test_state_must_be_contiguous(device: torch.device) -> None:
    state = begin(3, 3, device)
    state.x = state.x.T
    state.masked = state.masked.T
    with pytest.raises(ValueError, match="x.*masked.*must be contiguous"):
        step_of(kernel.commit_step, state, state.x, state.token_confidence)
