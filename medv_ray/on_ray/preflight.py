"""How many actors fit, before any of them is asked for."""

from __future__ import annotations

from typing import NamedTuple

from medv_ray.errors import RunError
from medv_ray.on_ray.options import PoolSettings

OWN_CPUS = 0
"""CPUs that Ray's own part of the job takes. The source, the supervisor and Ray Data's bookkeeping
run with `num_cpus=0`; so a pool may take every CPU: 2 actors on 2 CPUs run, where a source of one
CPU, Ray Data's default, would wait for ever."""


class Capacity(NamedTuple):
    """What the cluster has, used or not."""

    cpus: float
    gpus: float
    elastic: bool
    """A cluster that may grow: `max_actors` may lie above what fits now."""


class PoolSize(NamedTuple):
    """Bounds of the actor pool."""

    smallest: int
    largest: int
    in_flight: int
    """Chunks that are sent to an actor ahead of their turn."""


def size_pool(pool: PoolSettings, capacity: Capacity, num_chunks: int) -> PoolSize:
    """Bounds for a pool that runs. Raises RunError E1505 when it would wait for ever."""
    fits = int(capacity.cpus)
    for need, has, what, flag in (
        (pool.cpus, capacity.cpus - OWN_CPUS, "CPUs", "--cpus-per-actor"),
        (pool.num_gpus, capacity.gpus, "GPUs", "--num-gpus"),
    ):
        if not need:
            continue
        fits = min(fits, int(has / need)) if what == "CPUs" else int(has / need)
        asked = pool.min_actors or 1
        if not capacity.elastic:
            asked = max(asked, pool.max_actors or 1)
        if asked * need > has:
            raise RunError(
                "E1505",
                f"{asked} actors x {flag} {need:g} need {asked * need:g} {what}, and the cluster "
                f"has {has:g}. Use at most {int(has / need)} actors, or a smaller {flag}.",
            )
    largest = min(pool.max_actors or max(fits, 1), max(num_chunks, 1))
    smallest = pool.min_actors or (1 if capacity.elastic else largest)
    # a chunk of 40 ms needs 8 ahead, as Ray Data looks every 0.1 s; a short job needs even shares;
    # and Ray Data starts more actors only when 1.75 x 2 (calls at once) wait for each that there is
    fewest = 4 if capacity.elastic else 2
    in_flight = max(fewest, min(8, num_chunks // (2 * largest)))
    return PoolSize(min(smallest, largest), largest, in_flight)
