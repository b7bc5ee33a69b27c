"""A browser for the page's tests. They skip where playwright or Debian's chromium is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from medv_ray.serving.app import make_app
from medv_ray.serving.auth import Keys
from medv_ray.serving.service import Service
from tests.unit.serving.conftest import serving, settings_of

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


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    """Where the page is: at MEDV_PAGE_URL, or at an endpoint of the toy in this process."""
    given = os.environ.get("MEDV_PAGE_URL")
    if given:
        yield given
        return
    service = Service.load(settings_of())
    with serving(make_app(service, Keys({}))) as url:
        yield url + "/"
    service.close()


@pytest.fixture(scope="module")  # its event loop would be in the way of other tests
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
    page.get_by_label("Preset").wait_for()  # the endpoint has sent its defaults
    yield page
    window.close()
    assert faults == []
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(page_url).netloc}
