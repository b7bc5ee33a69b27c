"""A DeepSpeed without the names that are used is refused. test_zero.py runs the real ones."""

from types import SimpleNamespace

import pytest

from medv_ray.errors import SettingsError
from medv_ray.training.private_deepspeed import weights_follow, without_shared_memory


class Group:
    def __init__(self, said: list) -> None:
        self.said = said

    def all_gather(self, parameters: list) -> None:
        self.said.append(("gathered", len(parameters)))


def test_every_group_is_copied_then_the_persistent_ones_are_gathered() -> None:
    said: list = []
    zero = SimpleNamespace(
        fp32_partitioned_groups_flat=[0, 0],
        persistent_parameters=[Group(said)] * 3,
        _reassign_or_swap_out_partitioned_parameters=said.append,
    )
    follow = weights_follow(zero, "0.19.8")
    assert said == []
    follow()
    assert said == [0, 1, ("gathered", 3)]
    zero.persistent_parameters = []
    follow()
    assert said[3:] == [0, 1]


@pytest.mark.parametrize("check", [weights_follow, without_shared_memory])
def test_a_deepspeed_without_it_is_named(check) -> None:
    with pytest.raises(SettingsError, match=r"E1004.*deepspeed 9\.1 has no _.* any more"):
        check(SimpleNamespace(), "9.1")


def test_no_shared_memory() -> None:
    ops = SimpleNamespace(__compatible_ops__={"deepspeed_shm_comm": True, "other": True})
    without_shared_memory(ops, "0.19.8")
    assert ops.__compatible_ops__ == {"deepspeed_shm_comm": False, "other": True}
