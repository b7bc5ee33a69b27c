"""The cuts of row groups, made when they are asked for."""

import pytest

from medv_ray.archive.chunks import Cut
from medv_ray.archive.group_cuts import GroupCuts


def test_cuts_are_those_of_a_list():
    cuts = GroupCuts()
    groups = ((0, 0, 4), (0, 10, 4), (10, 10, 4), (10, 13, 4), (13, 13, 1), (13, 15, 1))
    for first, stop, step in groups:
        cuts.add(first, stop, step)
    listed = [
        Cut(range(4), (1, 0)), Cut(range(4, 8), (1, 0)), Cut(range(8, 10), (1, 0)),
        Cut(range(10, 13), (3, 10)), Cut(range(13, 14), (5, 13)), Cut(range(14, 15), (5, 13)),
    ]  # fmt: skip
    assert list(cuts) == listed
    assert (len(cuts), cuts[-1], cuts[1:3]) == (6, listed[-1], listed[1:3])
    with pytest.raises(IndexError):
        cuts[6]
    assert list(GroupCuts()) == []
