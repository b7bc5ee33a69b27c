"""What canary tests share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from medv_ray.cli import app
from medv_ray.dicomweb.client import Client
from tests.canary import search
from tests.canary.scoring import in_process

__all__ = ["in_process"]  # the fixture
Medv = Callable[..., str]


@pytest.fixture
def printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[SimpleNamespace]:
    """What the test has printed and logged so far, from DEBUG up for our own loggers."""
    caplog.set_level(logging.INFO)
    logging.getLogger("medv_ray").setLevel(logging.DEBUG)

    def hits() -> list[search.Hit]:
        said = capfd.readouterr()
        logs = [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
        return search.in_text(said.out, said.err, *logs)

    yield SimpleNamespace(hits=hits)
    logging.getLogger("medv_ray").setLevel(logging.NOTSET)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of a PACS tries again at once."""
    monkeypatch.setitem(Client.__init__.__kwdefaults__, "sleep", lambda seconds: None)


@pytest.fixture
def medv(printed: SimpleNamespace) -> Medv:
    """Runs a command that must print no canary; its standard output."""

    def run(*words: str | Path, fails: bool = False) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert bool(done.exit_code) == fails, done.output
        assert "E1509" not in done.output, "a defect"
        assert search.in_text(done.output) == [], words[0]
        assert printed.hits() == [], words[0]
        return done.stdout

    return run
