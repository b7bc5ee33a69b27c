"""LLaDA-V's stop rule, corner by corner."""

import pytest
import torch

from medv_kernels.reference import find_stop


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
    size = len(answer)
    for begin in (0, 2):  # what stands in front of the answer is not looked at
        row = torch.tensor(
            [[9, sequences[0][0] if sequences and sequences[0] else 9][:begin] + answer]
        )
        stop = torch.tensor([begin + (size if found is None else found)])
        find_stop(row, sequences, stop, begin)
        assert int(stop) == begin + (size if want is None else want)
