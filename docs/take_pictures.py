"""Takes the pictures of README and docs in headless Chromium, from the embedded toy.

    medv demo && python docs/take_pictures.py demo-run

Writes docs/pictures/*.png; look at them before they are committed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from medv_ray.serving.app import make_app  # noqa: E402
from medv_ray.serving.auth import Keys  # noqa: E402
from medv_ray.serving.service import Service  # noqa: E402
from tests.browser.conftest import CHROMIUM  # noqa: E402
from tests.browser.steps import add_tile, ask  # noqa: E402
from tests.unit.serving.conftest import serving, settings_of  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
SIZE = {"width": 1280, "height": 800}


def main() -> None:
    """Three pictures."""
    demo = Path(sys.argv[1])
    PICTURES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    service = Service.load(settings_of())
    with serving(make_app(service, Keys({}))) as url, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=CHROMIUM)
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(120_000)
        of_page(page, url)
        of_report(page, demo)
        browser.close()
    service.close()


def of_page(page: Any, url: str) -> None:
    """An answer with where a token looks, and a longer one in the middle of its denoising."""
    page.goto(f"{url}/")
    add_tile(page)
    ask(page)
    page.locator("button.cell.token").first.hover()
    page.get_by_role("row").first.wait_for()
    take(page, "page")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Answer length").first.fill("24")
    page.get_by_label("Block length").first.fill("24")
    page.get_by_label("Steps").first.fill("24")
    ask(page, "Describe the picture.")
    bar = page.get_by_role("slider", name="Denoising step")
    bar.fill(str(int(bar.get_attribute("max")) // 2))
    take(page, "denoising")


def of_report(page: Any, demo: Path) -> None:
    """The head of a run's report."""
    medv = Path(sys.executable).with_name("medv")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        line = [medv, "report", demo / "run", "--archive", demo / "archive", "--out", report]
        subprocess.run(line, check=True)
        page.goto(report.as_uri())
        take(page, "report")


def take(page: Any, name: str) -> None:
    """In 192 colours, a third of the bytes."""
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(192).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
