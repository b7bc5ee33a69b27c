"""What the page's tests do again and again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = api.expect

TILE = Path(__file__).parents[2] / "web" / "src" / "example.jpg"
QUESTION = "How many large cells are there?"
CHAT = "**/v1/chat/completions"
INSPECT = "**/v1/inspect"


def add_tile(page: Any, tile: Path = TILE) -> None:
    page.get_by_label("Image file").set_input_files(tile)
    expect(page.get_by_alt_text("Your image")).to_be_visible()


def ask(page: Any, question: str = QUESTION) -> str:
    """Asks, waits for the answer, and gives its text."""
    before = page.get_by_test_id("answer").count()
    field(page).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    answer = page.get_by_test_id("answer").nth(before)
    answer.wait_for()
    return str(answer.inner_text()).strip()


def field(page: Any) -> Any:
    return page.get_by_role("textbox", name=re.compile("question", re.IGNORECASE))


def tokens(page: Any) -> Any:
    return page.locator("button.cell.token")


def sent(page: Any, act: Callable[[], Any]) -> dict[str, Any]:
    with page.expect_request(CHAT) as caught:
        act()
    return dict(json.loads(caught.value.post_data))


def refuse(page: Any, address: str, status: int, code: str, **headers: str) -> None:
    error = {"message": f"Refused with {code}.", "type": "error", "param": None, "code": code}
    body = json.dumps({"error": error})
    page.route(
        address, lambda route: route.fulfill(status=status, body=body, headers=headers), times=1
    )
