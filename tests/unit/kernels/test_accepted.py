"""`accepted_by_*`: how many of a row's ranked positions a step commits."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_kernels.reference import accepted_by_factor, accepted_by_threshold
from tests.unit.diffusion.conftest import plain_count

# confidences 1, 1, 0.9, 0.75, 2/3, 0.5, 0.2, 0: many stand exactly on a bound
RESTS = st.sampled_from([0.0, 1e-20, 1 / 9, 1 / 3, 0.5, 1.0, 4.0, math.inf])
BOUNDS = st.sampled_from([0.0, 0.2, 0.5, 0.75, 1.0, 1.5, 3.0])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_counting_in_each_row(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 7))
    row = st.tuples(
        st.lists(RESTS, min_size=length, max_size=length),
        st.lists(st.booleans(), min_size=length, max_size=length),
        st.integers(0, 3),  # masks behind those that may be committed
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    bound = data.draw(BOUNDS)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    rest = torch.tensor([r[0] for r in rows], dtype=dtype)
    eligible = torch.tensor([r[1] for r in rows])
    junk = torch.tensor([[math.nan, -0.5][i % 2] for i in range(length)], dtype=dtype)
    rest = torch.where(eligible, rest, junk)
    num_masks = torch.tensor([sum(r[1]) + r[2] for r in rows])

    for rule, got in (
        ("factor", accepted_by_factor(rest, eligible, bound)),
        ("factor_llada_v", accepted_by_factor(rest, eligible, bound, num_masks)),
        ("threshold", accepted_by_threshold(rest, eligible, bound)),
    ):
        assert got.dtype is torch.int64
        spec = SimpleNamespace(rule=rule, threshold=bound, factor=bound)
        for b in range(len(rows)):
            ranked = sorted(rest[b, eligible[b]].tolist())
            masks = int(num_masks[b]) if rule == "factor_llada_v" else len(ranked)
            want = plain_count(ranked, spec, masks) if ranked else 0
            assert int(got[b]) == want, (rule, bound, ranked, masks)


@pytest.mark.parametrize(
    ("confidences", "factor", "count"),
    [
        ([0.1, 0.1, 0.1], 0.0, 1),  # the first always passes
        ([0.1, 0.1], 0.0, 2),  # a failure at the very last rank is accepted too
        ([0.1], 0.0, 1),
        ([1.0, 1.0, 1.0], 0.0, 3),
        ([0.9, 0.66, 0.9, 0.1], 1.0, 2),  # ranked 0.9, 0.9, 0.66: 2/3 and 3/4 are asked
        ([0.9, 0.7, 0.76, 0.1, 0.0], 1.0, 2),
        ([0.1] * 6, 9.0, 6),  # bounds below 0: all pass
        ([0.4, 0.4, 0.4, 0.4], 2.0, 2),  # 1/3 is passed, 1/2 is not
    ],
)
def test_ranks_and_bounds(confidences: list[float], factor: float, count: int) -> None:
    rest = 1 / torch.tensor([confidences], dtype=torch.float64) - 1
    # a third of the row may not be committed, however sure it is
    rest = torch.cat((rest, torch.zeros(1, 2, dtype=torch.float64)), 1)
    able = torch.arange(rest.shape[1])[None] < len(confidences)
    got = accepted_by_factor(rest, able, factor)
    assert int(got) == count
    assert int(got) <= int(able.sum())


def test_confidence_on_the_threshold_is_accepted_and_none_is_one() -> None:
    rest = torch.tensor([[1.0, 0.0, math.inf], [1.1, 2.0, math.inf], [0.0, 0.0, 0.0]])
    able = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    assert accepted_by_threshold(rest, able, 0.5).tolist() == [2, 1, 0]
    assert accepted_by_threshold(rest, able, 1.0).tolist() == [1, 1, 0]
    # float32 probabilities of 1 - 1e-9 are 1: not certain enough for a threshold of 1
    almost = torch.tensor([[1e-9, 1e-9, 0.0]])
    assert accepted_by_threshold(almost, able[:1], 1.0).tolist() == [1]
    assert accepted_by_threshold(almost, able[:1], 1 - 1e-8).tolist() == [3]
