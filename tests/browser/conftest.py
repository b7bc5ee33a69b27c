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


SIZE = {"width": 1280, "height": 900}


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")  # its event loop would be in the way of other tests
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield started
        started.close()


class Tab:
    """A page, what went wrong in it, and the addresses that it has asked for."""

    def __init__(self, window: Any) -> None:
        self.page = window.new_page()
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda line: self._heard(line.text))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, text: str) -> None:
        if "Security Policy" in text:
            self.faults.append(text)

    def renew(self) -> None:
        """As a tab that has just been opened, as far as the page can tell: to open one takes a
        second of a core."""
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.evaluate("sessionStorage.clear()")
        self.page.goto("about:blank")
        self.page.mouse.move(0, 0)
        self.page.emulate_media(color_scheme="null")
        self.page.set_viewport_size(SIZE)


@pytest.fixture(scope="package")
def tab(browser: Any) -> Iterator[Tab]:
    window = browser.new_context(viewport=SIZE)
    window.set_default_timeout(10_000)
    window.grant_permissions(["clipboard-read", "clipboard-write"])
    yield Tab(window)
    window.close()


@pytest.fixture
def page(tab: Tab, page_url: str) -> Iterator[Any]:
    """The page as one finds it. Fails for a script error, for whatever the content security policy
    had to stop, and for a request to another host."""
    tab.faults.clear()
    tab.asked.clear()
    tab.page.goto(page_url)
    tab.page.get_by_label("Preset").wait_for()  # the endpoint has sent its defaults
    yield tab.page
    tab.renew()
    assert tab.faults == []
    local = ("blob:", "data:", "about:")
    hosts = {urlsplit(url).netloc for url in tab.asked if not url.startswith(local)}
    assert hosts == {urlsplit(page_url).netloc}
