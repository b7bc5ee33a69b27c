"""What is meant for this machine goes past the environment's proxies."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from medv_ray.client.endpoint import Endpoint
from medv_ray.dicomweb.client import Client, Trouble
from medv_ray.errors import MedvError
from medv_ray.evaluation.judge import Judge
from tests.dicomweb_server import Pacs, serving

pytestmark = pytest.mark.integration

CLIENTS: dict[str, Callable[[str], object]] = {
    "a PACS": lambda url: Client(url, tries=1).json("studies", {}),
    "an endpoint": lambda url: Endpoint(url).models(),
    "a judge": lambda url: Judge(url, "m", Path("none"))._client.get("/v1/models"),
}


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "elsewhere.example"])
def test_no_proxy_reads_what_is_for_this_machine(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(Pacs()) as proxy:
        for kind in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(kind, proxy.url.removesuffix("/dicom-web"))
        with suppress(Trouble, MedvError, httpx2.RequestError):
            CLIENTS[name](f"http://{host}:9")  # where nobody answers
    assert bool(proxy.seen) == (host == "elsewhere.example")
