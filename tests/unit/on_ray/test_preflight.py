import pytest

from medv_ray.errors import RunError, SettingsError
from medv_ray.on_ray.options import PoolSettings
from medv_ray.on_ray.preflight import Capacity, Node, PoolSize, check_workers, size_pool
from medv_ray.settings import build
from medv_ray.training.job import WorkerSettings


def cluster(*nodes: tuple[float, float], elastic: bool = False) -> Capacity:
    return Capacity(tuple(Node(*node) for node in nodes), elastic)


TWO = cluster((2, 0))


def test_a_machine_is_filled() -> None:
    assert size_pool(PoolSettings(), TWO, 1000) == PoolSize(2, 2, 8)


def test_no_more_actors_than_chunks() -> None:
    assert size_pool(PoolSettings(), cluster((64, 0)), 3)[:2] == (3, 3)


def test_short_jobs_are_shared_evenly() -> None:
    assert size_pool(PoolSettings(), TWO, 8).in_flight == 2


@pytest.mark.parametrize(
    ("pool", "nodes", "fits"),
    [
        ({"num_gpus": 1}, [(1, 4)], 4),  # no CPU beside a GPU
        ({"num_gpus": 1, "cpus_per_actor": 4}, [(8, 8)], 2),
        ({"num_gpus": 2}, [(8, 3), (8, 3)], 2),
        ({"num_gpus": 0.4}, [(8, 2)], 4),  # a share lies on one GPU
        ({"num_gpus": 0.1}, [(8, 1)], 10),
        ({"cpus_per_actor": 4}, [(6, 0), (4, 0), (2, 0)], 2),
        ({"cpus_per_actor": 0.1}, [(0.3, 0)], 3),
        ({"cpus_per_actor": 0}, [(2, 0), (3, 0)], 5),
        ({}, [(2, 0), (0, 0)], 2),
    ],
)
def test_an_actor_lies_on_one_node(
    pool: dict[str, float], nodes: list[tuple[float, float]], fits: int
) -> None:
    for elastic in (False, True):
        size = size_pool(PoolSettings.model_validate(pool), cluster(*nodes, elastic=elastic), 1000)
        assert size.largest == fits
    with pytest.raises(RunError, match=f"{fits + 1} actors .* {fits} fit: .* at most {fits}"):
        size_pool(PoolSettings.model_validate({**pool, "max_actors": fits + 1}), cluster(*nodes), 9)


@pytest.mark.parametrize(
    ("pool", "capacity", "said"),
    [
        ({"max_actors": 3}, TWO, ["3 actors of 1 CPUs", "2 fit", "2 CPUs", "at most 2 actors"]),
        ({"min_actors": 4}, cluster((2, 0), elastic=True), ["4 actors", "2 fit"]),
        ({"cpus_per_actor": 4}, TWO, ["1 actors of 4 CPUs", "0 fit", "2 CPUs", "smaller ones"]),
        ({"cpus_per_actor": 4}, cluster(*[(2, 0)] * 4, elastic=True), ["largest of 4", "2 CPUs"]),
        ({"num_gpus": 1}, TWO, ["1 GPUs", "0 fit", "0 GPUs"]),
        ({"num_gpus": 2}, cluster((64, 0), (8, 1)), ["8 CPUs and 1 GPUs"]),
    ],
)
def test_a_pool_that_would_wait_for_ever_is_refused(
    pool: dict[str, float], capacity: Capacity, said: list[str]
) -> None:
    with pytest.raises(RunError, match="E1505") as caught:
        size_pool(PoolSettings.model_validate(pool), capacity, 1000)
    assert all(words in str(caught.value) for words in said)


def test_a_cluster_may_grow_from_nothing() -> None:
    pool = PoolSettings(num_gpus=1, min_actors=1, max_actors=16)
    assert size_pool(pool, cluster((4, 0), elastic=True), 1000)[:2] == (1, 16)
    with pytest.raises(RunError, match="If the cluster grows, say how far: --max-actors"):
        size_pool(PoolSettings(num_gpus=1), cluster((4, 0), elastic=True), 1000)


def test_a_cluster_may_grow() -> None:
    pool = PoolSettings(min_actors=1, max_actors=16)
    assert size_pool(pool, cluster((2, 0), elastic=True), 1000)[:2] == (1, 16)


def test_enough_chunks_wait_for_ray_data_to_start_more_actors() -> None:
    pool = PoolSettings(min_actors=1, max_actors=16)
    assert size_pool(pool, cluster((2, 0), elastic=True), 20).in_flight == 4


def test_bounds_in_the_wrong_order() -> None:
    with pytest.raises(SettingsError, match="min_actors=3"):
        build(PoolSettings, {"min_actors": 3, "max_actors": 2})


def test_training_workers_that_find_no_room_are_refused() -> None:
    two = WorkerSettings(num_workers=2)
    assert check_workers(two, TWO) == 2
    with pytest.raises(RunError, match=r"E1505: 3 workers .* and 2 fit: this machine has 2 CPUs"):
        check_workers(WorkerSettings(num_workers=3), TWO)
    with pytest.raises(RunError, match=r"0 fit.*Without --num-gpus"):
        check_workers(WorkerSettings(num_workers=1, num_gpus=1), TWO)
    assert check_workers(WorkerSettings(num_workers=3, min_workers=1), TWO) == 2  # elastic
    assert check_workers(WorkerSettings(num_workers=3), cluster((2, 0), elastic=True)) == 2


def test_actors_that_decode_take_cores_from_the_others() -> None:
    pool = PoolSettings(decode_actors=3)
    size = size_pool(pool, cluster((4, 0), (2, 0)), 1000)
    assert (size.largest, size.decoders) == (3, 3)
    assert size.window == 3 * 4 + 3 * 3 + 2
    assert size_pool(PoolSettings(), cluster((4, 0)), 1000).window == 2 * 4 * 8 + 2
    beside_gpus = PoolSettings(decode_actors=8, num_gpus=1)
    assert size_pool(beside_gpus, cluster((1, 4), (16, 0)), 1000).largest == 4
    # nodes without a GPU are filled first
    needy = PoolSettings(decode_actors=8, num_gpus=1, cpus_per_actor=2)
    assert size_pool(needy, cluster((8, 4), (8, 0)), 1000).largest == 4
    assert size_pool(pool, cluster((64, 0)), 2).decoders == 2


def test_a_machine_without_cores_for_them_says_so() -> None:
    with pytest.raises(RunError, match=r"E1505: 3 actors that decode .* has 2\. Use fewer; 0:"):
        size_pool(PoolSettings(decode_actors=3), TWO, 1000)
    with pytest.raises(RunError, match=r"E1505: 1 .*beside 1 that.*-actors 1000, and 1 chunks"):
        size_pool(PoolSettings(decode_actors=1000, num_gpus=1), TWO, 1)
    with pytest.raises(RunError, match=r"E1505: 3 actors .*-actors 1000, and 3 chunks\).* has 2"):
        size_pool(PoolSettings(decode_actors=1000), TWO, 3)
    said = "E1505: 1 actors .* beside 2 that decode"
    with pytest.raises(RunError, match=said):
        size_pool(PoolSettings(decode_actors=2), TWO, 1000)
    # a cluster may grow
    growing = PoolSettings(decode_actors=9, max_actors=4)
    assert size_pool(growing, cluster((2, 0), elastic=True), 1000).decoders == 9
