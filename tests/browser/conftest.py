"""A browser for the page's tests. They skip where playwright or Debian's chromium is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

MOCK = Path(os.environ.get("MEDV_PAGE_MOCK", "/tmp/wt/mock_server.py"))
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def page_url() -> Iterator[str]:
    """Where the page is: MEDV_PAGE_URL, or a mock of the endpoint."""
    given = os.environ.get("MEDV_PAGE_URL")
    if given:
        yield given
        return
    if not MOCK.exists():
        pytest.skip("MEDV_PAGE_URL is not set, and there is no mock of the endpoint")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    built = Path(__file__).parents[2] / "medv_ray" / "serving" / "page"
    settings = {**os.environ, "MOCK_DELAY": "0.03"}
    server = subprocess.Popen([sys.executable, str(MOCK), str(port), str(built)], env=settings)
    _wait_for(port)
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the mock server did not start")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, page_url: str) -> Iterator[Any]:
    """The page in a window of its own. Fails for a script error, for whatever the content security
    policy had to stop, and for a request to another host."""
    window = browser.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(10_000)
    window.grant_permissions(["clipboard-read", "clipboard-write"])
    page = window.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda line: faults.append(line.text) if "Security Policy" in line.text else None,
    )
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_url)
    page.get_by_label("Preset").wait_for()  # the endpoint has told its defaults
    yield page
    window.close()
    assert faults == []
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(page_url).netloc}
