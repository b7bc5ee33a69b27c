import pytest

from medv_ray.errors import RunError, SettingsError
from medv_ray.on_ray.options import PoolSettings
from medv_ray.on_ray.preflight import Capacity, PoolSize, size_pool
from medv_ray.settings import build

TWO = Capacity(2, 0, elastic=False)


def test_a_machine_is_filled() -> None:
    assert size_pool(PoolSettings(), TWO, 1000) == PoolSize(2, 2, 8)


def test_no_more_actors_than_chunks() -> None:
    assert size_pool(PoolSettings(), Capacity(64, 0, False), 3)[:2] == (3, 3)


def test_short_jobs_are_shared_evenly() -> None:
    assert size_pool(PoolSettings(), TWO, 8).in_flight == 2


@pytest.mark.parametrize(
    ("pool", "capacity", "numbers"),
    [
        ({"max_actors": 3}, TWO, ["3 actors", "3 CPUs", "has 2"]),
        ({"min_actors": 4}, Capacity(2, 0, True), ["4 actors", "4 CPUs", "has 2"]),
        ({"cpus_per_actor": 4}, TWO, ["1 actors", "4 CPUs", "has 2"]),
        ({"num_gpus": 1}, TWO, ["1 GPUs", "has 0"]),
        ({"num_gpus": 0.5, "max_actors": 5}, Capacity(8, 2, False), ["2.5 GPUs", "at most 4"]),
    ],
)
def test_a_pool_that_would_wait_for_ever_is_refused(
    pool: dict[str, float], capacity: Capacity, numbers: list[str]
) -> None:
    with pytest.raises(RunError, match="E1505") as caught:
        size_pool(PoolSettings.model_validate(pool), capacity, 1000)
    assert all(number in str(caught.value) for number in numbers)


def test_a_cluster_may_grow() -> None:
    pool = PoolSettings(min_actors=1, max_actors=16)
    assert size_pool(pool, Capacity(2, 0, elastic=True), 1000)[:2] == (1, 16)


def test_enough_chunks_wait_for_ray_data_to_start_more_actors() -> None:
    pool = PoolSettings(min_actors=1, max_actors=16)
    assert size_pool(pool, Capacity(2, 0, elastic=True), 20).in_flight == 4


def test_gpu_actors_take_no_cpu() -> None:
    pool = PoolSettings(num_gpus=1)
    assert pool.cpus == 0
    assert size_pool(pool, Capacity(1, 4, False), 1000)[:2] == (4, 4)


def test_bounds_in_the_wrong_order() -> None:
    with pytest.raises(SettingsError, match="min_actors=3"):
        build(PoolSettings, {"min_actors": 3, "max_actors": 2})
