"""`commit`: the k best eligible positions of each row, ties to the lowest."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medv_kernels.reference import commit

KEYS = st.sampled_from([0.0, 1e-30, 1e-20, 0.5, 0.5, 2.0, 1e300, math.inf])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_sorting_each_row(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 9))
    row = st.tuples(
        st.lists(KEYS, min_size=length, max_size=length),
        st.lists(st.booleans(), min_size=length, max_size=length),
        st.integers(0, length + 2),
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    rest = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    eligible = torch.tensor([r[1] for r in rows])
    x = torch.arange(len(rows) * length).view(len(rows), length)
    token = x + 1000
    k = [r[2] for r in rows]

    new, chosen = commit(x, eligible, token, rest, k)

    for b, (keys, able, count) in enumerate(rows):
        ranked = sorted((key, i) for i, key in enumerate(keys) if able[i])
        want = {i for _, i in ranked[:count]}
        assert set(chosen[b].nonzero().flatten().tolist()) == want
    assert torch.equal(new, torch.where(chosen, token, x))


def test_garbage_at_positions_that_are_not_eligible_is_never_looked_at() -> None:
    x = torch.tensor([[1, 2, 3, 4]])
    eligible = torch.tensor([[False, True, False, True]])
    token = torch.tensor([[-99, 20, -99, 40]])
    rest = torch.tensor([[math.nan, 3.0, -math.inf, 2.0]])
    for k, want in (([0], [1, 2, 3, 4]), ([1], [1, 2, 3, 40]), ([4], [1, 20, 3, 40])):
        assert commit(x, eligible, token, rest, k)[0].tolist() == [want]
    assert x.tolist() == [[1, 2, 3, 4]]


def test_probability_zero_goes_before_a_position_that_is_not_eligible() -> None:
    x = torch.zeros(1, 3, dtype=torch.int64)
    eligible = torch.tensor([[False, True, True]])
    rest = torch.tensor([[0.0, math.inf, math.inf]], dtype=torch.float64)
    assert commit(x, eligible, x + 7, rest, torch.tensor([1]))[0].tolist() == [[0, 7, 0]]


def test_ties_go_to_the_lowest_position_in_long_rows() -> None:
    x = torch.zeros(2, 500, dtype=torch.int64)
    chosen = commit(x, x == 0, x + 1, torch.zeros(2, 500), [3, 499])[1]
    assert chosen[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert not chosen[1, 499]
