"""The toy behind an endpoint: one service and one server of it for all tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from medv_ray.engine.predictor import Predictor
from medv_ray.serving.app import make_app
from medv_ray.serving.auth import Keys, _digest
from medv_ray.serving.guard import App
from medv_ray.serving.options import LimitSettings, ServeSettings
from medv_ray.serving.service import Service
from medv_ray.settings import TOY, ModelSettings, SamplerSettings
from tests.unit.serving.client import KEY

KEYS = Keys({"alice": _digest(KEY), "bob": _digest("key-of-bob-0123456789")})
NO_KEYS = Keys({})


def settings_of(**limits: float) -> ServeSettings:
    return ServeSettings(
        model=ModelSettings(path=str(TOY), device="cpu"),
        sampler=SamplerSettings(gen_length=8, block_length=8, steps=8),
        limits=LimitSettings(**limits),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    made = Service.load(settings_of(ongoing=200, per_key=200))
    yield made
    made.close()


@pytest.fixture(scope="session")
def app(service: Service) -> App:
    return make_app(service, NO_KEYS)


@pytest.fixture(scope="session")
def predictor() -> Iterator[Predictor]:
    settings = settings_of()
    with Predictor.load(settings.model, settings.answer) as made:
        yield made


@contextmanager
def serving(app: App) -> Iterator[str]:
    """The address of a server in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def address(service: Service) -> Iterator[str]:
    """Of the service, which asks for a key."""
    with serving(make_app(service, KEYS)) as found:
        yield found


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, service: Service) -> Callable[..., App]:
    """An app around the service with other limits."""

    def make(keys: Keys = NO_KEYS, **limits: float) -> App:
        monkeypatch.setattr(service, "settings", settings_of(**limits))
        return make_app(service, keys)

    return make


def until(said: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.002)
