"""The names of DeepSpeed's that begin with an underscore, all that are used. Without the first a
resumed run would compute with other weights than it holds: it is refused before it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medv_ray.errors import SettingsError

REASSIGN = "_reassign_or_swap_out_partitioned_parameters"
COMPATIBLE = "__compatible_ops__"


def weights_follow(zero: Any, version: str) -> Callable[[], None]:
    """What an update of the ZeRO-3 optimizer `zero` does last: the weights that are computed with
    follow the float32 ones. Raises SettingsError E1004 where DeepSpeed has no such step."""
    if not hasattr(zero, REASSIGN):
        raise gone(version, REASSIGN)

    def follow() -> None:
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    return follow


def without_shared_memory(ops: Any, version: str) -> None:
    """Collectives are gloo's; DeepSpeed's own would be compiled, in 90 s. `ops`: deepspeed.ops.
    Raises SettingsError E1004."""
    if not hasattr(ops, COMPATIBLE):
        raise gone(version, COMPATIBLE)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def gone(version: str, name: str) -> SettingsError:
    """E1004, for the caller to raise."""
    lacks = f"deepspeed {version} has no {name} any more, which shard.engine=zero3 needs"
    return SettingsError("E1004", f"{lacks}: install the version of constraints.txt.")
