from collections.abc import Iterator

import pytest

from medv_ray.dicomweb.client import Client
from tests.dicomweb_server import Pacs, serving


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    """An empty server."""
    with serving(Pacs()) as server:
        yield server


@pytest.fixture
def client(pacs: Pacs) -> Iterator[Client]:
    """A client of it that waits for nothing; `client.waited` has the seconds."""
    waited: list[float] = []
    made = Client(pacs.url, tries=3, sleep=waited.append)
    made.waited = waited  # type: ignore[attr-defined]
    yield made
    made.close()
