"""How many actors fit, before any of them is asked for.

Ray's own part of the job takes no CPU: the source, the supervisor and Ray Data's bookkeeping run
with `num_cpus=0`. So a pool may take every CPU: 2 actors on 2 CPUs run, where a source of one CPU,
Ray Data's default, would wait for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from medv_ray.errors import RunError
from medv_ray.on_ray.options import PoolSettings

if TYPE_CHECKING:
    from medv_ray.training.job import WorkerSettings

EXACT = 1e-9  # 0.3 / 0.1 is 2.9999999999999996
DECODE_IN_FLIGHT = 3
"""Chunks that are sent to a decoding actor: one is decoded, one is read, one waits."""


class Node(NamedTuple):
    """What a machine has, used or not."""

    cpus: float
    gpus: float

    def room(self, pool: PoolSettings) -> int:
        """Actors that fit; one that takes nothing counts as one a CPU."""
        rooms = []
        if pool.cpus or not pool.num_gpus:
            rooms.append(int(self.cpus / (pool.cpus or 1) + EXACT))
        if pool.num_gpus >= 1:
            rooms.append(int(self.gpus / pool.num_gpus + EXACT))
        elif pool.num_gpus:  # a share lies on one GPU
            rooms.append(int(self.gpus) * int(1 / pool.num_gpus + EXACT))
        return min(rooms)


class Capacity(NamedTuple):
    """The machines of a cluster."""

    nodes: tuple[Node, ...]
    elastic: bool
    """A cluster that may grow: `max_actors` may lie above what fits now."""


class PoolSize(NamedTuple):
    """Bounds of the actor pool, and how many decode in front of it."""

    smallest: int
    largest: int
    in_flight: int
    """Chunks that are sent to an actor ahead of their turn."""
    decoders: int = 0

    @property
    def window(self) -> int:
        """Chunks that are under way at one time, at most. Where they are decoded ahead of the
        model, that many of them lie in Ray's object store."""
        if self.decoders:
            return self.largest * self.in_flight + self.decoders * DECODE_IN_FLIGHT + 2
        return 2 * self.largest * self.in_flight + 2


def size_pool(pool: PoolSettings, capacity: Capacity, num_chunks: int) -> PoolSize:
    """Bounds for a pool that runs. Raises RunError E1505 when it would wait for ever.

    Who asks a cluster for more with `max_actors` expects it to grow, from nothing even: that job
    waits, and says so.
    """
    decoders = min(pool.decode_actors, max(num_chunks, 1))
    nodes, left = without(capacity.nodes, decoders)
    fits = sum(node.room(pool) for node in nodes)
    few = f", and {decoders} chunks" if decoders < pool.decode_actors else ""
    flag = f"(--decode-actors {pool.decode_actors}{few})"
    beside = f" beside {decoders} that decode {flag}" if decoders else ""
    if left and not capacity.elastic:
        cpus = sum(node.cpus for node in capacity.nodes)
        raise RunError(
            "E1505",
            f"{decoders} actors that decode {flag} take a CPU each, and this machine has {cpus:g}. "
            "Use fewer; 0: each scoring actor decodes its own pictures.",
        )
    asked = pool.min_actors or 1
    if not capacity.elastic:
        asked = max(asked, pool.max_actors or 1)
    grows = capacity.elastic and (pool.max_actors or 0) > fits
    if asked > fits and not grows:
        cpus, gpus = max(capacity.nodes, key=lambda n: (n.gpus if pool.num_gpus else 0, n.cpus))
        way_out = f"Use at most {fits} actors, or smaller ones." if fits else "Use smaller ones."
        if pool.num_gpus and not gpus:
            way_out += " Without --num-gpus the job runs on CPUs."
        if capacity.elastic:
            way_out += " If the cluster grows, say how far: --max-actors."
        raise RunError(
            "E1505",
            f"{asked} actors of {pool.cpus:g} CPUs (--cpus-per-actor) and {pool.num_gpus:g} GPUs "
            f"(--num-gpus) are asked for{beside}, and {fits} fit: the largest of "
            f"{len(capacity.nodes)} nodes has {cpus:g} CPUs and {gpus:g} GPUs. {way_out}",
        )
    largest = min(pool.max_actors or fits, max(num_chunks, 1))
    smallest = pool.min_actors or (1 if capacity.elastic else largest)
    # chunks of 40 ms need 8 ahead, as Ray Data looks every 0.1 s or later; a short job needs even
    # shares; and Ray Data starts more actors only when 1.75 x 2 (calls at once) wait for each
    fewest = 4 if capacity.elastic else 2
    in_flight = max(fewest, min(8, num_chunks // (2 * largest)))
    if decoders:  # what waits is large
        in_flight = min(in_flight, 4)
    return PoolSize(min(smallest, largest), largest, in_flight, decoders)


def without(nodes: Sequence[Node], cpus: int) -> tuple[list[Node], int]:
    """The nodes with whole cores taken away, from those without GPUs first, as Ray does; and how
    many cores there were not."""
    kept = []
    for node in sorted(nodes, key=lambda node: node.gpus):
        taken = min(cpus, int(node.cpus + EXACT))
        cpus -= taken
        kept.append(node._replace(cpus=node.cpus - taken))
    return kept, cpus


def check_workers(workers: WorkerSettings, capacity: Capacity) -> int:
    """Training workers that fit now. Raises RunError E1505 on one machine with room for too few; a
    cluster may grow."""
    pool = PoolSettings(cpus_per_actor=workers.cpus_per_worker, num_gpus=workers.num_gpus)
    fits = sum(node.room(pool) for node in capacity.nodes)
    if fits < (workers.min_workers or workers.num_workers) and not capacity.elastic:
        cpus, gpus = (sum(of) for of in zip(*capacity.nodes, strict=True))
        way_out = (
            " Without --num-gpus the job runs on CPUs." if workers.num_gpus and not gpus else ""
        )
        raise RunError(
            "E1505",
            f"{workers.num_workers} workers (--num-workers) of {workers.cpus_per_worker} CPUs "
            f"(workers.cpus_per_worker) and {workers.num_gpus} GPUs (--num-gpus) are asked for, "
            f"and {fits} fit: this machine has {cpus:g} CPUs and {gpus:g} GPUs.{way_out}",
        )
    return fits
