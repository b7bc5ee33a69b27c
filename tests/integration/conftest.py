"""One Ray for all tests of this folder that run in this process."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

for name, value in (
    ("RAY_AUTH_MODE", "disabled"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    # at Ray's 15 its workers starve beside the other half of the tests
    ("RAY_worker_niceness", "0"),
    ("RAY_DEDUP_LOGS_SKIP_REGEX", "^"),
    # Serve's proxies take their environment from Ray's
    ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "medv_ray.on_ray.front:middlewares"),
):
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come last: Ray's servers, once started, take an eighth of a core until the end."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)
    items.sort(key=lambda item: here in item.path.parents)


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray
    from ray._private import worker

    from tests.canary import search

    kept = {"folder": str(tmp_path_factory.mktemp("batches"))}
    os.environ["MEDV_SERVE_BATCH"] = json.dumps(kept)  # of Serve's proxies
    os.environ["MEDV_CHAOS"] = str(os.getpid())  # a mark, by which a test finds what it may kill
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level="error", object_store_memory=200 * 2**20,
    )  # fmt: skip
    logs = Path(worker._global_node.get_session_dir_path()) / "logs"
    yield
    ray.shutdown()
    assert search.in_folder(logs) == [], "a test's canary is in the logs of Ray's session"


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """For the files of a job's own Ray, whose sockets need short paths."""
    folder = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
