"""LLaDA-V's stop rule, corner by corner."""

import pytest
import torch

from medv_ray.diffusion.rules import find_stop


@pytest.mark.parametrize(
    ("answer", "sequences", "found", "want"),
    [
        ([1, 2, 3], [], None, None),
        ([1, 2, 3], [(4,)], None, None),
        ([1, 2, 3], [(1,)], None, 0),
        ([1, 2, 3], [(3,)], None, 2),
        ([3, 2, 3], [(3,)], None, 0),
        ([1, 2, 3], [(2, 3)], None, 1),
        ([1, 2, 3], [(3, 4)], None, None),  # would run past the end
        ([1, 2], [(1, 2, 3)], None, None),  # longer than the answer
        ([1, 2, 3], [()], None, None),  # an empty sequence occurs nowhere
        ([1, 1, 2], [(1, 2)], None, 1),
        ([5, 6, 7], [(7,), (5,)], None, 2),  # order of the list, not of the answer
        ([5, 6, 7], [(9,), (6,)], None, 1),  # a first sequence that is absent lets the next one try
        ([5, 6, 5], [(5,)], 2, 0),  # moves left
        ([6, 6, 5], [(5,)], 1, 1),  # never right
        ([5, 6, 7], [(9,), (5,)], 2, 2),  # once cut, only the first sequence is looked for
        ([5, 6, 7], [(5,), (9,)], 2, 0),
    ],
)
def test_find_stop(answer: list, sequences: list, found: int | None, want: int | None) -> None:
    assert find_stop(torch.tensor(answer), sequences, found) == want
